"""tfopt and TFMOT on the same task: what `versus_tfmot` and `recipes.compare` share.

A row is one technique on one engine: the chain of its stages, from the same float model, with the same data in the same
order, learning rates by step, epochs and seed; then a .tflite file, and what is found in it. A beginning that two
techniques share (the pruned model of PQAT and PCQAT) is trained once. Finished rows are lines in `rows.jsonl`; an
interrupted comparison goes on after the last of them, and a training after the last finished stage.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import tfopt
from tfopt.files import atomic_path, write_text
from tfopt.measure.file import measure_tflite
from tfopt.measure.latency import measure_latencies
from tfopt.stage import Stage, Work
from tfopt.tflite.examples import read_examples
from tfopt.tflite.model import input_specs
from tfopt.tflite.quiet import quiet
from tfopt.tflite.verify import compare, run_both

TECHNIQUES: dict[str, tuple[str, ...]] = {
    "pruning": ("Prune",),
    "clustering": ("Cluster",),
    "QAT": ("QuantizeAware",),
    "PQAT": ("Prune", "QuantizeAware"),
    "CQAT": ("Cluster", "QuantizeAware"),
    "PCQAT": ("Prune", "Cluster", "QuantizeAware"),
}
ENGINES = ("tfopt", "TFMOT")
# Files of the float model: as it is, and after training by the converter and by LiteRT's quantizer.
PEERS = ("float32", "converter, int8", "ai-edge-quantizer, int8")
# What a technique, an engine or a converter may raise; all of it becomes a row.
FAILURES = (ValueError, TypeError, RuntimeError, ArithmeticError, ImportError, KeyError, AttributeError, OSError)
_LONGEST_ERROR = 160
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every engine gets.

    Args:
      sparsity: fraction of zeros in each kernel, in [0, 1).
      clusters: different values in a kernel, at least 2.
      epochs: of each stage: pruning, clustering, quantization-aware training.
      learning_rate: highest one of pruning; it falls along a cosine.
      fine_rate: likewise, of clustering and quantization-aware training.
    """

    sparsity: float = 0.8
    clusters: int = 16
    epochs: int = 2
    learning_rate: float = 1e-3
    fine_rate: float = 5e-4

    def stages(self) -> dict[str, Stage]:
        """The stages by name, for tfopt."""
        fine = tfopt.Fit(tfopt.Cosine(self.fine_rate))
        return {
            "Prune": tfopt.Prune(self.sparsity, self.epochs, fit=tfopt.Fit(tfopt.Cosine(self.learning_rate))),
            "Cluster": tfopt.Cluster(self.clusters, self.epochs, fit=fine),
            "QuantizeAware": tfopt.QuantizeAware(self.epochs, fit=fine),
        }


