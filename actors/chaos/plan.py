"""What a seed draws for a whole cluster: its size, its guests, and every fault with its time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from everram.actors.availability.lease_keeper import CLOCK_DRIFT_MAX
from everram.actors.chaos.cluster import NVM_BYTES
from everram.actors.chaos.fault import Fault
from everram.actors.chaos.faults import KINDS
from everram.actors.chaos.volatile_plan import VolatilePlan
from everram.runtime.errors import InvalidArgument
from everram.runtime.simulation.entropy import Stream
from everram.runtime.sizes import size_text

WEIGHTS = {name: kind.weight for name, kind in KINDS.items() if kind.weight}
FAILOVER_WEIGHTS = {name: kind.failover for name, kind in KINDS.items() if kind.failover}
MEMORY_WEIGHTS = {
    "host-kill": 3, "host-kill-at-store": 6, "hang": 1, "guest-kill": 2, "upgrade": 2, "suspend": 2,
    "disk-full": 3, "disk-fails": 3, "disk-slow": 3, "swap-rot": 3,
}  # fmt: skip
"""What disturbs whoever takes memory back, and brings it again."""
SWAP_WEIGHTS = {"swap-rot": 2}
"""Beside everything else, where guests have volatile memory."""
LEASE_WEIGHTS = {"machine-stuck": 3, "cut-off": 3, "partition": 2, "hang": 1}
"""What takes the leases of guests that go on living."""
HOSTS = (1, 1, 1, 2, 2, 3, 3, 3, 4, 5)
"""Small clusters more often: they run faster, and most of what can break breaks in them."""
FAILOVER_HOSTS = (2, 3, 3, 3, 4, 5)
MEMORY_SHARE = 0.75
"""Of the clusters in which everything happens: with volatile memory no host goes back to the version before."""
REVERT_SHARE = 0.2
"""Of them, too: one guest's region goes back to snapshots, and nothing happens that would keep it from that."""
REVERT_PAUSE_S = 0.1
"""Between two things that the user of its snapshots does, where no other was drawn."""
MANY_HOSTS = (3, 4, 5, 5, 6, 7, 8, 9)
NVM_SCARCE_BYTES = 1536 << 10
COPIED_GUESTS_MAX = 2
"""Where their snapshots fill scarce NVM: the metadata of snapshots is not given back, and of more guests the logs would
have no room beside it for good."""
FILL = "snapshots-fill"
AGAINST_REVERTS = (FILL, "bit-rot")
FILE_HOSTS = (2, 3, 3, 4)
FILE_USERS, EVERYTHING_FILE_USERS = (1, 2, 3), (0, 1, 2)
FILE_WEIGHTS = {
    "host-kill": 5, "host-kill-at-store": 3, "hang": 2, "upgrade": 2, "coordination-kill": 2, "machine-kill": 3,
    "mains-cut": 2, "power-cycle": 4, "one-way": 2, "isolation": 2, "cut-off": 2, "partition": 1, "clogged": 1,
    "link-faults": 1,
}  # fmt: skip
"""What happens to files, and to their manager, wherever that is."""
BATTERIES_S = (30.0, 30.0, 0.02, 0.003, 0.0005)
"""Some last, some die before anything is saved, some in the midst of it."""

SNAPSHOT_PAUSES_S = (0, 0, 0.1, 0.3)
"""In half of the clusters there are none."""

CLOCK_DRIFTS_PPM = (0, round(CLOCK_DRIFT_MAX * 1e6))
"""In half of the clusters every computer has a clock of its own, and they differ as much as they may."""

NVM_SIZES = (NVM_BYTES, NVM_BYTES, NVM_BYTES, NVM_SCARCE_BYTES)

WAITS = (0.5, 0.5, 0.5, 0.0)

GUEST_ENDS_MAX = 6
"""Of one guest, so that the pauses between its restarts stay short."""


