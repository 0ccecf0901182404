"""Bulk bytes between hosts, in the words of the RDMA verbs; `contract` is the place to begin.

What has a network card in a machine that has one is modelled here behind the same interface: *shared memory* between
hosts on the same computer, and virtual time in the simulation.
"""
