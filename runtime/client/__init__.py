"""The typed, asynchronous client from outside: `everram.runtime.client.Cluster`."""
