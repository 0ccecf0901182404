"""Memory that outlives a process: the contract it is touched through, real mappings of it, and the page service.

`contract` is what everram's structures program against; `mapped` is that contract on a real mapping and `heap` on
scratch memory. `page_service` serves the faults of guests (`reasons` decides, `userfaultfd` talks to the kernel), and
`probe` finds out what this computer can do.
"""
