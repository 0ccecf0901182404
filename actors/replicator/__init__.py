"""Ships guests' logs to other hosts, and keeps the copies that other hosts ship here.

Where a guest runs: `guest_log` reads its ring, one `shipper` a destination sends what is verified, `members` decides
who belongs to the required set. Where a copy is kept: `kept_copy` verifies, acknowledges and applies, `copy_keeper`
opens, promises and gives back. `actor` takes the messages for both.
"""
