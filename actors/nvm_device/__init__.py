"""Regions: named, page-addressed ranges of persistent memory."""
