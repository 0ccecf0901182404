"""`everram fs exec`: a Python program's files, redirected to the cluster's for paths under a prefix. Needs no root.

The launcher puts `launcher/` before everything else on PYTHONPATH. Its `sitecustomize` runs in every Python that the
program starts, and `install`s (`opens.py`); nothing else of everram is imported before a path under the prefix is used.
"""
