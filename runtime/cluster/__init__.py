"""A local cluster: its folders, its supervisor, and the forwarder of published ports."""
