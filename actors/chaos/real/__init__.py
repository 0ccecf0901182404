"""Chaos on a real cluster: `everram chaos run`. The checkers are those of the simulation.

`schedule` draws the faults from the seed; `inflict` carries them out; `bank` is the guests' program, the ledger of the
simulation behind a socket; a `teller` is its only client, keeps its journal and compares; `watch` follows the cluster;
`run` is the course of it, `findings` what was found, and `report` the page that shows it.
"""
