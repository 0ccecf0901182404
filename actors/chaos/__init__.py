"""Workloads, faults and checkers: the promises, tried in simulation from one seed at a time.

`simulate` draws a scenario and runs it: `ring` (one guest, its log and a reader, hundreds of crashes) or `scenario` (a
`cluster` of the real actors as `plan` draws it, faults by `injector`). A `workload` (`ledger`, `counter`, `mapped`)
remembers outside the world what it was told and compares; `checks` has one property a file, `faults` what can break,
`marks` the paths that shall be tried. `planted` breaks the real code on purpose, `swarm` runs many seeds, `sweep`
remembers and shrinks them, `real` does the same to real clusters, `command` is `everram chaos`.
"""
