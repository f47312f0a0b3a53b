"""The optimizers: state, closures, checkpoints; the equations are in rules/."""
