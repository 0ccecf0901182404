"""How messages travel between hosts and from clients: the link, and the gRPC front of a host."""
