"""What quantization-aware training costs: step time and memory against float, tfopt's beside TFMOT's.

    python -m recipes.benchmarks.qat_step --rounds=9

Each tool is compared with the float model of its own Keras: tfopt with Keras 3, TFMOT with tf_keras. The step times
alternate in one process; memory is the peak that training adds, each variant in a process of its own (Linux only).
"""

import os

# TFMOT takes Keras 2 from here; Keras 3 itself is not concerned.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf
import tf_keras
from absl import app, flags

import tfopt
from recipes.benchmarks.rounds import ROUNDS
from recipes.benchmarks.step_models import BATCHES, CLASSES, MODELS, SHAPES, STEPS
from recipes.benchmarks.turns import added_memory, time_in_turns
from tfopt.report import describe_environment

_MODELS = flags.DEFINE_list("networks", ["ds_cnn", "mobilenet_v2"], "Which models.")
_MEMORY = flags.DEFINE_string("memory_of", None, "Internal: prints the memory of one variant, 'model/variant'.")


def tfmot_aware(model: Any) -> Any:
    """TFMOT's quantization-aware model."""
    from tensorflow_model_optimization.quantization.keras import quantize_model

    return quantize_model(model)


VARIANTS: dict[str, Callable[[str], Any]] = {
    "Keras 3 float": lambda name: MODELS[name](keras),
    "tfopt": lambda name: tfopt.quantize_aware(MODELS[name](keras)),
    "tf_keras float": lambda name: MODELS[name](tf_keras),
    "TFMOT": lambda name: tfmot_aware(MODELS[name](tf_keras)),
}
PAIRS = (("tfopt", "Keras 3 float"), ("TFMOT", "tf_keras float"))


def compiled(name: str, variant: str) -> Any:
    """A variant, compiled as the stages do."""
    model = VARIANTS[variant](name)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


def batches(name: str, steps: int) -> tf.data.Dataset:
    """Noise: what it is does not matter to the time."""
    rng, batch = np.random.default_rng(0), BATCHES[name]
    x, y = rng.random((batch * 4, *SHAPES[name]), "float32"), rng.integers(0, CLASSES, batch * 4)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch).repeat(steps // 4 + 1).take(steps)


def time_steps(name: str) -> dict[str, list[float]]:
    """Seconds a step of each variant, by turn."""
    data, steps = batches(name, STEPS.value), STEPS.value
    models = {variant: compiled(name, variant) for variant in VARIANTS}
    calls = {variant: functools.partial(each.fit, data, epochs=1, verbose=0) for variant, each in models.items()}
    taken = time_in_turns(calls, ROUNDS.value)
    return {variant: [seconds / steps for seconds in values] for variant, values in taken.items()}


def print_memory(name: str, variant: str) -> None:
    """Prints the bytes that training takes at its peak, beyond what the built model takes."""
    model, data = compiled(name, variant), batches(name, 12)
    print(added_memory(lambda: model.fit(data, epochs=1, verbose=0)))


def memory(name: str, variant: str) -> float:
    """What `print_memory` finds in a new process; the median of three."""
    command = [sys.executable, "-m", "recipes.benchmarks.qat_step", f"--memory_of={name}/{variant}"]
    values = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) for _ in range(3)
    ]
    return float(np.median(values))


def main(_: list[str]) -> None:
    """Prints a table for each model."""
    if _MEMORY.value:
        print_memory(*_MEMORY.value.split("/"))
        return
    console = rich.console.Console()
    for name in _MODELS.value:
        times, peaks = time_steps(name), {variant: memory(name, variant) for variant in VARIANTS}
        title = f"{name}, batch {BATCHES[name]}"
        table = rich.table.Table("variant", "step, ms", "time / float", "memory, MB", "memory / float", title=title)
        for variant, values in times.items():
            against = dict(PAIRS).get(variant)
            ratios = (
                [
                    f"{np.median(np.array(values) / np.array(times[against])):.2f}",
                    f"{peaks[variant] / peaks[against]:.2f}",
                ]
                if against
                else ["", ""]
            )
            table.add_row(
                variant, f"{1e3 * np.median(values):.1f}", ratios[0], f"{peaks[variant] / 1e6:.0f}", ratios[1]
            )
        console.print(table)
    environment = describe_environment()
    console.print(f"Medians of {ROUNDS.value} turns of {STEPS.value} steps, {environment['cpu']}")


if __name__ == "__main__":
    app.run(main)
