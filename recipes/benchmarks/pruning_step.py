"""What pruning costs in a training step: with and without `PruningCallback`, alternating in one process.

python -m recipes.benchmarks.pruning_step --rounds=9
"""

import time

import keras
import numpy as np
import rich.console
import rich.table
from absl import app, flags

import tfopt
from tfopt.report import describe_environment

_ROUNDS = flags.DEFINE_integer("rounds", 9, "How often the two take turns.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 60, "Training steps in a turn.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 128, "Examples a step.", lower_bound=1)

SHAPE, CLASSES = (28, 28, 1), 10


def compiled() -> keras.Model:
    """A DS-CNN, compiled as `Train` does."""
    model = tfopt.models.ds_cnn(SHAPE, CLASSES)
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    return model


def main(_: list[str]) -> None:
    """Prints the median step times and the median of the ratios."""
    rng = np.random.default_rng(0)
    steps, size = _STEPS.value, _STEPS.value * _BATCH.value
    x, y = rng.random((size, *SHAPE), "float32"), rng.integers(0, CLASSES, size)
    # The masks are renewed every ten steps: ten times as often as by TFMOT's default.
    schedule = tfopt.ConstantSparsity(0.8, begin_step=0, frequency=10)
    variants: dict[str, tuple[keras.Model, list[keras.callbacks.Callback]]] = {
        "plain": (compiled(), []),
        "pruned": (compiled(), [tfopt.PruningCallback(schedule)]),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    # The first turn traces the functions and is not counted.
    for turn in range(_ROUNDS.value + 1):
        for name in list(variants) if turn % 2 else list(reversed(variants)):
            model, callbacks = variants[name]
            started = time.perf_counter()
            model.fit(x, y, batch_size=_BATCH.value, epochs=1, verbose=0, shuffle=False, callbacks=callbacks)
            times[name].append((time.perf_counter() - started) / steps)
    ratios = np.array(times["pruned"][1:]) / np.array(times["plain"][1:])
    table = rich.table.Table("variant", "median step, ms", title="DS-CNN")
    for name, values in times.items():
        table.add_row(name, f"{1e3 * np.median(values[1:]):.2f}")
    console = rich.console.Console()
    console.print(table)
    environment = describe_environment()
    console.print(f"pruned / plain: median {np.median(ratios):.3f} of {len(ratios)} turns, {environment['cpu']}")


if __name__ == "__main__":
    app.run(main)
