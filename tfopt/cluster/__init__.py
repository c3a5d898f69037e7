"""Clustering: kernels with few different values."""
