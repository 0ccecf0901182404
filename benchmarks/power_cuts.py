"""Losses of the mains of real machines, at random instants that a seed draws: what was committed is there afterwards
wherever the report says that it was saved, what was promised wherever a copy lives, and never a wrong byte.

Three hosts with a dirty cap, so that pages are flushed all the time, and two guests: `copied` has a copy and waits for
it now and then, `alone` has none. Each counts in a transaction over eight pages, and stores the number of each of its
steps into a page of a mapped region, so that afterwards it knows what each page must hold; when it begins again it
looks at all of them before anything else. Each cut is of one machine or of all, and of one of these kinds, drawn:

- `run`: while guests store and pages are flushed;
- `save`: and while it saves, its host is killed, or the mains come back;
- `restore`: and again while the image is read behind the guests that run already;
- `opened`: and then the machine is lost, after it has opened its image and before it saves again: what it opened must
  not be opened silently again, and `alone` is begun anew if it was there.

What is counted: `complete` (of the cuts: reports that say saved, or that the mains were back in time), `lost` (of what
was committed, where they are), `lost_promised` (of what `wait_replicated` returned for), `wrong` (pages that hold what
they must not, torn transactions). The last three must be 0. `unheard`: what was found beyond what was heard of, because
a machine that hands a guest over removes what that has printed.

`--simulated N` plays N seeds of the same in the simulation instead (`tests/power_losses.py`), where batteries also die
early, and every instant is as likely as any other.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.footprint import EVERRAM, everram
from tests.power_losses import play

CUTS = 20
HOSTS = ("h1", "h2", "h3")
KINDS = ("run", "save", "restore", "opened")
SETTLED = ("saved", "the mains came back")
PATIENCE_S = 90.0
ANSWER_S = 60.0
GUEST = """
import sys, time
from everram.runtime import guest
me = guest.attach()
ledger = me.region("ledger")
steps = memoryview(me.region("steps").view).cast("B").cast("Q")
pages, odd = len(steps) // 512, 2654435761

def say(*words):
    print(*words, time.monotonic(), flush=True)

found = [ledger.load_u64(4096 * page) for page in range(8)]
step = max(steps[512 * page] for page in range(pages))
back, wrong = pow(odd, -1, pages), int(len(set(found)) > 1)
for page in range(pages):
    last = step - (step - page * back) % pages
    first, end = steps[512 * page], steps[512 * page + 511]
    half = step % pages * odd % pages == page and end == max(0, step - pages)
    wrong += first != max(0, last) or (end != first and not half)
if step:
    steps[512 * (step * odd % pages) + 511] = step
say("began", found[0], step, wrong)
while True:
    for _ in range(20):
        step += 1
        at = 512 * (step * odd % pages)
        steps[at] = step
        steps[at + 511] = step
    with me.transaction() as tx:
        for page in range(8):
            tx.store_u64(ledger, 4096 * page, tx.load_u64(ledger, 4096 * page) + 1)
    count = ledger.load_u64(0)
    say("committed", count, step)
    if sys.argv[1:] and count % 10 == 0:
        try:
            me.wait_replicated(tx.lsn, 5.0)
            say("promised", count, step)
        except guest.Timeout:
            pass
    time.sleep(0.002)
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cuts", type=int, default=CUTS, metavar="N", help=f"how many ({CUTS})")
    parser.add_argument("--seed", type=int, default=1, help="draws kinds, victims and instants")
    parser.add_argument("--simulated", type=int, default=0, metavar="N", help="seeds of the simulation instead")
    parser.add_argument("--folder", type=Path, default=None, help="for the cluster (default: a temporary one)")


def run(cuts: int = CUTS, seed: int = 1, simulated: int = 0, folder: Path | None = None) -> dict[str, Any]:
    if simulated:
        return in_simulation(range(seed, seed + simulated))
    with tempfile.TemporaryDirectory(prefix="everram-benchmark-", dir=folder) as place:
        state = Path(place) / "cluster"
        sizes = ("--nvm", "160MiB", "--memory", "512MiB", "--dirty-cap", "4MiB")
        everram("up", "--hosts", "3", "-d", *sizes, dir=state)
        try:
            return Cuts(state, seed).run(cuts)
        finally:
            everram("down", "--discard", dir=state)


