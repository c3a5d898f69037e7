"""What pruning and clustering cost in a training step, tfopt's beside TFMOT's, alternating in one process.

python -m recipes.benchmarks.pruning_step --rounds=9

Each is compared with the plain model of its own Keras: tfopt with Keras 3, TFMOT with tf_keras.
"""

import os

# TFMOT takes Keras 2 from here; Keras 3 itself is not concerned.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import functools
from typing import Any

import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf
import tf_keras
from absl import app

import tfopt
from recipes.benchmarks.rounds import ROUNDS
from recipes.benchmarks.step_models import BATCHES, CLASSES, MODELS, SHAPES, STEPS
from recipes.benchmarks.turns import time_in_turns
from tfopt.report import describe_environment

# Masks are renewed every ten steps: ten times as often as by TFMOT's default.
_FREQUENCY = 10
_MODEL = "ds_cnn"


def tfmot_pruned() -> tuple[Any, list[Any]]:
    """TFMOT's pruning model, and the callback that it needs."""
    from tensorflow_model_optimization.sparsity import keras as sparsity

    schedule = sparsity.ConstantSparsity(0.8, begin_step=0, frequency=_FREQUENCY)
    return sparsity.prune_low_magnitude(MODELS[_MODEL](tf_keras), schedule), [sparsity.UpdatePruningStep()]


def pruned(**options: Any) -> tuple[Any, list[Any]]:
    """A Keras 3 model with `PruningCallback`."""
    sparsity = 0.5 if options.get("pattern") == "2:4" else 0.8
    watches = options.get("criterion") == "taylor"
    schedule = tfopt.ConstantSparsity(sparsity, begin_step=int(watches), frequency=_FREQUENCY)
    return MODELS[_MODEL](keras), [tfopt.PruningCallback(schedule, **options)]


VARIANTS = {
    "Keras 3": lambda: (MODELS[_MODEL](keras), []),
    "tfopt, magnitude": pruned,
    "tfopt, 2:4": lambda: pruned(pattern="2:4"),
    "tfopt, 1x4": lambda: pruned(pattern="1x4"),
    "tfopt, global": lambda: pruned(criterion="global_magnitude"),
    "tfopt, lamp": lambda: pruned(criterion="lamp"),
    "tfopt, taylor": lambda: pruned(criterion="taylor"),
    "tfopt, 16 clusters": lambda: (MODELS[_MODEL](keras), [tfopt.ClusteringCallback(16)]),
    "tf_keras": lambda: (MODELS[_MODEL](tf_keras), []),
    "TFMOT, magnitude": tfmot_pruned,
}


def main(_: list[str]) -> None:
    """Prints the median step times and the medians of the ratios."""
    rng, steps, batch = np.random.default_rng(0), STEPS.value, BATCHES[_MODEL]
    x, y = rng.random((batch * 4, *SHAPES[_MODEL]), "float32"), rng.integers(0, CLASSES, batch * 4)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch).repeat(steps // 4 + 1).take(steps)
    models = {}
    for name, make in VARIANTS.items():
        model, callbacks = make()
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        models[name] = model, callbacks
    calls = {
        name: functools.partial(model.fit, data, epochs=1, verbose=0, callbacks=callbacks)
        for name, (model, callbacks) in models.items()
    }
    taken = time_in_turns(calls, ROUNDS.value)
    times = {name: [seconds / steps for seconds in values] for name, values in taken.items()}
    table = rich.table.Table("variant", "step, ms", "time / plain", title=f"{_MODEL}, batch {batch}")
    for name, values in times.items():
        plain = "tf_keras" if name.startswith("TFMOT") else "Keras 3"
        ratio = "" if name in ("Keras 3", "tf_keras") else f"{np.median(np.array(values) / np.array(times[plain])):.3f}"
        table.add_row(name, f"{1e3 * np.median(values):.2f}", ratio)
    console = rich.console.Console()
    console.print(table)
    console.print(
        f"Medians of {ROUNDS.value} turns of {steps} steps, masks renewed every {_FREQUENCY}, "
        f"{describe_environment()['cpu']}"
    )


if __name__ == "__main__":
    app.run(main)
