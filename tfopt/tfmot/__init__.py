"""The engine TFMOT: its pruning, clustering and quantization-aware training as stages, in processes of their own.

TFMOT is never imported into this process, so that `tf.keras` and the environment stay as they are.
"""

from tfopt.tfmot.installed import require_tfmot

# Before the modules that import tf_keras.
require_tfmot()

# ruff: noqa: E402
from tfopt.tfmot.engine import on_tfmot
from tfopt.tfmot.export import ExportTFLite
from tfopt.tfmot.held import Held
from tfopt.tfmot.stages import Cluster, Prune, QuantizeAware
from tfopt.tfmot.translate import to_tf_keras

__all__ = ["Cluster", "ExportTFLite", "Held", "Prune", "QuantizeAware", "on_tfmot", "to_tf_keras"]
