"""The stage `QuantizeAware`."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from tfopt.cluster.keep import moving_clusters
from tfopt.config import require, require_fraction
from tfopt.distill.accuracy import teacher_notes
from tfopt.invariants import Invariant
from tfopt.quantize.aware import rewrite_model
from tfopt.quantize.bits import require_bits
from tfopt.quantize.calibrate import calibrate
from tfopt.quantize.callback import FreezeRanges
from tfopt.quantize.frozen import quantized_layers
from tfopt.quantize.island import float_islands
from tfopt.stage import Outcome, Stage, Work
from tfopt.train.fit import Fit
from tfopt.train.layer_rates import layer_factors
from tfopt.train.loop import train_in
from tfopt.train.rates import Cosine
from tfopt.train.stage import validate_training
from tfopt.train.task import task_of


@dataclasses.dataclass(frozen=True, repr=False)
class QuantizeAware(Stage):
    """Trains on with the rounding of the integer file, from calibrated ranges, and keeps every promise.

    What earlier stages promised of the weights is promised of the copies that are trained here, and so of the integers
    in the file: zeros stay zeros, clusters stay clusters, though weights may change to another one until the
    ranges are fixed.

    Args:
      epochs: passes over the training split, at least 1.
      weight_bits: 2 to 8, see `quantize_aware`.
      activation_bits: 8, or 16 (extra `int16`).
      layers: which weights get how many bits; None: all get `weight_bits`. See `quantize_aware`.
      on_unsupported: "raise", or "float" to leave layers without integer rules in float.
      freeze: the last share of the epochs, in which ranges and BatchNormalization statistics stay fixed, in [0, 1];
        rounded up to whole epochs, but never the first one.
      fit: how to train; in float32, whatever its precision.

    Raises:
      ValueError: for values out of range.

    >>> QuantizeAware(epochs=1, weight_bits=4)
    QuantizeAware(epochs=1, weight_bits=4)
    """

    epochs: int = 2
    weight_bits: int = 8
    activation_bits: int = 8
    layers: Any = None
    on_unsupported: Literal["raise", "float"] = "raise"
    freeze: float = 0.25
    fit: Fit = Fit(Cosine(5e-4))
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_bits("weight_bits", self.weight_bits)
        require(self.activation_bits in (8, 16), f"activation_bits must be 8 or 16, received {self.activation_bits!r}")
        require_fraction("freeze", self.freeze, one=True)
        require(
            self.on_unsupported in ("raise", "float"),
            f'on_unsupported must be "raise" or "float", received {self.on_unsupported!r}',
        )

    def validate(self, work: Work) -> Work:
        """Checks that every layer has a rule, by rewriting the model."""
        # Rates by layer are those of the layers that train, whose names are not all those of the float model.
        validate_training(work, self.epochs, dataclasses.replace(self.fit, layer_rates=None))
        ready = self._rewrite(work)
        layer_factors(ready.need_model(), self.fit.layer_rates or {})
        if self.fit.distill is not None:
            # Layers that it names may have gone into others.
            self.fit.distill.distiller(ready.need_model(), work.need_data(), work.need_model())
        return ready

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Rewrites, calibrates, trains."""
        data, policies = work.need_data(), {layer.compute_dtype for layer in work.need_model()._flatten_layers()}
        ready = self._rewrite(work)
        aware = ready.need_model()
        # What the float model is trained for: rounded probabilities no longer add up to 1.
        task_of(work.need_model(), data).compile(aware, jit_compile=False)
        calibrate(aware, data)
        # Whole epochs: so the same step begins it whatever steps_per_execution is.
        fixed = min(math.ceil(self.freeze * self.epochs), self.epochs - 1)
        first_fixed = (self.epochs - fixed) * data.steps_per_epoch
        callbacks: list[Any] = [FreezeRanges(first_fixed)] if fixed else []
        keep: Sequence[Invariant] = ready.invariants
        # Replicas that train by themselves would move weights between clusters each in its own way.
        if self.fit.synchronize_every == 1:
            clusters, keep = moving_clusters(keep, aware, first_fixed)
            callbacks += clusters
        aware, history = train_in(
            self,
            work,
            self.epochs,
            dataclasses.replace(self.fit, precision="float32"),
            model=aware,
            keep=keep,
            callbacks=callbacks,
        )
        islands = float_islands(aware)
        skipped = [{"layer": name, "reason": reason} for name, reason in islands.items()]
        changed = [layer.name for layer in quantized_layers(aware) if layer.name not in islands]
        notes = teacher_notes(work, self.fit, aware)
        if self.fit.precision != "float32" or policies != {"float32"}:
            notes.append("trained in float32, as 16-bit floats cannot hold the rounding")
        return Outcome(ready.replace(model=aware), changed=changed, skipped=skipped, history=history, notes=notes)

    def _rewrite(self, work: Work) -> Work:
        """The work with the quantization-aware model, promises following its variables."""
        aware, renamed = rewrite_model(
            work.need_model(),
            self.weight_bits,
            self.activation_bits,
            self.layers,
            self.on_unsupported,
        )
        promises = tuple(promise.follow(renamed) for promise in work.invariants)
        return work.replace(model=aware, invariants=promises, trained=True)
