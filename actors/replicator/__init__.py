"""Reads guests' log rings."""
