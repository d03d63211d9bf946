"""Loads an exported dataset with lerobot itself, in an environment of its own: `make test-export`."""
