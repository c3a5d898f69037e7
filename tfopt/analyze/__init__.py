"""Sensitivity: what each layer alone costs when it is made smaller."""
