"""Backends: ways to run the arithmetic of a step."""
