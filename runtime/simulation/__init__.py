"""The same contracts under virtual time: loop, network, disk, memory, machines, faults, trace."""
