"""Memory that outlives a process: the contract it is touched through, memfds, mappings, and the page service.

`contract` is what everram's structures program against; `mapped` is that contract on a real mapping; `memfd` makes and
seals memory objects; `userfaultfd` and `page_service` serve the faults of guests; `probe` says what this computer can do.
"""
