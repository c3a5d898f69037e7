"""TFMOT's `quantization.keras`."""

from tfopt.compat.annotate import quantize_annotate_layer, quantize_annotate_model
from tfopt.compat.missing import refuse
from tfopt.compat.quantization.keras import collab_opts, default_8bit, experimental, quantizers
from tfopt.compat.quantize import quantize_apply, quantize_model, quantize_scope
from tfopt.compat.quantizers import QuantizeConfig
from tfopt.compat.schemes import QuantizeScheme

__all__ = [
    "QuantizeConfig",
    "QuantizeScheme",
    "collab_opts",
    "default_8bit",
    "experimental",
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
    "quantize_scope",
    "quantizers",
]

_RULES = "tfopt rewrites models by rules of its own (tfopt.quantize); choose bits by layer with a QuantizeConfig"

__getattr__ = refuse(
    __name__,
    {
        "QuantizeLayoutTransform": _RULES,
        "QuantizeRegistry": _RULES,
        "QuantizeWrapper": "there are no wrappers; a quantized layer is a tfopt.quantize.layer.QuantizedLayer",
        "QuantizeWrapperV2": "there are no wrappers; a quantized layer is a tfopt.quantize.layer.QuantizedLayer",
        "fix_input_output_range": "show the model data that reach the ends of the range, tfopt.calibrate(model, data), "
        "and keep what was found with the callback tfopt.FreezeRanges(0)",
        "graph_transformations": _RULES,
        "remove_input_range": "tfopt.export_tflite writes a file with int8 inputs; float_io=True makes them float",
    },
)
