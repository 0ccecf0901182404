"""The host's place in the directory, and the lease its guests serve under."""
