"""The stage `Benchmark`."""

import dataclasses
import pathlib
import tempfile
from typing import Any

from tfopt.config import require
from tfopt.measure.file import Measurement
from tfopt.measure.latency import measure_latencies
from tfopt.progress import current_bar
from tfopt.stage import Outcome, Stage, Work
from tfopt.tflite.export import export_tflite
from tfopt.workdir import load_saved


@dataclasses.dataclass(frozen=True, repr=False)
class Benchmark(Stage):
    """Measures size and latency of every model along the chain, as a float32 file, and of the exported file.

    The files take turns on LiteRT's interpreter, each in a process of its own, so that their ratios are fair.

    Args:
      threads: that the interpreter uses, at least 1.
      runs: timed runs of each file, at least 1.
      warmup: runs before them that are not counted.
    """

    threads: int = 1
    runs: int = 50
    warmup: int = 10

    def __post_init__(self) -> None:
        require(self.threads >= 1, f"threads must be at least 1, received {self.threads}")
        require(self.runs >= 1, f"runs must be at least 1, received {self.runs}")
        require(self.warmup >= 0, f"warmup must be at least 0, received {self.warmup}")

    def validate(self, work: Work) -> Work:
        """Checks that there is a trained model."""
        require(
            work.trained and work.model is not None,
            f"{self.name} needs a trained model: put it after Train, or pass Work(model=...)",
        )
        return work

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Measures."""
        with tempfile.TemporaryDirectory() as scratch:
            variants = _models(work)
            files: list[tuple[dict[str, Any], pathlib.Path]] = []
            exported = work.report.artefacts.get("tflite")
            bar = current_bar(len(variants) + 1)
            for index, (label, metrics, path) in enumerate(variants):
                model = load_saved(path)
                # What another engine has trained is a graph of its own rounding, and no float model.
                if any(hasattr(layer, "engine") for layer in model._flatten_layers()):
                    continue
                target = pathlib.Path(scratch, f"{index}.tflite")
                measured = export_tflite(model, target)
                row = {"variant": f"{label} (float32)", "accuracy": metrics.get("accuracy")}
                files.append((row | _size(measured), target))
                bar.update(index + 1)
            if exported:
                row = {"variant": f"{exported['quantization']} file", "accuracy": exported["accuracy"]}
                row |= {"bytes": exported["bytes"], "gzip_bytes": exported["gzip_bytes"]}
                row |= {"zstd_bytes": exported["zstd_bytes"]}
                row |= {"sparsity": exported["total_sparsity"]}
                files.append((row, pathlib.Path(exported["path"])))
            latencies = measure_latencies(
                [path for _, path in files], threads=self.threads, runs=self.runs, warmup=self.warmup
            )
            bar.update(len(variants) + 1)
        rows = [
            row | {"median_ms": latency.median_ms, "p90_ms": latency.p90_ms}
            for (row, _), latency in zip(files, latencies, strict=True)
        ]
        artefacts = dict(work.report.artefacts)
        if exported:
            artefacts["tflite"] = exported | {"latency": latencies[-1].to_dict()}
        report = dataclasses.replace(work.report, chain=tuple(rows), artefacts=artefacts)
        last = latencies[-1]
        note = f"{self.runs} runs of each, in turns, on {last.cpu}, {last.threads} thread, {last.runtime}"
        return Outcome(work.replace(report=report), notes=[note])


def _models(work: Work) -> list[tuple[str, dict[str, Any], pathlib.Path]]:
    """(label, metrics, model file) of each trained model along the chain."""
    found, entries = [], work.report.stages
    for index, (folder, path) in enumerate(work.snapshots):
        number, _, label = folder.partition("-")
        if int(number):
            metrics = entries[int(number) - 1].metrics.get("after")
        else:
            # What was handed in has no stage of its own: what the first stage to change it found.
            later = work.snapshots[index + 1 :]
            changer = int(later[0][0].partition("-")[0]) if later else len(entries)
            metrics = entries[changer - 1].metrics.get("before") if entries else {}
        # A model that was never trained has no metrics, and nothing to compare.
        if metrics:
            found.append((label, metrics, path))
    return found


def _size(measured: Measurement) -> dict[str, Any]:
    return {
        "bytes": measured.bytes,
        "gzip_bytes": measured.gzip_bytes,
        "zstd_bytes": measured.zstd_bytes,
        "sparsity": measured.total_sparsity,
    }
