"""Quantization-aware training: a Keras model that computes as its integer file will."""