@dataclass(frozen=True, slots=True)
class GuestPlan:
    name: str
    program: str
    host: str
    pause_s: float
    copies: int
    waits: float = 0.5
    """The part of its transactions that it wants to be replicated before it goes on; 0: it fills its log."""


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    hosts: int
    guests: tuple[GuestPlan, ...]
    clients: int
    """For each ledger."""
    preemption_guests: int
    preemption_hosts: int
    duration_s: float
    faults: tuple[Fault, ...]
    snapshot_pause_s: float = 0.0
    """Between two things that the user of each guest's snapshots does; 0: guests have none."""
    battery_s: float = 30.0
    memory: VolatilePlan | None = None
    """None: guests have no volatile memory."""
    nvm_bytes: int = NVM_BYTES
    """Of each host: with few, snapshots soon have to be purged, and where that fails to be given up."""
    clock_drift_ppm: int = 0
    """The most by which clocks differ in rate; 0: all have one."""
    file_users: int = 0
    """Programs that use remote files."""

    @staticmethod
    def draw(stream: Stream, scale: float) -> ClusterPlan:
        """Guests of every kind, on clusters of every size."""
        hosts = _names(stream.choice(HOSTS))
        guests = tuple(_guest(stream, number, hosts) for number in range(stream.choice((1, 1, 2, 3))))
        duration_s = stream.uniform(1.0, 2.5) * scale
        return _plan(stream, hosts, guests, duration_s, round(stream.randrange(1, 8) * scale), WEIGHTS)

    @staticmethod
    def draw_failover(stream: Stream, scale: float, weights: dict[str, int] | None = None) -> ClusterPlan:
        """Ledgers with copies, on clusters that have room for them."""
        hosts = _names(stream.choice(FAILOVER_HOSTS))
        guests = tuple(_ledger(stream, number, hosts) for number in range(stream.choice((1, 1, 2))))
        duration_s = stream.uniform(1.5, 3.5) * scale
        return _plan(
            stream, hosts, guests, duration_s, round(stream.randrange(2, 7) * scale), weights or FAILOVER_WEIGHTS
        )

    @staticmethod
    def draw_everything(stream: Stream, scale: float, hosts_choice: tuple[int, ...] = MANY_HOSTS) -> ClusterPlan:
        """Guests of every kind, most with volatile memory, and all faults, on larger clusters."""
        hosts = _names(stream.choice(hosts_choice))
        guests = tuple(
            (_ledger if stream.random() < 0.5 else _guest)(stream, number, hosts)
            for number in range(stream.randrange(2, 5))
        )
        duration_s = stream.uniform(1.5, 3.0) * scale
        weights = {name: max(weight, FAILOVER_WEIGHTS.get(name, 0)) for name, weight in WEIGHTS.items()}
        for more in (FAILOVER_WEIGHTS, SWAP_WEIGHTS):
            weights |= {name: weight for name, weight in more.items() if name not in weights}
        reverts = stream.random() < REVERT_SHARE
        if reverts:
            guests = (replace(guests[0], program="/ledger", copies=0), *guests[1:])
            weights = {name: weight for name, weight in weights.items() if name not in AGAINST_REVERTS}
        count = round(stream.randrange(4, 12) * scale)
        plan = _plan(stream, hosts, guests, duration_s, count, weights, EVERYTHING_FILE_USERS)
        if reverts:
            plan = replace(plan, nvm_bytes=NVM_BYTES, snapshot_pause_s=plan.snapshot_pause_s or REVERT_PAUSE_S)
        together = max(Counter(guest.host for guest in guests).values())
        memory = VolatilePlan.draw(stream, len(guests), together) if stream.random() < MEMORY_SHARE else None
        return replace(plan, memory=memory)

    @staticmethod
    def draw_files(stream: Stream, scale: float) -> ClusterPlan:
        """Programs that use remote files, and one guest beside them."""
        hosts = _names(stream.choice(FILE_HOSTS))
        guests = (GuestPlan("g0", "/ledger", stream.choice(hosts), 0.3, 0),)
        duration_s = stream.uniform(1.5, 3.0) * scale
        count = round(stream.randrange(1, 7) * scale)
        return _plan(stream, hosts, guests, duration_s, count, FILE_WEIGHTS, FILE_USERS)

    @staticmethod
    def draw_memory(stream: Stream, scale: float) -> ClusterPlan:
        """Guests with more volatile memory than their hosts have."""
        plan = ClusterPlan.draw(stream, scale)
        faults = round(stream.randrange(1, 8) * scale)
        drawn = _plan(stream, _names(min(plan.hosts, 2)), plan.guests, plan.duration_s, faults, MEMORY_WEIGHTS)
        guests = tuple(replace(guest, host="h1", copies=0) for guest in drawn.guests)
        memory = VolatilePlan.draw(stream, len(guests), together=len(guests))
        return replace(drawn, guests=guests, memory=memory, snapshot_pause_s=0)

    def with_faults(self, kept: frozenset[int] | None) -> ClusterPlan:
        """With those of these indices only; None: with all. Raises InvalidArgument if there is no such one."""
        if kept is None:
            return self
        for number in sorted(kept):
            if not 0 <= number < len(self.faults):
                raise InvalidArgument(
                    f"there is no fault {number}: this seed draws {len(self.faults)} of them, from 0 on"
                )
        return replace(self, faults=tuple(fault for i, fault in enumerate(self.faults) if i in kept))

    def __str__(self) -> str:
        guests = ", ".join(f"{g.program} {g.name} on {g.host} with {g.copies} copies" for g in self.guests)
        faults = "; ".join(map(str, self.faults)) or "no faults"
        snapshots = f"snapshots every {self.snapshot_pause_s:g} s, " if self.snapshot_pause_s else ""
        memory = f"{self.memory}, " if self.memory else ""
        nvm = f"{size_text(self.nvm_bytes)} of NVM, " if self.nvm_bytes != NVM_BYTES else ""
        clocks = f"clocks {self.clock_drift_ppm} ppm apart, " if self.clock_drift_ppm else ""
        files = f"{self.file_users} users of files, " if self.file_users else ""
        return (
            f"cluster of {self.hosts}, {guests}, {self.clients} clients, {files}{snapshots}{nvm}{clocks}{memory}"
            f"batteries of {self.battery_s:g} s, {self.duration_s:.2f} s: {faults}"
        )


