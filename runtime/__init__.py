"""The engine of everram: actors and how they reach each other, the environment seam, machines, guests and the log.

It knows no actor. Start reading at `actor` (what an actor is), `refs` (how others reach it) and `environment` (the one
seam behind which production and the simulation differ); docs/architecture.md has the map.
"""
