"""Tabular data: what prepares columns of numbers, learned from the training split alone, and a model for them."""

from tfopt.tabular.bundled import from_sklearn
from tfopt.tabular.clip import Clip
from tfopt.tabular.impute import Impute
from tfopt.tabular.models import mlp
from tfopt.tabular.pca import Pca
from tfopt.tabular.scale import Scale

__all__ = ["Clip", "Impute", "Pca", "Scale", "from_sklearn", "mlp"]
