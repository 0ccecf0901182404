"""Divides a host's memory among its guests: estimates who needs what, and takes back what is needed least.

Read `estimates` (what a sample of a guest's pages says), `pressure` (how short of memory the host is), `targets` (how
much is taken from whom, and by which technique) and `admission`; all of them are plain decisions. `guest_memory` is one
guest's memory as its host sees it, `swap_file` and `swapper` are paging out and in, `actor` is the thin part around.
"""
