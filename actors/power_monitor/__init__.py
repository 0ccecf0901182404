"""Saves the machine's memory to storage, and restores it."""
