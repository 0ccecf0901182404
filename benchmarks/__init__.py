"""Benchmarks: each compares, in one run, with what a user would pick instead and with the physical limit."""
