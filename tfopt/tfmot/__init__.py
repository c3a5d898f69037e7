"""The engine TFMOT: its pruning, clustering and quantization-aware training as stages, in processes of their own.

Neither TFMOT nor its Keras 2 is imported into this process by `import tfopt.tfmot`; TFMOT is never.
"""

import importlib.util

for _package in ("tf_keras", "tensorflow_model_optimization"):
    if importlib.util.find_spec(_package) is None:
        raise ModuleNotFoundError(
            f"tfopt.tfmot needs {_package}: pip install 'tensorflow-model-optimization>=0.8.1' 'tf-keras>=2.21,<2.22'",
            name=_package,
        )

from tfopt.tfmot.engine import on_tfmot
from tfopt.tfmot.export import ExportTFLite
from tfopt.tfmot.held import Held
from tfopt.tfmot.stages import Cluster, Prune, QuantizeAware
from tfopt.tfmot.translate import to_tf_keras

__all__ = ["Cluster", "ExportTFLite", "Held", "Prune", "QuantizeAware", "on_tfmot", "to_tf_keras"]
