"""What outlives a process and is read by both sides, described field by field in docs/formats.md."""
