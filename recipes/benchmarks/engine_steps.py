"""What a training step of each technique costs on tfopt and TFMOT, over the float model of the same Keras.

    python -m recipes.benchmarks.engine_steps --of=model.keras --methods=pruning,QAT --rounds=9

All variants take turns in one process, which `versus_tfmot` and `recipes.compare` start. The last line is JSON, by
"technique/engine": "step", and "memory" where it is measured, each variant in a process of its own (Linux only): the
peak that training adds, over that of the float model.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfopt
from recipes.benchmarks.engines import TECHNIQUES, Budget
from recipes.benchmarks.turns import added_memory, time_in_turns
from tfopt.cluster.keep import moving_clusters
from tfopt.clusters import Clustered
from tfopt.invariants import Sparsity, keeping
from tfopt.kernels import select_kernels
from tfopt.quantize.aware import rewrite_model
from tfopt.stage import Work
from tfopt.tfmot import on_tfmot, to_tf_keras
from tfopt.tfmot.child import wrapped_to_cluster, wrapped_to_prune, wrapped_to_quantize

_FLAGS = flags.FlagValues()
_OWN: dict[str, Any] = {"flag_values": _FLAGS}
_OF = flags.DEFINE_string("of", None, "A float model that tfopt.load_model reads.", **_OWN)
_METHODS = flags.DEFINE_list("methods", list(TECHNIQUES), "Which techniques.", **_OWN)
_BATCH = flags.DEFINE_integer("batch", 128, "Examples a step.", 1, **_OWN)
_STEPS = flags.DEFINE_integer("steps", 20, "Training steps in a turn.", 1, **_OWN)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "How often the variants take turns.", 1, **_OWN)
_MEMORY = flags.DEFINE_bool("memory", False, "Measure memory too.", **_OWN)
_ONE = flags.DEFINE_string("memory_in", None, "Internal: prints the memory of one variant.", **_OWN)

# Masks are renewed every ten steps.
_FREQUENCY = 10
FLOATS = {"tfopt": "float/tfopt", "TFMOT": "float/TFMOT"}


def start_of(technique: str, model: keras.Model, budget: Budget) -> list[Any]:
    """Gives a model the zeros and clusters that the technique is to preserve; returns the promises."""
    promises: list[Any] = []
    kernels = select_kernels(model)[0]
    stages = TECHNIQUES[technique][:-1] if technique in TECHNIQUES else ()
    for kernel in kernels:
        values = keras.ops.convert_to_numpy(kernel)
        if "Prune" in stages:
            values = np.where(np.abs(values) < np.quantile(np.abs(values), budget.sparsity), 0, values)
        if "Cluster" in stages:
            levels = np.linspace(values.min(), values.max(), budget.clusters - 1)
            nearest = levels[np.abs(values[..., None] - levels).argmin(-1)]
            values = np.where(values == 0, 0, nearest)
        kernel.assign(values)
    if "Prune" in stages:
        promises.append(Sparsity({each.path: float(np.mean(np.asarray(each) == 0)) for each in kernels}))
    if "Cluster" in stages:
        promises.append(Clustered({each.path: len(np.unique(each)) for each in kernels}))
    return promises


def training(variant: str, budget: Budget, stack: contextlib.ExitStack) -> Callable[[], Any]:
    """A function that trains a variant, "technique/engine", for some steps."""
    technique, engine = variant.split("/")
    model = tfopt.load_model(_OF.value)
    promises = start_of(technique, model, budget)
    batch = _BATCH.value
    rng = np.random.default_rng(0)
    shapes = [[tuple(each.shape[1:]) for each in tensors] for tensors in (model.inputs, model.outputs)]
    arrays = [tuple(rng.random((batch * 4, *shape), "float32") for shape in each) for each in shapes]
    x, y = (each if len(each) > 1 else each[0] for each in arrays)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch).repeat(_STEPS.value // 4 + 1).take(_STEPS.value)
    callbacks: list[Any] = []
    last = TECHNIQUES[technique][-1] if technique in TECHNIQUES else None
    if engine == "TFMOT":
        work = Work(model, tfopt.from_arrays((x, y), batch_size=batch), invariants=tuple(promises))
        model, callbacks = of_tfmot(work, last, budget)
    elif last == "Prune":
        callbacks = [tfopt.PruningCallback(tfopt.ConstantSparsity(budget.sparsity, 0, frequency=_FREQUENCY))]
    elif last == "Cluster":
        callbacks = [tfopt.ClusteringCallback(budget.clusters)]
    elif last == "QuantizeAware":
        model, renamed = rewrite_model(model, 8, 8, None, "raise")
        clusters, keep = moving_clusters([each.follow(renamed) for each in promises], model)
        callbacks += clusters
        stack.enter_context(keeping(model, keep))
    model.compile("adam", "mean_squared_error", jit_compile=False)
    return lambda: model.fit(data, epochs=1, verbose=0, shuffle=False, callbacks=callbacks)


def of_tfmot(work: Work, last: str | None, budget: Budget) -> tuple[Any, list[Any]]:
    """TFMOT's model of the last stage of a technique, and its callbacks; without a stage the model in tf_keras."""
    translation = to_tf_keras(work.need_model())
    if last is None:
        return translation.model, []
    stages = budget.stages() | {
        "Prune": tfopt.Prune(budget.sparsity, 1, tfopt.ConstantSparsity(budget.sparsity, 0, frequency=_FREQUENCY))
    }
    stage: Any = on_tfmot([stages[last]])[0]
    job = stage.job(work, translation)
    if last == "Prune":
        from tensorflow_model_optimization.sparsity.keras import UpdatePruningStep

        return wrapped_to_prune(translation.model, job), [UpdatePruningStep()]
    return (wrapped_to_cluster if last == "Cluster" else wrapped_to_quantize)(translation.model, job), []


def memory_of(variant: str) -> float:
    """What training a variant adds, found in a process of its own."""
    values = {"of": _OF.value, "batch": _BATCH.value, "steps": min(12, _STEPS.value), "memory_in": variant}
    command = [sys.executable, "-m", "recipes.benchmarks.engine_steps", *(f"--{k}={v}" for k, v in values.items())]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    return float(done.stdout.split()[-1])


def main(arguments: list[str]) -> int:
    """Prints the figures of all variants; those that an engine cannot make are left out."""
    _FLAGS(arguments)
    budget = Budget()
    with contextlib.ExitStack() as stack:
        if _ONE.value:
            print(added_memory(training(_ONE.value, budget, stack)))
            return 0
        variants: dict[str, Callable[[], Any]] = {}
        for technique in ("float", *_METHODS.value):
            for engine, plain in FLOATS.items():
                # Without the float model in its Keras an engine can make nothing, and there is nothing to divide by.
                if technique != "float" and plain not in variants:
                    continue
                # What cannot run is a row of the comparison, with its error; here it has no time.
                with contextlib.suppress(ValueError, RuntimeError, TypeError):
                    name = f"{technique}/{engine}"
                    variants[name] = training(name, budget, stack)
        times = time_in_turns(variants, _ROUNDS.value)
    peaks = {name: memory_of(name) for name in variants} if _MEMORY.value else {}
    found: dict[str, dict[str, float]] = {}
    for name, values in times.items():
        plain = FLOATS[name.split("/")[1]]
        found[name] = {"step": float(np.median(np.array(values) / np.array(times[plain])))}
        if peaks:
            found[name]["memory"] = peaks[name] / peaks[plain]
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
