"""The numbers: how a real weight becomes one that fits in few bits."""
