"""Many seeds: run, remembered so that they can go on later, shrunk where they break something, and summed up.

    sweep = Sweep(Wanted(range(1, 201), tier="quick"), workers=2, path=Path("swarm.jsonl"))
    for outcome in sweep.run(): ...
    sweep.summary()

What is remembered is a file of JSON lines: a head that says of which code and which kind of run, then one outcome a
line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from everram.actors.chaos import marks
from everram.actors.chaos.commit import code, commit
from everram.actors.chaos.simulate import TIERS, simulate
from everram.actors.chaos.swarm import Outcome, run_all
from everram.runtime.errors import InvalidArgument

SHRINK_RUNS_MAX = 60
"""Of one seed: each is a simulation up to its first violation."""
SHRUNK_MAX = 3
"""Seeds that are shrunk in one go: the others are mostly the same."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is run of each seed."""

    seeds: range
    tier: str = "quick"
    scenario: str = ""
    plant: str = ""

    def head(self) -> dict[str, str]:
        return {"code": code(), "tier": self.tier, "scenario": self.scenario, "plant": self.plant}

    def replay(self, seed: int, faults: Sequence[int] | None = None) -> str:
        """The command that runs it again."""
        words = [f"everram chaos replay {seed}"]
        if self.tier != "quick":
            words.append(f"--tier {self.tier}")
        if self.scenario:
            words.append(f"--scenario {self.scenario}")
        if self.plant:
            words.append(f"--plant {self.plant}")
        if faults is not None:
            words.append(f"--faults {','.join(map(str, faults)) or 'none'}")
        return " ".join([*words, f"--code {code()}"])


class Sweep:
    """`path`: where outcomes are remembered, and found again; None: nowhere."""

    def __init__(self, wanted: Wanted, workers: int, path: Path | None = None) -> None:
        """Raises InvalidArgument if the file is of something else, or cannot be written."""
        self.wanted = wanted
        self._workers = workers
        self._path = path
        self._outcomes: dict[int, Outcome] = {}
        self.remembered = 0
        """Outcomes that a run before this one has found."""
        if path is not None:
            self._open(path)

    def run(self) -> Iterator[Outcome]:
        """The outcomes of all seeds in their order, those first that are remembered."""
        yield from self._outcomes.values()
        left = [seed for seed in self.wanted.seeds if seed not in self._outcomes]
        shrunk = 0
        run = partial(_simulate, tier=self.wanted.tier, scenario=self.wanted.scenario, plant=self.wanted.plant)
        for outcome in run_all(left, run, self._workers, timeout_s=TIERS[self.wanted.tier].timeout_s):
            if outcome["violations"] and shrunk < SHRUNK_MAX:
                outcome.update(self._shrunk(outcome))
                shrunk += 1
            self._outcomes[outcome["seed"]] = outcome
            self._remember(outcome)
            yield outcome

    def summary(self) -> dict[str, Any]:
        outcomes = [self._outcomes[seed] for seed in self.wanted.seeds if seed in self._outcomes]
        reached: Counter[str] = Counter()
        for outcome in outcomes:
            reached.update(outcome.get("marks", {}))
        return {
            "commit": commit(),
            "tier": self.wanted.tier,
            "runs": len(outcomes),
            "remembered": self.remembered,
            "violations": sum(len(outcome["violations"]) for outcome in outcomes),
            "failures": [self._failure(outcome) for outcome in outcomes if outcome["violations"]],
            "digest": _digest(outcomes),
            "virtual_s": round(sum(outcome["virtual_s"] for outcome in outcomes), 3),
            "steps": sum(outcome["steps"] for outcome in outcomes),
            "marks": {name: reached[name] for name in marks.names() if reached[name]},
            "marks_never": [name for name in marks.names() if not reached[name]],
        }

    # -- what is remembered

    def _open(self, path: Path) -> None:
        head = self.wanted.head()
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            if text:
                self._recall(path, head, text.splitlines())
                with path.open("a", encoding="utf-8") as file:
                    file.write("" if text.endswith("\n") else "\n")
            else:
                path.write_text(json.dumps(head) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidArgument(f"outcomes cannot be remembered in {path}: {error.strerror}") from None

    def _recall(self, path: Path, head: dict[str, str], lines: list[str]) -> None:
        try:
            found = json.loads(lines[0])
            differing = [f"{name} {found.get(name) or 'none'}, not {head[name] or 'none'}" for name in head
                         if found.get(name) != head[name]]  # fmt: skip
        except (ValueError, AttributeError):
            raise InvalidArgument(f"{path} holds no outcomes: name another file") from None
        if differing:
            raise InvalidArgument(f"{path} is of {', '.join(differing)}: name another file, or remove it")
        for line in lines[1:]:
            try:
                outcome = json.loads(line)
            except ValueError:
                continue  # cut off while it was written: run again
            if outcome["seed"] in self.wanted.seeds:
                self._outcomes[outcome["seed"]] = outcome
        self.remembered = len(self._outcomes)

    def _remember(self, outcome: Outcome) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(outcome) + "\n")

    # -- what is broken

    def _failure(self, outcome: Outcome) -> dict[str, Any]:
        seed = outcome["seed"]
        told = {name: outcome[name] for name in ("seed", "violations", "configuration")}
        told["replay"] = self.wanted.replay(seed)
        if "shrunk" in outcome:
            told |= {"shrunk": outcome["shrunk"], "replay_shrunk": self.wanted.replay(seed, outcome["shrunk"])}
            told["schedule"] = outcome["schedule"]
        return told

    def _shrunk(self, outcome: Outcome) -> Outcome:
        """The fewest faults with which the same property breaks, as far as that was found; {} if there are none."""
        count, claim = outcome.get("faults", 0), outcome["violations"][0]["property"]
        if not count:
            return {}
        left = SHRINK_RUNS_MAX

        def breaks(kept: list[int]) -> bool:
            nonlocal left
            left -= 1
            again = self._again(outcome["seed"], kept)
            return any(violation["property"] == claim for violation in again["violations"])

        kept = shrink(list(range(count)), breaks, lambda: left > 0)
        return {"shrunk": kept, "schedule": self._again(outcome["seed"], kept)["configuration"]}

    def _again(self, seed: int, kept: Iterable[int]) -> Outcome:
        wanted = self.wanted
        run = partial(_simulate, tier=wanted.tier, scenario=wanted.scenario, plant=wanted.plant, kept=frozenset(kept))
        return next(iter(run_all([seed], run, 1, timeout_s=TIERS[wanted.tier].timeout_s)))


def shrink(items: list[int], breaks: Any, may_go_on: Any) -> list[int]:
    """A subset of `items` for which `breaks` still holds, and for none that lacks one more, if `may_go_on` lets it find
    out. First without large pieces, then without smaller ones."""
    piece = max(1, len(items) // 2)
    while items and may_go_on():
        for start in range(0, len(items), piece):
            fewer = items[:start] + items[start + piece :]
            if may_go_on() and breaks(fewer):
                items = fewer
                break
        else:
            if piece == 1:
                return items
            piece = max(1, piece // 2)
        piece = min(piece, max(1, len(items)))
    return items


def _simulate(seed: int, *, tier: str, scenario: str, plant: str, kept: frozenset[int] | None = None) -> Outcome:
    result = simulate(seed, tier=tier, scenario=scenario, plant=plant, faults=kept, to_first=kept is not None)
    return result.to_json()


def _digest(outcomes: Sequence[Outcome]) -> str:
    together = blake2b(digest_size=16)
    for outcome in outcomes:
        together.update(f"{outcome['seed']} {outcome['digest']}\n".encode())
    return together.hexdigest()
