"""The environment filled with the real thing: kernel clock, files, memfds, the machine's socket, gRPC."""
