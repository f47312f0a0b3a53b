"""The plan: the role of each weight, and the rule and options that it gets."""
