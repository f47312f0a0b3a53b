"""The equations, each written once, for one plain tensor (or several laid end to end)."""
