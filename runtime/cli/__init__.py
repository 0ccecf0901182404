"""The `everram` command; each module of the entry-point group `everram.commands` adds its own."""