def _guest(stream: Stream, number: int, hosts: list[str]) -> GuestPlan:
    program = stream.choice(("/ledger", "/ledger", "/counter", "/mapped"))
    copies = min(stream.choice((0, 1, 1, 2)), len(hosts) - 1) if program == "/ledger" else 0
    return GuestPlan(f"g{number}", program, stream.choice(hosts), stream.choice((0.01, 0.05, 0.3)), copies)


def _ledger(stream: Stream, number: int, hosts: list[str]) -> GuestPlan:
    pause_s, copies = stream.choice((0.005, 0.02, 0.1)), min(stream.choice((1, 1, 2)), len(hosts) - 1)
    return GuestPlan(f"g{number}", "/ledger", stream.choice(hosts), pause_s, copies, stream.choice(WAITS))


def _names(hosts: int) -> list[str]:
    return [f"h{number}" for number in range(1, hosts + 1)]


def _plan(
    stream: Stream,
    hosts: list[str],
    guests: tuple[GuestPlan, ...],
    duration_s: float,
    count: int,
    weights: dict[str, int],
    file_users: tuple[int, ...] = (0,),
) -> ClusterPlan:
    faults = [_fault(stream, hosts, len(guests), duration_s, weights) for _ in range(count)]
    faults = [_filled(fault, guests) for fault in faults]
    guests = _filling(guests, faults)
    return ClusterPlan(
        len(hosts),
        guests,
        clients=stream.choice((0, 1, 2)),
        preemption_guests=stream.choice((0, 10, 50)),
        preemption_hosts=stream.choice((0, 20, 200)),
        duration_s=duration_s,
        faults=_bearable(sorted(faults, key=lambda fault: fault.at_s)),
        snapshot_pause_s=stream.choice(SNAPSHOT_PAUSES_S),
        battery_s=stream.choice(BATTERIES_S),
        nvm_bytes=_nvm_bytes(stream, guests, faults),
        clock_drift_ppm=stream.choice(CLOCK_DRIFTS_PPM),
        file_users=stream.choice(file_users),
    )


def _fault(stream: Stream, hosts: list[str], guests: int, duration_s: float, weights: dict[str, int]) -> Fault:
    kind = stream.choices(list(weights), weights=list(weights.values()))[0]
    return Fault(
        at_s=stream.uniform(0, duration_s),
        kind=kind,
        host=stream.choice(hosts),
        guest=stream.randrange(guests),
        length_s=stream.choice((0.05, 0.3, 1.0, 3.0)),
        count=stream.randrange(1, 80),
    )


def _filled(fault: Fault, guests: tuple[GuestPlan, ...]) -> Fault:
    """Room is filled by the snapshots of a guest without copies, where there is one: its region may be a mapped one."""
    bare = [number for number, guest in enumerate(guests) if not guest.copies]
    return replace(fault, guest=bare[fault.count % len(bare)]) if bare and fault.kind == FILL else fault


def _filling(guests: tuple[GuestPlan, ...], faults: list[Fault]) -> tuple[GuestPlan, ...]:
    """Its region is a mapped one: nobody sees who stores there, so each snapshot is copied whole, finds in the midst of
    that that there is no room, and is taken back."""
    filling = {fault.guest for fault in faults if fault.kind == FILL}
    return tuple(
        replace(guest, program="/mapped") if number in filling and not guest.copies else guest
        for number, guest in enumerate(guests)
    )


def _nvm_bytes(stream: Stream, guests: tuple[GuestPlan, ...], faults: list[Fault]) -> int:
    drawn = stream.choice(NVM_SIZES)
    if not any(fault.kind == FILL for fault in faults):
        return drawn
    bare = any(not guest.copies for guest in guests)
    return NVM_SCARCE_BYTES if bare or len(guests) <= COPIED_GUESTS_MAX else NVM_BYTES


def _bearable(faults: list[Fault]) -> tuple[Fault, ...]:
    """Without what would only make a guest be given up: too many ends of its own."""
    kept, ends = [], 0
    for fault in faults:
        if fault.kind.startswith("guest-kill"):
            ends += 1
            if ends > GUEST_ENDS_MAX:
                continue
        kept.append(fault)
    return tuple(kept)
