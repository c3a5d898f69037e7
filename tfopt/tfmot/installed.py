"""Whether what TFMOT needs is installed."""

import importlib.util

INSTALL = "pip install 'tensorflow-model-optimization>=0.8.1' 'tf-keras>=2.21,<2.22'"


def require_tfmot() -> None:
    """Raises a ModuleNotFoundError that says what to install, where TFMOT or tf_keras is missing; imports neither.

    >>> require_tfmot()
    """
    for package in ("tf_keras", "tensorflow_model_optimization"):
        try:
            found = importlib.util.find_spec(package) is not None
        except ImportError:
            found = False
        if not found:
            raise ModuleNotFoundError(f"tfopt.tfmot needs {package}, which is not installed: {INSTALL}", name=package)
