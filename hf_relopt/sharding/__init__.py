"""Sharded weights: where their shards lie, sums over them, and full matrices of them."""