def in_simulation(seeds: range) -> dict[str, Any]:
    failed: dict[int, str] = {}
    cuts = beginnings = 0
    for seed in seeds:
        try:
            played = play(seed)
        except AssertionError as error:
            failed[seed] = str(error)
        else:
            cuts, beginnings = cuts + played.cuts, beginnings + len(played.count.recovered)
    return {"failed": len(failed), "seeds": len(seeds), "cuts": cuts, "beginnings": beginnings, "trouble": failed}


@dataclass
class Teller:
    """A guest, from outside: what it has printed, on whatever machine."""

    name: str
    copies: int
    guest_id: str = ""
    seen: int = 0
    """How many of its beginnings were judged."""
    heard: set[tuple[float, str, tuple[int, ...]]] = field(default_factory=set)
    """All that it has said: what it wrote on a machine that is lost goes with that."""

    def start(self, state: Path) -> None:
        words = ("--name", self.name, "--copies", str(self.copies), "--region", "ledger=1MiB")
        program = ("--region", "steps=16MiB,mapped", "--", sys.executable, "-c", GUEST, *(["wait"] * self.copies))
        self.guest_id = everram("run", "-d", *words, *program, dir=state)["guest_id"]
        self.seen = 0
        self.heard.clear()

    def told(self, state: Path) -> list[tuple[float, str, tuple[int, ...]]]:
        """(when, word, numbers), in the order in which they were said."""
        for host in HOSTS:
            path = state / "machines" / host / "guests" / f"{self.guest_id}.log"
            lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
            for words in (line.split() for line in lines):
                lengths = {"began": 5, "committed": 4, "promised": 4}
                if words and lengths.get(words[0]) == len(words):
                    self.heard.add((float(words[-1]), words[0], tuple(map(int, words[1:-1]))))
        return sorted(self.heard)


