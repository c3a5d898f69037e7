"""Residual blocks: which a model could do without, and the model without them."""
