"""A chain of tfopt's stages with TFMOT's in their places."""

import dataclasses
from collections.abc import Sequence

from tfopt.cluster.stage import Cluster as NativeCluster
from tfopt.config import require
from tfopt.prune.stage import Prune as NativePrune
from tfopt.quantize.stage import QuantizeAware as NativeQuantizeAware
from tfopt.stage import Stage
from tfopt.tflite.stage import ExportTFLite as NativeExport
from tfopt.tfmot.export import ExportTFLite
from tfopt.tfmot.stages import Cluster, Prune, QuantizeAware

_COUNTERPARTS: dict[type[Stage], type[Stage]] = {
    NativePrune: Prune,
    NativeCluster: Cluster,
    NativeQuantizeAware: QuantizeAware,
    NativeExport: ExportTFLite,
}


def on_tfmot(stages: Sequence[Stage]) -> list[Stage]:
    """The same chain on the engine TFMOT: `Prune`, `Cluster`, `QuantizeAware` and `ExportTFLite` are TFMOT's.

    All other stages stay as they are.

    Raises:
      ValueError: there is no such stage, or one asks for what TFMOT does not have.

    >>> on_tfmot([NativePrune(0.5), NativeExport()])
    [tfmot.Prune(final_sparsity=0.5), tfmot.ExportTFLite()]
    """
    replaced = [_counterpart(stage) for stage in stages]
    require(
        any(isinstance(stage, Prune | Cluster | QuantizeAware) for stage in replaced),
        "none of the stages has a counterpart in TFMOT, which prunes, clusters and trains with quantization; there are "
        f"{', '.join(stage.name for stage in stages)}: leave the engine out",
    )
    return replaced


def _counterpart(stage: Stage) -> Stage:
    new = _COUNTERPARTS.get(type(stage))
    if new is None:
        return stage
    known = {field.name for field in dataclasses.fields(new)}
    values = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    asked = [
        f"{field.name}={values[field.name]!r}"
        for field in dataclasses.fields(stage)
        if field.name not in known and values[field.name] != field.default
    ]
    require(not asked, f"TFMOT's {stage.name} has no {', '.join(asked)}: leave it out, or use tfopt's own stage")
    return new(**{name: value for name, value in values.items() if name in known})
