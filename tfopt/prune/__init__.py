"""Pruning: weights set to zero for good."""
