"""Sweeps over seeds: what is remembered and goes on, what is shrunk, what is summed up. Nothing is simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from everram.actors.chaos import marks, sweep
from everram.actors.chaos.simulate import Result
from everram.actors.chaos.sweep import Sweep, Wanted, shrink
from everram.runtime.errors import InvalidArgument
from everram.runtime.simulation.world import Violation

CULPRITS = frozenset({3, 11})
"""Of the faults that are drawn, those that break something together."""


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for simulating: seed 2 breaks if both culprits are kept."""
    simulated: list[int] = []

    def simulate(seed: int, *, faults: frozenset[int] | None, **rest: Any) -> Result:
        kept = frozenset(range(16)) if faults is None else faults
        broken = (Violation("order", 0.5, "it is not"),) if seed == 2 and kept >= CULPRITS else ()
        return Result(seed, f"faults {sorted(kept)}", broken, f"d{seed}", 10, 1.0, 16, {"a guest is fenced": seed})

    def run_all(seeds: Any, run: Any, workers: int, *, timeout_s: float) -> Any:
        for seed in seeds:
            simulated.append(seed)
            yield run(seed)

    monkeypatch.setattr(sweep, "simulate", simulate)
    monkeypatch.setattr(sweep, "run_all", run_all)
    return simulated


def test_a_failure_is_shrunk_to_what_suffices() -> None:
    swept = Sweep(Wanted(range(1, 4), scenario="cluster"), workers=1)
    assert [bool(outcome["violations"]) for outcome in swept.run()] == [False, True, False]
    (failure,) = swept.summary()["failures"]
    assert failure["shrunk"] == sorted(CULPRITS)
    assert failure["schedule"] == "faults [3, 11]"
    assert failure["replay_shrunk"].startswith("everram chaos replay 2 --scenario cluster --faults 3,11 --code ")


def test_shrinking_ends_when_it_has_to() -> None:
    assert shrink(list(range(16)), lambda kept: 5 in kept, lambda: True) == [5]
    assert shrink(list(range(16)), lambda kept: True, lambda: True) == []
    assert shrink(list(range(16)), lambda kept: False, lambda: True) == list(range(16))
    assert shrink(list(range(16)), lambda kept: True, lambda: False) == list(range(16))


def test_a_swarm_goes_on_where_it_was(tmp_path: Path, simulated: list[int]) -> None:
    path = tmp_path / "swarm.jsonl"
    first = Sweep(Wanted(range(3, 6)), 1, path)
    list(first.run())
    with path.open("a") as file:
        file.write('{"seed": 6, "viol')  # cut off while it was written
    del simulated[:]
    second = Sweep(Wanted(range(3, 8)), 1, path)
    assert [outcome["seed"] for outcome in second.run()] == [3, 4, 5, 6, 7]
    assert simulated == [6, 7]
    summary = second.summary()
    assert (summary["runs"], summary["remembered"], summary["marks"]) == (5, 3, {"a guest is fenced": 25})
    assert "a lease is lost" in summary["marks_never"]
    assert json.loads(path.read_text().splitlines()[0])["tier"] == "quick"
    assert Sweep(Wanted(range(3, 8)), 1, path).remembered == 5


def test_outcomes_of_something_else_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "swarm.jsonl"
    Sweep(Wanted(range(1, 2)), 1, path)
    with pytest.raises(InvalidArgument, match="is of tier quick, not swarm: name another file"):
        Sweep(Wanted(range(1, 2), tier="swarm"), 1, path)
    path.write_text(json.dumps(Wanted(range(1)).head() | {"code": "abc"}) + "\n")
    with pytest.raises(InvalidArgument, match="is of code abc, not"):
        Sweep(Wanted(range(1, 2)), 1, path)
    path.write_text("hello\n")
    with pytest.raises(InvalidArgument, match="holds no outcomes"):
        Sweep(Wanted(range(1, 2)), 1, path)
    with pytest.raises(InvalidArgument, match="cannot be remembered"):
        Sweep(Wanted(range(1, 2)), 1, tmp_path / "not" / "there")


def test_every_mark_is_a_function_that_is_there() -> None:
    assert not [name for name, place in marks.MARKS.items() if not callable(getattr(*place, None))]


def test_marks_leave_the_code_as_it_was() -> None:
    before = [vars(owner).get(attribute) for owner, attribute in marks.MARKS.values()]
    with marks.marking():
        pass
    assert [vars(owner).get(attribute) for owner, attribute in marks.MARKS.values()] == before