@dataclass
class Cuts:
    state: Path
    seed: int
    counts: dict[str, int] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.tellers = [Teller("copied", 1), Teller("alone", 0)]

    def run(self, cuts: int) -> dict[str, Any]:
        for teller in self.tellers:
            teller.start(self.state)
        kinds = [KINDS[number % len(KINDS)] for number in range(cuts)]
        self.draw.shuffle(kinds)
        done: dict[str, int] = {}
        for kind in kinds:
            began_s = time.monotonic()
            victims = self.cut(kind)
            done[kind] = done.get(kind, 0) + 1
            print(f"{kind} of {', '.join(victims)}: {time.monotonic() - began_s:.1f} s", file=sys.stderr, flush=True)
        judged = ("lost", "lost_promised", "wrong", "unheard", "complete", "beginnings", "committed")
        return {**{name: self.counts.get(name, 0) for name in judged}, "cuts": done, "trouble": self.trouble}

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    # -- one cut

    def cut(self, kind: str) -> list[str]:
        for teller in self.tellers:
            self.until(lambda t=teller: self.goes_on(t), f"{teller.name} commits")  # type: ignore[misc]
        if self.tellers[0].copies:
            self.until(lambda: not self.inspect("copied")["degraded"], "the copy is complete")
        where = {teller.name: str(self.inspect(teller.name)["host"]) for teller in self.tellers}
        everyone = self.draw.random() < 0.4 and kind != "opened"
        victims = list(HOSTS) if everyone else [where[self.draw.choice(sorted(where))]]
        time.sleep(self.draw.uniform(0.0, 0.4))
        self.lose_mains(victims, kind)
        if kind == "restore":
            time.sleep(self.draw.uniform(0.0, 0.3))
            self.lose_mains(victims, "run")
        if kind == "opened":
            self.lose_machine(victims[0], where)
        for teller in self.tellers:
            self.until(lambda t=teller: self.goes_on(t), f"{teller.name} serves again")  # type: ignore[misc]
            self.judge(teller, whole=kind != "opened")
        return victims

    def lose_mains(self, victims: list[str], kind: str) -> None:
        """Off, and on again; the machines' reports are looked at in between."""
        words = [*EVERRAM, "power", "cut", "--dir", str(self.state), *victims]
        cutting = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kind == "save":
            time.sleep(self.draw.uniform(0.3, 0.9))  # a command takes so long to begin
            if self.draw.random() < 0.5:
                self.try_to("fault", self.draw.choice(victims), "host-kill")
            else:
                self.try_to("power on", *victims)
        end_s = time.monotonic() + ANSWER_S
        while cutting.poll() is None and time.monotonic() < end_s:
            self.listen()  # a machine that hands a guest over removes what it has said
            time.sleep(0.02)
        self.listen()
        self.draw.shuffle(victims)
        for victim in victims:
            time.sleep(self.draw.choice((0.0, 0.0, 0.3, 2.5)))
            everram("power on", victim, dir=self.state)
            report = json.loads((self.state / "machines" / victim / "power" / "report.json").read_text())
            if report["outcome"] in SETTLED:
                self.count("complete")
            else:
                self.trouble.append(f"{victim}: {report['outcome']}")

    def lose_machine(self, host: str, where: dict[str, str]) -> None:
        """It has opened its image: nothing of it may come back by itself."""
        self.listen()
        everram("fault", host, "machine-kill", dir=self.state)
        everram("fault heal", host, dir=self.state)
        if everram("power status", host, dir=self.state)["hosts"][host].get("restored_from"):
            self.count("wrong")
            self.trouble.append(f"{host} has opened again what it had opened before")
        alone = self.tellers[1]
        if where[alone.name] == host:
            self.try_to("rm", alone.name)
            alone.start(self.state)

    def try_to(self, command: str, *arguments: str) -> None:
        """What may come too late, or too early."""
        words = [*EVERRAM, *command.split(), "--dir", str(self.state), *arguments]
        subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=ANSWER_S, check=False)

    # -- what guests say

    def listen(self) -> None:
        for teller in self.tellers:
            teller.told(self.state)

    def inspect(self, name: str) -> dict[str, Any]:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return everram("inspect", name, dir=self.state)
            except RuntimeError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.2)  # its host is starting

    def goes_on(self, teller: Teller) -> bool:
        """It has begun since the last cut, if it had to, and commits."""
        before = teller.told(self.state)
        time.sleep(0.1)
        after = teller.told(self.state)
        return bool(before) and after[-1][1] != "began" and len(after) > len(before)

    def judge(self, teller: Teller, *, whole: bool) -> None:
        committed = promised = step = 0
        beginnings = 0
        for _, word, numbers in teller.told(self.state):
            if word == "began":
                beginnings += 1
                found, found_step, wrong = numbers
                if beginnings > teller.seen:
                    self.count("beginnings")
                    self.count("wrong", wrong)
                    self.count("unheard", max(0, found - committed - 1))
                    self.count("lost_promised", max(0, promised - found))
                    if whole:
                        self.count("lost", max(0, committed - found))
                        if not teller.copies:  # of a copy's host nothing of a mapped region is expected
                            self.count("lost", max(0, step - found_step))
                    if wrong or promised > found or (whole and committed > found):
                        self.trouble.append(f"{teller.name} had {committed}, {promised} promised, found {numbers}")
                committed = found
            else:
                committed, step = numbers
                promised = max(promised, committed) if word == "promised" else promised
        self.count("committed", committed - self.counts.get(f"before.{teller.guest_id}", 0))
        self.counts[f"before.{teller.guest_id}"] = committed
        teller.seen = beginnings

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"not in time: {what}; so far {self.counts}, {self.trouble}")
            time.sleep(0.05)  # what other processes do, and nobody here is told of
