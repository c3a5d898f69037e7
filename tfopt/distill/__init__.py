"""Distillation: a student learns from a teacher."""

from tfopt.distill.distiller import Distiller
from tfopt.distill.features import Attention, Hint, Relational
from tfopt.distill.records import join, read_record, record
from tfopt.distill.teachers import as_teacher
from tfopt.distill.teaching import Teaching

__all__ = ["Attention", "Distiller", "Hint", "Relational", "Teaching", "as_teacher", "join", "read_record", "record"]
