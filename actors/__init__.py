"""The actors of a host: one folder each, with its decisions in plain Python and a thin actor around them.

`compose` builds a host's actors from its configuration, the same way in production and in the simulation; `host` is the
program that runs them.
"""
