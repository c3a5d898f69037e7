"""The stages `Prune`, `Cluster` and `QuantizeAware` over TFMOT."""

import dataclasses
import functools
import json
import math
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, Literal, get_args

import keras
import numpy as np
import tf_keras

from tfopt.cluster.callback import clustered_variables
from tfopt.cluster.centroids import Initialization
from tfopt.cluster.stage import Cluster as NativeCluster
from tfopt.clusters import Clustered
from tfopt.config import require
from tfopt.files import remove
from tfopt.invariants import Sparsity, zero_count
from tfopt.patterns import Pattern
from tfopt.prune.stage import Prune as NativePrune
from tfopt.prune.targets import Targets, find_targets
from tfopt.quantize.frozen import is_quantized
from tfopt.schedules import ConstantSparsity, PolynomialDecay
from tfopt.stage import Outcome, Stage, Work
from tfopt.tfmot.held import hold
from tfopt.tfmot.process import run_task, train_task
from tfopt.tfmot.settings import check_fit, training_job
from tfopt.tfmot.translate import Translation, to_tf_keras, write
from tfopt.train.fit import Fit
from tfopt.train.rates import Cosine
from tfopt.train.stage import validate_training
from tfopt.train.task import task_of
from tfopt.variables import LayerSelection

# The tf_keras file in the folder of a stage.
FILE = "tf_keras.h5"
_CENTROIDS = {"kmeans++": "KMEANS_PLUS_PLUS", "linear": "LINEAR", "density": "DENSITY_BASED"}
Preserve = Literal["promises", "nothing"]


class OnTFMOT(Stage):
    """Base of the stages over TFMOT."""

    task = ""

    def __repr__(self) -> str:
        return f"tfmot.{super().__repr__()}"

    def check(self, translation: Translation, job: Mapping[str, Any]) -> None:
        """Has TFMOT wrap the model without training it, so that it refuses what it refuses before anything is trained.

        Raises:
          RuntimeError: TFMOT's own words.
        """
        settings = {**job, "epochs": 0, "seed": 0}
        _try(self.task, translation.model.to_json(), json.dumps(settings, sort_keys=True))

    def train(self, work: Work, translation: Translation, job: Mapping[str, Any], folder: pathlib.Path) -> Any:
        """Trains in the process; returns what it found and the folder of the files that crossed."""
        fit, epochs = self.fit, self.epochs  # type: ignore[attr-defined]
        files = self.partial_folder(work)
        remove(files)
        files.mkdir(parents=True)
        write(translation.model, files / "float.h5")
        job = {
            **job,
            **training_job(work, fit, epochs, files / "rates.npy"),
            "model": str(files / "float.h5"),
            "result": str(folder / FILE),
            "seed": work.seed * 1000 + work.finished,
        }
        return train_task(self.task, job, work.need_data(), epochs, files)

    def finish(self, work: Work, translation: Translation, folder: pathlib.Path) -> keras.Model:
        """The work's model with the weights that TFMOT has trained."""
        model = work.need_model()
        translation.take_weights(tf_keras.saving.load_model(folder / FILE, compile=False))
        task_of(model, work.need_data()).compile(model, jit_compile=False)
        return model


