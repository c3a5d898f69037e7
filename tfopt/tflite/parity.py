"""The parity gate: a file must be as near to its quantization-aware model as LiteRT's kernels are to each other."""

import math

from tfopt.config import require
from tfopt.tflite.layers import LayerError
from tfopt.tflite.verify import Verification

# How much further than the kernels from each other the model may be from the file.
NOISE_FACTOR = 1.2
# Mean error in steps that is allowed besides, for what both kernels round alike and the model does not (averages,
# look-up tables): half a step is the most that one rounding makes.
ROUNDING = 0.5
# The same for 16 bits, of which there is one kind of kernels only, so that the noise tells nothing. Their multipliers
# have 16 bits, tables of functions 513 entries, weights of bilinear resizing 10 bits: sound files were 0.2 to 0.5 steps
# off for a DS-CNN with softmax, 1.3 for softsign, 7.5 for an untrained MobileNetV2, 11 for a resizing; a ReLU left out
# made 520. It is an eighth of a step of 8 bits.
ROUNDING_OF_16_BITS = 32.0
# By how many standard errors decisions must differ more often than the noise. Over the 1,000 examples of a
# verification, chance alone exceeds 3 less than once in 700 times.
STANDARD_ERRORS = 3.0
# What a sound layer adds stays below: 0.05 steps in convolutions, 0.4 in averages, 0.9 in a layer normalization of
# nine operators.
LAYER_STEPS = 1.0


def require_parity(verification: Verification) -> None:
    """Raises unless the file computes what its quantization-aware model computes, but for the kernels' own noise.

    Two figures of the examples in `verification.noise` are held against the same figures of XNNPACK and the built-in
    kernels: the mean error of the outputs may be 1.2 times theirs and half a step, or 32 of the much smaller steps of
    16 bits; decisions may differ 1.2 times as often and three standard errors, so that a handful of examples proves
    nothing by itself.

    Not for files quantized after training: their models compute in float, on no grid.

    Args:
      verification: of a file whose model ends in fake quantization.

    Raises:
      RuntimeError: the file is beyond that; it names the first layer that diverges.
      ValueError: the outputs are computed in float and decide nothing, so that there is nothing to count.
    """
    noise = verification.noise
    require(
        noise.model_mean_lsb is not None or noise.model_argmax_agreement is not None,
        "the file's outputs are computed in float and its task has no decisions, so there are neither steps nor "
        "decisions to compare: quantize the last layer too, or compare max_abs_error with noise.max_abs_error yourself",
    )
    faults = [fault for fault in (_outputs_off(verification), _decisions_off(verification)) if fault]
    if faults:
        raise RuntimeError(
            f"the file does not compute what its quantization-aware model computes: over {noise.examples:,} examples "
            f"{'; and '.join(faults)}. {_culprit(verification.layers)}. Export the file again if the model has changed "
            "since; otherwise replace that layer"
        )


def _outputs_off(verification: Verification) -> str | None:
    noise = verification.noise
    if noise.model_mean_lsb is None or noise.mean_lsb is None:
        return None
    allowed = NOISE_FACTOR * noise.mean_lsb + (ROUNDING_OF_16_BITS if verification.kind == "int16x8" else ROUNDING)
    if noise.model_mean_lsb <= allowed:
        return None
    return (
        f"its outputs are {noise.model_mean_lsb:.3g} steps off in the mean, where LiteRT's own kernels differ by "
        f"{noise.mean_lsb:.3g} and {allowed:.3g} are allowed"
    )


def _decisions_off(verification: Verification) -> str | None:
    noise = verification.noise
    if noise.model_argmax_agreement is None or noise.argmax_agreement is None:
        return None
    ours, theirs = 1 - noise.model_argmax_agreement, 1 - noise.argmax_agreement
    # Of an example with many decisions (pixels), each depends on the others: examples are what counts.
    error = math.sqrt((ours + theirs) / noise.examples)
    if ours <= NOISE_FACTOR * theirs + STANDARD_ERRORS * error:
        return None
    return (
        f"it decides as the model does on {noise.model_argmax_agreement:.2%}, where LiteRT's own kernels agree on "
        f"{noise.argmax_agreement:.2%}"
    )


def _culprit(layers: list[LayerError]) -> str:
    measured = [(layer.lsb, layer) for layer in layers if layer.lsb is not None]
    if not measured:
        return "None of its layers was found in the file"
    divergent = [(lsb, layer) for lsb, layer in measured if lsb > LAYER_STEPS]
    lsb, layer = divergent[0] if divergent else max(measured, key=lambda pair: pair[0])
    fused = f" (in one operator with {', '.join(map(repr, layer.fused))})" if layer.fused else ""
    told = "The first layer that diverges is" if divergent else "No layer alone diverges; furthest off is"
    return f"{told} {layer.name!r}{fused}: {lsb:.3g} steps from what the model makes of the same input"
