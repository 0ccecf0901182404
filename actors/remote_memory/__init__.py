"""Remote memory as files: the manager (`manager`, one that leads) and the agent (`agent`, one a host).

What they decide lies beside them in plain modules: `namespace` (names and inodes), `placement` (where a new file goes),
`owned` (the files of this host), `using` (the files of others, opened here). docs/architecture.md has one open, from
the manager's answer to the first one-sided read.
"""
