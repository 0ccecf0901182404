"""What a seed draws for a whole cluster: its size, its guests, and every fault with its time."""

from __future__ import annotations

from dataclasses import dataclass

from everram.runtime.simulation.entropy import Stream

FAULTS: dict[str, int] = {
    "guest-kill": 4,
    "guest-kill-at-store": 6,
    "host-kill": 4,
    "host-kill-at-store": 4,
    "hang": 2,
    "suspend": 6,
    "coordination-kill": 2,
    "coordination-hang": 1,
    "partition": 3,
    "isolation": 2,
    "cut-off": 3,
    "link-faults": 2,
    "save-fails": 1,
    "power-cycle": 2,
    "machine-kill": 5,
    "machine-stuck": 2,
}
"""Each fault with its weight in the draw."""

FAILOVER_FAULTS: dict[str, int] = {
    "machine-kill": 8,
    "machine-stuck": 2,
    "deposed-leader": 3,
    "cut-off": 4,
    "guest-kill": 2,
    "guest-kill-at-store": 3,
    "host-kill": 3,
    "host-kill-at-store": 4,
    "hang": 1,
    "coordination-kill": 2,
    "coordination-hang": 1,
    "partition": 2,
    "isolation": 2,
    "link-faults": 1,
    "power-cycle": 2,
}
"""The same, where guests have copies: what makes them go on elsewhere, and what may happen meanwhile."""

HOSTS = (1, 1, 1, 2, 2, 3, 3, 3, 4, 5)
"""Small clusters more often: they run faster, and most of what can break breaks in them."""

SNAPSHOT_PAUSES_S = (0, 0, 0.1, 0.3)
"""In half of the clusters there are none."""

GUEST_ENDS_MAX = 6
"""Of one guest, so that the pauses between its restarts stay short."""


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    """After the guests run."""
    kind: str
    host: str
    guest: int
    """Index into the guests of the plan."""
    length_s: float
    """How long it lasts, for those that last."""
    count: int
    """How many stores later, for those at a store."""

    def __str__(self) -> str:
        return f"{self.kind} {self.host} at {self.at_s:.3f} s"


@dataclass(frozen=True, slots=True)
class GuestPlan:
    name: str
    program: str
    host: str
    pause_s: float
    copies: int


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
    snapshot_pause_s: float
    """Between two things that the user of each guest's snapshots does; 0: guests have none."""

    @staticmethod
    def draw(stream: Stream, scale: float) -> ClusterPlan:
        hosts = stream.choice(HOSTS)
        names = [f"h{number}" for number in range(1, hosts + 1)]
        guests = tuple(_guest(stream, number, names) for number in range(stream.choice((1, 1, 2, 3))))
        duration_s = stream.uniform(1.0, 2.5) * scale
        count = round(stream.randrange(1, 8) * scale)
        faults = sorted((_fault(stream, names, len(guests), duration_s) for _ in range(count)), key=lambda f: f.at_s)
        return ClusterPlan(
            hosts,
            guests,
            clients=stream.choice((0, 1, 2)),
            preemption_guests=stream.choice((0, 10, 50)),
            preemption_hosts=stream.choice((0, 20, 200)),
            duration_s=duration_s,
            faults=_bearable(faults),
            snapshot_pause_s=stream.choice(SNAPSHOT_PAUSES_S),
        )

    @staticmethod
    def draw_failover(stream: Stream, scale: float) -> ClusterPlan:
        """Ledgers with copies, on clusters that have room for them."""
        hosts = stream.choice((2, 3, 3, 3, 4, 5))
        names = [f"h{number}" for number in range(1, hosts + 1)]
        guests = tuple(
            GuestPlan(
                f"g{number}",
                "/ledger",
                stream.choice(names),
                stream.choice((0.005, 0.02, 0.1)),
                min(stream.choice((1, 1, 2)), hosts - 1),
            )
            for number in range(stream.choice((1, 1, 2)))
        )
        duration_s = stream.uniform(1.5, 3.5) * scale
        count = round(stream.randrange(2, 7) * scale)
        faults = [_fault(stream, names, len(guests), duration_s, FAILOVER_FAULTS) for _ in range(count)]
        return ClusterPlan(
            hosts,
            guests,
            clients=stream.choice((0, 1, 2)),
            preemption_guests=stream.choice((0, 10, 50)),
            preemption_hosts=stream.choice((0, 20, 200)),
            duration_s=duration_s,
            faults=_bearable(sorted(faults, key=lambda f: f.at_s)),
            snapshot_pause_s=stream.choice(SNAPSHOT_PAUSES_S),
        )

    def __str__(self) -> str:
        guests = ", ".join(f"{g.program} {g.name} on {g.host} with {g.copies} copies" for g in self.guests)
        faults = "; ".join(map(str, self.faults)) or "no faults"
        snapshots = f"snapshots every {self.snapshot_pause_s:g} s, " if self.snapshot_pause_s else ""
        return (
            f"cluster of {self.hosts}, {guests}, {self.clients} clients, {snapshots}{self.duration_s:.2f} s: {faults}"
        )


def _guest(stream: Stream, number: int, hosts: list[str]) -> GuestPlan:
    program = stream.choice(("/ledger", "/ledger", "/counter", "/mapped"))
    copies = min(stream.choice((0, 1, 1, 2)), len(hosts) - 1) if program == "/ledger" else 0
    return GuestPlan(f"g{number}", program, stream.choice(hosts), stream.choice((0.01, 0.05, 0.3)), copies)


def _fault(stream: Stream, hosts: list[str], guests: int, duration_s: float, weights: dict[str, int] = FAULTS) -> Fault:
    kind = stream.choices(list(weights), weights=list(weights.values()))[0]
    return Fault(
        at_s=stream.uniform(0, duration_s),
        kind=kind,
        host=stream.choice(hosts),
        guest=stream.randrange(guests),
        length_s=stream.choice((0.05, 0.3, 1.0, 3.0)),
        count=stream.randrange(1, 80),
    )


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
