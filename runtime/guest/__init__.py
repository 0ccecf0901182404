"""The library inside a guest. Standard library only.

    from everram.runtime import guest

    me = guest.attach()
    with me.transaction() as tx:
        tx.store(me.region("ledger"), 0, b"...")
"""
