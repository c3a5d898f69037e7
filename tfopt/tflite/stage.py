"""The stage `ExportTFLite`."""

import dataclasses
import pathlib
from typing import Any

from tfopt import invariants
from tfopt.config import require
from tfopt.data.dataset import Data, Scaled
from tfopt.measure.model_metrics import score_outputs
from tfopt.progress import current_bar
from tfopt.quantize.frozen import is_quantized
from tfopt.stage import Outcome, Stage, Work
from tfopt.tflite.export import INTEGER_IO, QUANTIZATIONS, export_tflite, trained_quantization
from tfopt.tflite.parity import require_parity
from tfopt.tflite.verify import Pair, compare, run_both


@dataclasses.dataclass(frozen=True, repr=False)
class ExportTFLite(Stage):
    """Writes the model as a .tflite file, and compares the file with the model on the test split.

    A quantization-aware model is written with the integers and ranges that it was trained with, and its file must then
    be as near to it as LiteRT's kernels are to each other.

    Args:
      quantization: "none", "float16", "dynamic", "int8" or "int16x8"; "int8" for a quantization-aware model, also
        where its activations have 16 bits: what is written then is "int16x8", and so the report calls it.
      float_io: float32 inputs and outputs for int8 and int16x8 files.
      batch_size: static batch size of the file, at least 1; None: dynamic.
      allow_flex: permit operators that need TensorFlow's Flex delegate.
      calibration_examples: training examples that show the range of each activation, at least 1.
      max_drop: how much accuracy the file may lose against the model, as a fraction; more is an error.

    Raises:
      ValueError: for values out of range.

    >>> ExportTFLite("float16")
    ExportTFLite(quantization='float16')
    """

    quantization: Any = "int8"
    float_io: bool = False
    batch_size: int | None = 1
    allow_flex: bool = False
    calibration_examples: int = 300
    max_drop: float = 0.05

    def __post_init__(self) -> None:
        require(
            self.quantization in QUANTIZATIONS,
            f"quantization must be one of {', '.join(QUANTIZATIONS)}, received {self.quantization!r}",
        )
        require(
            self.calibration_examples >= 1,
            f"calibration_examples must be at least 1, received {self.calibration_examples!r}",
        )

    def validate(self, work: Work) -> Work:
        """Checks that there is a trained model, and data to calibrate and to compare with."""
        model = work.need_model()
        require(
            work.trained,
            f"the model {model.name!r} is not trained when {self.name} comes: put Train before it",
        )
        require(
            work.data is not None,
            f"{self.name} needs data, to compare the file with the model"
            + (f" and to calibrate {self.quantization}" if self.quantization in INTEGER_IO else "")
            + ": pass Work(data=...), or put LoadTFDS before it",
        )
        return work

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Exports, checks the promises in the file, and verifies it."""
        model, data = work.need_model(), work.need_data()
        path, quantization = folder / "model.tflite", self.quantization
        if is_quantized(model) and quantization == "int8":
            quantization = trained_quantization(model)
        bar = current_bar(2)
        measured = export_tflite(
            model,
            path,
            quantization,
            data if quantization in INTEGER_IO and not is_quantized(model) else None,
            self.float_io,
            self.batch_size,
            self.allow_flex,
            self.calibration_examples,
            _metadata(data),
        )
        invariants.check_tflite(path, model, work.invariants)
        bar.update(1, "comparing with the model")
        pair = run_both(model, path, data, data.sizes["test"])
        parity = compare(pair)
        bar.update(2, "")
        if is_quantized(model):
            require_parity(parity)
        self._check_drop(parity, quantization)
        artefact = {
            **measured.to_dict(),
            "path": str(self.folder(work) / path.name),
            "quantization": quantization,
            "accuracy": parity.accuracy,
            "parity": parity.to_dict(),
            "metrics": self._metrics(pair, data.class_names, work.seed),
        }
        report = dataclasses.replace(work.report, artefacts={**work.report.artefacts, "tflite": artefact})
        notes = [
            f"{quantization} file of {measured.bytes:,} bytes ({measured.gzip_bytes:,} after gzip), "
            f"{measured.total_sparsity:.1%} of its weights zero"
        ]
        if parity.argmax_agreement is not None:
            notes.append(
                f"the file decides as the model does on {parity.argmax_agreement:.2%} of {parity.examples:,} test "
                f"examples; LiteRT's kernels agree with each other on {parity.noise.argmax_agreement:.2%}"
            )
        return Outcome(work.replace(report=report), notes=notes)

    def _metrics(self, pair: Pair, names: tuple[str, ...], seed: int) -> dict[str, Any]:
        """How good the model and the file are, each with intervals, from the outputs that were compared."""
        if pair.metric is None or pair.labels is None:
            return {}
        return {
            name: score_outputs(pair.metric, pair.labels, outputs, pair.weights, names, seed=seed).to_report()
            for name, outputs in zip(("keras", "tflite"), pair.first(), strict=True)
        }

    def _check_drop(self, parity: Any, quantization: str) -> None:
        if parity.accuracy is None:
            return
        drop = parity.keras_metric - parity.accuracy
        if drop > self.max_drop:
            culprit = parity.first_divergent_layer
            raise RuntimeError(
                f"the {quantization} file loses {drop:.3f} of accuracy against the model "
                f"({parity.accuracy:.3f} for {parity.keras_metric:.3f}), more than max_drop={self.max_drop}"
                + (f"; the first layer that differs is {culprit!r}" if culprit else "")
                + ". Calibrate with more examples, quantize less, or train with quantization in mind"
            )


def _metadata(data: Data) -> dict[str, Any]:
    """What whoever uses the file must know: the classes, and what was done to the inputs before the model saw them."""
    found: dict[str, Any] = {"class_names": list(data.class_names)} if data.class_names else {}
    preprocessing: dict[str, Any] = {}
    if isinstance(data.transform, Scaled):
        preprocessing["value_range"] = list(data.transform.value_range)
    if data.prepared:
        preprocessing["steps"] = [getattr(each, "__name__", type(each).__name__) for each in data.prepared]
    return found | ({"preprocessing": preprocessing} if preprocessing else {})
