"""The same contracts under virtual time: what a seed decides, it decides again in every process and every run.

Read `domain` (what can die, freeze and go on) and `loop` (virtual time, order) first; then the parts of an environment,
each with the faults it can have: `network` and `endpoint`, `disk`, `objects` (memory whose users die at any store) with
`cache` (memory that loses what was not flushed) and `paging` (pages that are missing or protected), `machine` (the
production core on simulated processes) and `coordination` (the production store behind the network). `world` puts them
together; `trace` is what happened, as a digest and as lines. `memory` is apart: it enumerates crash states for tests.
Nothing here knows an actor; whole clusters, workloads and checkers are in `everram.actors.chaos`.
"""
