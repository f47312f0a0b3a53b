"""Modules whose weights are stored in another way."""
