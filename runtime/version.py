"""everram's version, the same as in pyproject.toml (a test compares them).

A constant, because asking the installed package costs every start of a host the import of `importlib.metadata`.
"""

PACKAGE_VERSION = "0.2.0"
