"""How far apart two networks are, layer by layer."""