@dataclasses.dataclass(frozen=True)
class Contest:
    """A float model, its data, and where results are kept.

    Args:
      work: the trained float model with its data and the seed.
      folder: for this model and seed.
      name: of the model, for the rows.
      budget: what every engine gets.
    """

    work: Work
    folder: pathlib.Path
    name: str
    budget: Budget

    def row(self, technique: str, engine: str) -> Row:
        """Has a technique done by an engine, or a file made after training by a peer."""
        row: Row = {"model": self.name, "seed": self.work.seed, "technique": technique, "engine": engine}
        started = time.perf_counter()
        try:
            work, path = self._peer(engine) if engine in PEERS else self._chain(technique, engine)
            row |= {"ran": True, "error": None, **self._figures(work, path)}
        except FAILURES as error:
            row |= {"ran": False, "error": shortened(error)}
        return row | {"stages": self._stages(technique, engine), "seconds": time.perf_counter() - started}

    def _stages(self, technique: str, engine: str) -> list[str]:
        if engine in PEERS:
            return []
        every = self.budget.stages()
        return [repr(stage) for name in TECHNIQUES[technique] for stage in stages_on(engine, [every[name]])]

    def _chain(self, technique: str, engine: str) -> tuple[Work, pathlib.Path]:
        stages, work, done = self.budget.stages(), self.work, ""
        for name in TECHNIQUES[technique]:
            done += f"-{name}" if done else name
            start = Work(work.model, work.data, self.folder / engine / done, work.invariants, seed=self.work.seed)
            stage, export = stages_on(engine, [stages[name], tfopt.ExportTFLite()])
            work = tfopt.run([stage], start)
        path = self.folder / engine / f"{done}.tflite"
        export.write(work, path, "int8")
        return work, path

    def _peer(self, engine: str) -> tuple[Work, pathlib.Path]:
        path = self.folder / f"{PEERS.index(engine)}.tflite"
        if engine == PEERS[2]:
            quantize_after_training(self.work, path)
        else:
            integers = engine == PEERS[1]
            examples = self.work.data if integers else None
            tfopt.export_tflite(self.work.need_model(), path, "int8" if integers else "none", examples)
        return self.work, path

    def _figures(self, work: Work, path: pathlib.Path) -> Row:
        data = work.need_data()
        found = compare(run_both(work.need_model(), path, data, data.sizes["test"]))
        file = measure_tflite(path)
        # Depthwise kernels, which neither engine prunes or clusters, have one filter a channel.
        kernels = [each for each in file.tensors if each.shape[0] != 1] or file.tensors
        sizes = [int(np.prod(each.shape)) for each in kernels]
        return {
            "metric": found.metric,
            "accuracy": found.tflite_metric,
            "model_accuracy": found.keras_metric,
            "parity": found.argmax_agreement,
            "noise": found.noise.argmax_agreement,
            "mean_lsb": found.mean_lsb,
            "sparsity": float(np.average([each.sparsity for each in kernels], weights=sizes)),
            "unique_values": max(each.unique_values for each in kernels),
            "promises": broken(work, path),
            "float_ops": file.float_ops,
            "bytes": file.bytes,
            "gzip_bytes": file.gzip_bytes,
            "path": str(path.relative_to(self.folder)),
        }


def stages_on(engine: str, stages: Sequence[Stage]) -> Sequence[Any]:
    """A chain on an engine.

    Raises:
      ModuleNotFoundError: TFMOT is not installed.
    """
    if engine == "tfopt":
        return stages
    from tfopt.tfmot import on_tfmot

    return on_tfmot(stages)


def broken(work: Work, path: pathlib.Path) -> str:
    """What the file has lost of what earlier stages promised, shortened; "" where all is kept."""
    lost = [each for promise in work.invariants for each in promise.check_tflite(path, work.need_model())]
    return f"{len(lost)} lost: {lost[0]}"[:_LONGEST_ERROR] if lost else ""


def quantize_after_training(work: Work, path: pathlib.Path) -> None:
    """The float file, quantized to int8 by ai-edge-quantizer as it comes.

    Raises:
      ModuleNotFoundError: it is not installed.
    """
    try:
        from ai_edge_quantizer import quantizer, recipe
    except ImportError as error:
        raise ModuleNotFoundError("ai-edge-quantizer is not installed: pip install 'tfopt[int16]'") from error
    model = work.need_model()
    with atomic_path(path) as temporary:
        tfopt.export_tflite(model, temporary)
        made = quantizer.Quantizer(str(temporary), recipe.static_wi8_ai8())
        examples = read_examples(work.need_data(), input_specs(model), 300, "train", "calibration_data").inputs
        count = len(next(iter(examples.values())))
        rows = [{name: array[i : i + 1] for name, array in examples.items()} for i in range(count)]
        with quiet():
            result = made.quantize(made.calibrate({"serving_default": rows}), enable_progress_report=False)
        temporary.write_bytes(bytes(result.quantized_model))


