"""Runs guests on one host and keeps their life cycle."""
