"""Workloads, faults and checkers, in simulation and for real."""
