"""Measurements side by side: ratios of alternating runs in one process."""
