"""The log ring: where a guest's persistent writes are recorded in commit order.

`record` is one record, `ring` the shared header and space, `writer` appends, `reader` reads what is committed. Guests
and the replicator use the same code. Standard library only.
"""
