"""The step: from gradients to changed weights, one pipeline for every method."""
