"""How fast the simulation runs: bare callbacks, whole clusters, and virtual seconds for each real one.

Workloads: *bare* is four domains passing callbacks and timers around, nothing else; *light* is three hosts of the real
actors with one guest that commits now and then; *heavy* is three hosts with three busy ledgers and six clients, whose
stores may be preempted. `cluster_events_per_s` are callbacks of the light cluster. `by_hosts`: clusters of that many
hosts, of which every third has a ledger with a copy, and every host asks others for an echo now and then.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from typing import Any

from everram.actors.chaos.plan import ClusterPlan, GuestPlan
from everram.actors.chaos.scenario import ClusterScenario
from everram.runtime.simulation.entropy import Seeds
from everram.runtime.simulation.loop import SimulationLoop
from everram.runtime.simulation.world import World

ROUNDS = 3
BARE_CALLBACKS = 200_000
LIGHT = ClusterPlan(
    hosts=3,
    guests=(GuestPlan("bank", "/ledger", "h1", 0.5, copies=1),),
    clients=0,
    preemption_guests=0,
    preemption_hosts=0,
    duration_s=20.0,
    faults=(),
)
HEAVY = ClusterPlan(
    hosts=3,
    guests=tuple(GuestPlan(f"bank{n}", "/ledger", f"h{n}", 0.01, copies=1) for n in (1, 2, 3)),
    clients=2,
    preemption_guests=50,
    preemption_hosts=200,
    duration_s=3.0,
    faults=(),
)
HOSTS = (3, 10, 50)
SCALED_S = 2.0
"""Virtual seconds of each."""


def scaled(hosts: int) -> ClusterPlan:
    guests = tuple(GuestPlan(f"bank{n}", "/ledger", f"h{n}", 0.2, copies=1) for n in range(1, hosts + 1, 3))
    return ClusterPlan(
        hosts, guests, clients=0, preemption_guests=0, preemption_hosts=0, duration_s=SCALED_S, faults=()
    )


def bare_events_per_s() -> float:
    loop = SimulationLoop(Seeds(1).stream("loop"))
    domains = [loop.domain(f"d{number}") for number in range(4)]
    left = BARE_CALLBACKS

    async def scenario() -> None:
        done: asyncio.Future[None] = loop.create_future()

        def tick() -> None:
            nonlocal left
            left -= 1
            if left > 0:
                if left % 2:
                    loop.call_soon(tick)
                else:
                    loop.call_later(0.001, tick)
            elif not done.done():
                done.set_result(None)

        for domain in domains:
            loop.run_in(domain, tick)
        await done

    gc.disable()
    started_s = time.perf_counter()
    loop.run_until_complete(scenario())
    took_s = time.perf_counter() - started_s
    gc.enable()
    steps = loop.steps
    loop.abandon()
    return steps / took_s


def cluster(plan: ClusterPlan, seed: int) -> tuple[float, float]:
    """(callbacks per second, virtual seconds per real second)."""
    world = World(seed)
    scenario = ClusterScenario(world, plan)
    started_s = time.perf_counter()
    world.run(scenario.run())
    took_s = time.perf_counter() - started_s
    if world.violations:
        raise RuntimeError(f"the benchmark's own cluster broke: {world.violations[0]}")
    return world.loop.steps / took_s, world.now_s / took_s


def run() -> dict[str, Any]:
    bare = [bare_events_per_s() for _ in range(ROUNDS)]
    light = [cluster(LIGHT, seed) for seed in range(1, ROUNDS + 1)]
    heavy = [cluster(HEAVY, seed) for seed in range(1, ROUNDS + 1)]
    by_hosts = {hosts: cluster(scaled(hosts), 1) for hosts in HOSTS}
    return {
        "by_hosts": {
            str(hosts): {"events_per_s": round(events), "virtual_per_real": round(ratio, 3)}
            for hosts, (events, ratio) in by_hosts.items()
        },
        "bare_events_per_s": round(statistics.median(bare)),
        "cluster_events_per_s": round(statistics.median(events for events, _ in light)),
        "virtual_per_real": {
            "light": round(statistics.median(ratio for _, ratio in light), 1),
            "heavy": round(statistics.median(ratio for _, ratio in heavy), 1),
        },
        "heavy_events_per_s": round(statistics.median(events for events, _ in heavy)),
    }
