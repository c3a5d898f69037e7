"""Distillation: a student learns from a teacher."""

from tfopt.distill.distiller import Distiller
from tfopt.distill.features import Attention, Hint, Relational
from tfopt.distill.teaching import Teaching

__all__ = ["Attention", "Distiller", "Hint", "Relational", "Teaching"]
