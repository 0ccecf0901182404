"""Keeps, in memory that outlives the host, what its successor needs to go on."""