@functools.lru_cache(maxsize=64)
def _try(task: str, architecture: str, job: str) -> None:
    """Has the wrappers of a task made for a model with new weights: they do not depend on them."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.h5")
        write(tf_keras.models.model_from_json(architecture), path)
        run_task(task, {**json.loads(job), "model": str(path)})


@dataclasses.dataclass(frozen=True, repr=False)
class Prune(OnTFMOT):
    """Trains on while TFMOT's `prune_low_magnitude` sets the least weights to zero, and promises that they stay zero.

    Args:
      final_sparsity: as of `tfopt.Prune`.
      epochs: likewise.
      schedule: a `PolynomialDecay` or `ConstantSparsity`, of tfopt or TFMOT; None: as of `tfopt.Prune`.
      layers: as of `tfopt.Prune`.
      fit: how to train; without what tf_keras does not have, such as mixed precision here.
      pattern: "unstructured"; "N:M" where M divides the input channels; blocks only of dense layers.
      criterion: "magnitude". TFMOT ranks the weights of each layer by themselves: "global_magnitude" is taken for the
        same, so that a recipe runs on both engines, and the report says so.

    Raises:
      ValueError: for values out of range, and what TFMOT does not have.

    >>> Prune(final_sparsity=0.9, epochs=2)
    tfmot.Prune(final_sparsity=0.9, epochs=2)
    """

    final_sparsity: float | None = None
    epochs: int = 5
    schedule: Any = None
    layers: Targets = None
    fit: Fit = Fit()
    pattern: str = "unstructured"
    criterion: str = "magnitude"
    task = "prune"

    def __post_init__(self) -> None:
        require(
            self.criterion in ("magnitude", "global_magnitude"),
            f"TFMOT prunes by magnitude, received criterion={self.criterion!r}: leave it out, or use tfopt.Prune",
        )
        _ = self._native

    @property
    def _native(self) -> NativePrune:
        return NativePrune(self.final_sparsity, self.epochs, self.schedule, self.layers, self.fit, self.pattern)

    def validate(self, work: Work) -> Work:
        """Checks that tf_keras has the model's layers, TFMOT can wrap them, and the schedule ends in time."""
        expected = self._native.validate(work)
        check_fit(work, self.fit)
        translation = to_tf_keras(work.need_model())
        self.check(translation, self.job(work, translation))
        return expected

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Prunes."""
        translation = to_tf_keras(work.need_model())
        found = self.train(work, translation, self.job(work, translation), folder)
        model = self.finish(work, translation, folder)
        variables, finals, skipped = find_targets(model, self.layers, Pattern(self.pattern))
        targets, zeros = {}, 0
        for variable, final in zip(variables, finals, strict=True):
            size = math.prod(variable.shape)
            pattern, kernel = Pattern(self.pattern), keras.ops.convert_to_numpy(variable)
            reached, asked = pattern.structured_zeros(kernel), self._native.target if final is None else final
            wanted = (
                zero_count(asked, size) if self.pattern == "unstructured" else pattern.zero_count(kernel.shape, asked)
            )
            # TFMOT rounds the weights that stay, not those that go.
            if reached < wanted - 1:
                raise RuntimeError(
                    f"TFMOT set {reached:,} of the {size:,} weights of {variable.path!r} to zero, where {wanted:,} "
                    "were asked for: give the schedule more steps after its end"
                )
            targets[variable.path], zeros = reached / size, zeros + reached
        promise = Sparsity(targets, self.pattern)
        share = zeros / sum(math.prod(each.shape) for each in variables)
        notes = [f"TFMOT {_version(found)}: {share:.1%} of the weights of {len(variables)} kernels are zero"]
        if self.criterion != "magnitude":
            notes.append(
                f"TFMOT has no criterion={self.criterion!r}: the weights of each layer were pruned by themselves, all "
                "layers to the same sparsity"
            )
        after = work.replace(model=model, invariants=(*work.invariants, promise), trained=True)
        return Outcome(after, changed=list(targets), skipped=skipped, history=found["history"], notes=notes)

    def job(self, work: Work, translation: Translation) -> dict[str, Any]:
        """What TFMOT is told."""
        variables, finals, _ = find_targets(work.need_model(), self.layers, Pattern(self.pattern))
        schedule = self._schedule(self.epochs * work.need_data().steps_per_epoch)
        schedules: dict[str, Any] = {}
        for variable, final in zip(variables, finals, strict=True):
            name = translation.place_of(variable)[0]
            config = dict(schedule["config"])
            if final is not None:
                config["final_sparsity" if "final_sparsity" in config else "target_sparsity"] = final
            schedules[name] = {**schedule, "config": config}
        pattern, options = Pattern(self.pattern), {}
        if pattern.ratio is not None:
            kept, group = pattern.ratio
            odd = [each.path for each in variables if each.shape[-2] % group]
            require(
                not odd,
                f"TFMOT takes its groups of {group} among input channels, which {', '.join(odd)} do not fill: name the "
                f"layers to prune in layers=, or use tfopt.Prune(pattern={self.pattern!r})",
            )
            options = {"sparsity_m_by_n": (group - kept, group)}
        elif pattern.block is not None:
            options = {"block_size": pattern.block}
        return {"schedules": schedules, "pattern": options}

    def _schedule(self, steps: int) -> dict[str, Any]:
        """The schedule as TFMOT makes it: it renews masks at multiples of `frequency` only, its end among them."""
        schedule = self._native.schedule_over(steps)
        name = type(schedule).__name__
        require(
            name in (PolynomialDecay.__name__, ConstantSparsity.__name__),
            f"TFMOT has the schedules PolynomialDecay and ConstantSparsity, received {schedule!r}",
        )
        if dataclasses.is_dataclass(schedule):
            config = {each.name: getattr(schedule, each.name) for each in dataclasses.fields(schedule)}
        else:
            config = schedule.get_config()["config"]
        window, frequency = config["end_step"] - config["begin_step"], config["frequency"]
        if self.schedule is None:
            config["end_step"] = config["begin_step"] + window // frequency * frequency
        elif name == "PolynomialDecay":
            require(
                window % frequency == 0,
                f"TFMOT renews masks every {frequency} steps from begin_step={config['begin_step']} on, and so never "
                f"at end_step={config['end_step']}, where the final sparsity would be reached: make the window a "
                "multiple of frequency",
            )
        return {"class_name": name, "config": config}


@dataclasses.dataclass(frozen=True, repr=False)
class Cluster(OnTFMOT):
    """Trains with TFMOT's `cluster_weights`; zeros that are promised are preserved.

    Args:
      number_of_clusters: different values in a kernel, at least 2.
      epochs: passes over the training split, at least 1.
      initialization: "kmeans++", "linear" or "density".
      per_channel: whether each output channel of a Conv2D has clusters of its own.
      layers: as of `tfopt.Cluster`.
      fit: how to train; without what tf_keras does not have.

    Raises:
      ValueError: for values out of range.

    >>> Cluster(number_of_clusters=32, epochs=1)
    tfmot.Cluster(number_of_clusters=32, epochs=1)
    """

    number_of_clusters: int = 16
    epochs: int = 2
    initialization: Initialization = "kmeans++"
    per_channel: bool = False
    layers: LayerSelection = None
    fit: Fit = Fit(Cosine(5e-4))
    task = "cluster"

    def __post_init__(self) -> None:
        _ = self._native

    @property
    def _native(self) -> NativeCluster:
        values = (self.number_of_clusters, self.epochs, self.initialization, self.per_channel, self.layers)
        return NativeCluster(*values, fit=self.fit)

    def validate(self, work: Work) -> Work:
        """Checks that tf_keras has the model's layers, and that TFMOT can wrap them."""
        expected = self._native.validate(work)
        check_fit(work, self.fit)
        translation = to_tf_keras(work.need_model())
        self.check(translation, self.job(work, translation))
        return expected

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Clusters."""
        translation = to_tf_keras(work.need_model())
        found = self.train(work, translation, self.job(work, translation), folder)
        model = self.finish(work, translation, folder)
        variables, skipped = self._variables(model)
        promise = Clustered({each.path: len(np.unique(keras.ops.convert_to_numpy(each))) for each in variables})
        after = work.replace(model=model, invariants=(*work.invariants, promise), trained=True)
        most = max(promise.targets.values())
        notes = [f"TFMOT {_version(found)}: {len(promise.targets)} kernels have {most} different values at most"]
        if most > self.number_of_clusters and not self.per_channel:
            notes.append(f"that is more than the {self.number_of_clusters} that were asked for")
        return Outcome(after, changed=list(promise.targets), skipped=skipped, history=found["history"], notes=notes)

    def _variables(self, model: Any) -> Any:
        return clustered_variables(model, self.layers, self.number_of_clusters, self.per_channel)

    def job(self, work: Work, translation: Translation) -> dict[str, Any]:
        """What TFMOT is told."""
        variables, _ = self._variables(work.need_model())
        return {
            "layers": [translation.place_of(each)[0] for each in variables],
            "number_of_clusters": self.number_of_clusters,
            "initialization": _CENTROIDS[self.initialization],
            "per_channel": self.per_channel,
            "preserve_sparsity": any(isinstance(each, Sparsity) for each in work.invariants),
        }


@dataclasses.dataclass(frozen=True, repr=False)
class QuantizeAware(OnTFMOT):
    """Trains with TFMOT's fake quantization of 8 bits: plain, PQAT, CQAT or PCQAT, as earlier stages promised.

    The model after it is a Keras 3 model that computes what TFMOT's does and cannot be trained on; the tf_keras model
    itself is `tf_keras.h5` in the stage's folder.

    Args:
      epochs: passes over the training split, at least 1.
      preserve: "promises": zeros that were promised are kept by TFMOT's scheme for PQAT, clusters by that for CQAT,
        both by that for PCQAT. "nothing": plain quantization-aware training.
      fit: how to train; without what tf_keras does not have.

    Raises:
      ValueError: for values out of range.

    >>> QuantizeAware(epochs=1)
    tfmot.QuantizeAware(epochs=1)
    """

    epochs: int = 2
    preserve: Preserve = "promises"
    fit: Fit = Fit(Cosine(5e-4))
    task = "quantize"

    def __post_init__(self) -> None:
        require(
            self.preserve in get_args(Preserve),
            f"preserve must be {' or '.join(map(repr, get_args(Preserve)))}, received {self.preserve!r}",
        )

    def validate(self, work: Work) -> Work:
        """Checks that tf_keras has the model's layers, and that TFMOT can quantize them."""
        validate_training(work, self.epochs, self.fit)
        check_fit(work, self.fit)
        require(not is_quantized(work.need_model()), "the model is quantization-aware already, by tfopt's own stage")
        translation = to_tf_keras(work.need_model())
        self.check(translation, self.job(work, translation))
        return work.replace(trained=True)

    def apply(self, work: Work, folder: pathlib.Path) -> Outcome:
        """Trains."""
        before = work.need_model()
        translation = to_tf_keras(before)
        kernels = {
            variable.path: translation.place_of(variable)
            for layer, _ in translation.layers
            for variable in layer.weights
            if len(variable.shape) >= 2
        }
        files, scheme = self.partial_folder(work), self._scheme(work)
        arrays = files / "kernels.npz"
        job = {
            **self.job(work, translation),
            "kernels": kernels,
            "kernels_file": str(arrays),
            "graph": str(files / "graph.pb"),
            "weights": str(files / "weights.npz"),
        }
        found = self.train(work, translation, job, folder)
        model, renamed = hold(before, found, scheme, files, dict(np.load(arrays)))
        task_of(before, work.need_data()).compile(model, jit_compile=False)
        kept = tuple(each.follow(renamed) for each in work.invariants) if self.preserve == "promises" else ()
        named = {"nothing": "quantize_model", "zeros": "PQAT", "clusters": "CQAT", "both": "PCQAT"}[scheme]
        notes = [f"TFMOT {_version(found)}, {named}"]
        if self.preserve == "nothing" and work.invariants:
            notes.append("what earlier stages promised was given up, as preserve='nothing' asks for")
        after = work.replace(model=model, invariants=kept, trained=True)
        changed = [layer.name for layer, _ in translation.layers]
        return Outcome(after, changed=changed, history=found["history"], notes=notes)

    def job(self, work: Work, translation: Translation) -> dict[str, Any]:
        """What TFMOT is told."""
        return {"preserve": self._scheme(work)}

    def _scheme(self, work: Work) -> str:
        if self.preserve == "nothing":
            return "nothing"
        zeros = any(isinstance(each, Sparsity) for each in work.invariants)
        clusters = any(isinstance(each, Clustered) for each in work.invariants)
        return {(False, False): "nothing", (True, False): "zeros", (False, True): "clusters"}.get(
            (zeros, clusters), "both"
        )


def _version(found: Mapping[str, Any]) -> str:
    versions = found["versions"]
    return f"{versions['tensorflow_model_optimization']} on tf_keras {versions['tf_keras']}"
