"""The tests, laid out as tfopt is."""
