"""Checkers: independent observers, one property a file.

Those of a ledger's contents take the journal and what was found and return what is wrong, or None. The others watch a
cluster for its whole life and report by themselves.
"""
