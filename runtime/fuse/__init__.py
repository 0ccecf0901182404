"""A file system in the standard library: FUSE spoken with the kernel directly, without libfuse.

Read `filesystem` first: what somebody has to implement to be mounted. `protocol` is the wire format of /dev/fuse,
`operations` turns requests into calls of the file system, `book` remembers across servers what the kernel knows,
`mount` makes and removes mounts, `server` serves one on an asyncio loop. `in_memory` is a small complete file system.

One read, from a program to the file and back: read(2) -> the kernel writes READ into the device -> `Session` parses
it -> `Operations` finds the open file -> `FileSystem.read` -> writev to the device. With passthrough it is shorter:
read(2) -> the kernel -> the memory.
"""
