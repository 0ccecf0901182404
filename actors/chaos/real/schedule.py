"""The faults of a chaos run, drawn from its seed: the same seed, duration and sizes give the same schedule.

One fault after the other: what would take the last copy of a guest, or two failures at once, is nothing that anybody
promised to survive. Each begins when the one before is over and everything serves again, never before its time.
"""

from __future__ import annotations

from dataclasses import dataclass

from everram.runtime.simulation.entropy import Stream

FAULTS: dict[str, int] = {
    "guest-kill": 3,
    "host-kill": 4,
    "host-stop": 3,
    "hang": 1,
    "partition": 3,
    "machine-kill": 4,
    "machine-stop": 2,
    "power-cut": 3,
    "link-delay": 1,
    "link-slow": 1,
    "link-corrupt": 2,
    "one-way": 2,
    "disk-full": 1,
    "disk-slow": 1,
    "disk-fails": 1,
    "upgrade": 2,
    "upgrade-paused": 1,
    "memory-pressure": 2,
    "coordination-kill": 2,
    "coordination-stop": 1,
}
"""Each with its weight in the draw."""
LASTING_S: dict[str, tuple[float, float]] = {
    "host-stop": (0.1, 0.6),
    "machine-stop": (0.5, 4.0),
    "partition": (0.5, 5.0),
    "power-cut": (0.0, 1.0),
    "machine-kill": (0.2, 2.0),
    "link-delay": (1.0, 4.0),
    "link-slow": (1.0, 4.0),
    "link-corrupt": (1.0, 4.0),
    "one-way": (0.3, 3.0),
    "disk-full": (1.0, 4.0),
    "disk-slow": (1.0, 4.0),
    "disk-fails": (1.0, 4.0),
    "memory-pressure": (2.0, 6.0),
    "coordination-stop": (0.2, 1.0),
}
"""How long those last that last. A host that is stopped for longer than its machine's watchdog waits is `hang`."""
FIRST_AT_S = 1.5
GAP_S = (1.0, 5.0)
CALM_S = 3.0
"""At the end, without any."""


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    """After the tellers began."""
    kind: str
    host: str
    guest: str
    """For those that are a guest's."""
    length_s: float

    @property
    def target(self) -> str:
        if self.kind == "guest-kill":
            return self.guest
        if self.kind == "memory-pressure":
            return "all banks"
        return "coordination" if self.kind.startswith("coordination") else self.host

    def __str__(self) -> str:
        lasting = f" for {self.length_s:.2f} s" if self.length_s else ""
        return f"{self.at_s:7.2f} s  {self.kind} of {self.target}{lasting}"


def draw(
    stream: Stream, duration_s: float, hosts: list[str], guests: list[str], kinds: dict[str, int] | None = None
) -> list[Fault]:
    weights = FAULTS if kinds is None else kinds
    faults: list[Fault] = []
    at_s = FIRST_AT_S
    while at_s < duration_s - CALM_S:
        kind = stream.choices(list(weights), weights=list(weights.values()))[0]
        length_s = stream.uniform(*LASTING_S[kind]) if kind in LASTING_S else 0.0
        faults.append(Fault(at_s, kind, stream.choice(hosts), stream.choice(guests), length_s))
        at_s += length_s + stream.uniform(*GAP_S)
    return faults
