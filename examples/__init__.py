"""Programs that a user would start from, and the demo."""