def shortened(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_ERROR else text[: _LONGEST_ERROR - 1] + "…"


class Rows:
    """The rows of a comparison: a line of JSON for each, in the order in which they were finished."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def read(self) -> list[Row]:
        """All rows; of those that are the same thing measured twice, the last.

        Raises:
          ValueError: a line is damaged; names it.
        """
        found: dict[tuple[Any, ...], Row] = {}
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of {self.path} is damaged: remove it, and start again") from error
            found[key_of(row)] = row
        return list(found.values())

    def write(self, row: Row) -> None:
        """Adds a row, or puts it in the place of the same thing measured before."""
        others = [each for each in self.read() if key_of(each) != key_of(row)]
        write_text(self.path, "".join(json.dumps(each) + "\n" for each in [*others, row]))


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is about."""
    return row["model"], row["seed"], row["technique"], row["engine"]


def plan(techniques: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """(technique, engine) in turns: who goes first alternates."""
    for engine in PEERS:
        yield "after training", engine
    for index, technique in enumerate(techniques):
        for engine in ENGINES if (index + seed) % 2 == 0 else reversed(ENGINES):
            yield technique, engine


def run_rows(contest: Contest, techniques: Sequence[str], rows: Rows) -> None:
    """Does the rows that are not done; those that failed are tried again."""
    done = {key_of(row) for row in rows.read() if row["ran"]}
    for technique, engine in plan(techniques, contest.work.seed):
        if (contest.name, contest.work.seed, technique, engine) not in done:
            rows.write(contest.row(technique, engine))


def compete(
    contests: Iterable[Contest], techniques: Sequence[str], rows: Rows, timing: "Timing | None", only_timing: bool
) -> None:
    """Does the rows that are not done, and times what is new; with `only_timing` times all again and trains nothing.

    Raises:
      ModuleNotFoundError: TFMOT is not installed.
    """
    # Before anything is trained.
    stages_on("TFMOT", [tfopt.Prune()])
    for contest in contests:
        before = len(rows.read())
        if not only_timing:
            run_rows(contest, techniques, rows)
        if timing is not None and (only_timing or len(rows.read()) > before):
            time_rows(contest, techniques, rows, timing)


# Timing


@dataclasses.dataclass(frozen=True)
class Timing:
    """How the parts are measured that need an idle machine.

    Args:
      runs: timed runs of each file, at least 1.
      steps: training steps in a turn, at least 1.
      rounds: how often the variants take turns, at least 1.
      memory: whether to measure memory, each variant in a process of its own.
    """

    runs: int = 200
    steps: int = 20
    rounds: int = 9
    memory: bool = True


def time_rows(contest: Contest, techniques: Sequence[str], rows: Rows, timing: Timing) -> None:
    """Measures, or measures again, latency of the files, and time and memory of a step."""
    files = [row for row in rows.read() if row["ran"] and key_of(row)[:2] == (contest.name, contest.work.seed)]
    if not files:
        return
    latencies = measure_latencies([contest.folder / row["path"] for row in files], runs=timing.runs)
    timed = time_steps(contest, techniques, timing)
    for row, latency in zip(files, latencies, strict=True):
        found = timed.get(f"{row['technique']}/{row['engine']}", {})
        rows.write(row | {"median_ms": latency.median_ms, "p90_ms": latency.p90_ms} | found)


def time_steps(contest: Contest, techniques: Sequence[str], timing: Timing) -> dict[str, dict[str, float]]:
    """What a training step costs, by "technique/engine", measured in a process of its own: TFMOT is imported there.

    Raises:
      RuntimeError: the process failed; has its words.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "float.keras")
        contest.work.need_model().save(path)
        options = {
            "of": path,
            "methods": ",".join(techniques),
            "batch": contest.work.need_data().batch_size,
            "steps": timing.steps,
            "rounds": timing.rounds,
            "memory": timing.memory,
        }
        command = [sys.executable, "-m", "recipes.benchmarks.engine_steps", *(f"--{k}={v}" for k, v in options.items())]
        root = pathlib.Path(__file__).parents[2]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode:
        raise RuntimeError(f"the steps could not be timed: {done.stderr[-2000:].strip()}")
    return json.loads(done.stdout.splitlines()[-1])
