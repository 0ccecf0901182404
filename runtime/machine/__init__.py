"""The machine: the hardware a host runs on, as a small process. Standard library only.

It holds memory descriptors, mains and battery, starts and watches the host, is the parent of the guests, and alone
freezes and thaws them. Its death is the machine's death. `core` decides (plain, synchronous, shared with the
simulation); the rest does what it says.
"""
