"""A run: its config, folder and record, and what it does."""
