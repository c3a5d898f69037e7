"""TFMOT's names on Keras 3 models: `import tfopt.compat as tfmot`."""

from tfopt.compat import clustering, experimental, quantization, sparsity

__all__ = ["clustering", "experimental", "quantization", "sparsity"]
