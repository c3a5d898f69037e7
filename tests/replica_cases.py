"""The same training on any strategy; run as a script, it is one of several workers: arguments are cases as JSON."""

import itertools
import json
import sys

import keras
import numpy as np
import tensorflow as tf

from tfopt.train.precision import to_policy
from tfopt.train.replicas import on_strategy
from tfopt.train.strategies import strategy

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
# (policy, XLA, steps per execution)
CASES = list(itertools.product(POLICIES, (False, True), (1, 4)))


def model(policy: str, xla: bool) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    # XLA compiles what a replica does by itself, which the statistics of a batch are not.
    norm = [] if xla else [layers.BatchNormalization()]
    made = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            # No bias before a normalization: its gradient is noise, which Adam would make as large as any other.
            layers.Conv2D(4, 3, use_bias=xla),
            *norm,
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    return made if policy == "float32" else to_policy(made, policy)


def examples() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    # The last batches of 16 and of 10 have 7 and 3: two replicas get unequal shares.
    return rng.normal(size=(103, 6, 6, 2)).astype("float32"), rng.integers(0, 3, 103)


def trained(policy: str, xla: bool, steps_per_execution: int, on: tf.distribute.Strategy | None) -> dict[str, list]:
    """Losses, outputs and weights of a short training."""
    subject, (x, y) = model(policy, xla), examples()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    held_out = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)

    def fit(learner: keras.Model) -> dict[str, list]:
        learner.compile(
            # Clipped, so that a gradient of another length would show in spite of Adam.
            keras.optimizers.Adam(0.01, global_clipnorm=0.5),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=xla,
            steps_per_execution=steps_per_execution,
        )
        history = learner.fit(batches, epochs=2, shuffle=False, verbose=0, validation_data=held_out).history
        outputs = learner.predict(held_out.map(lambda image, label: image), verbose=0)
        steps = int(learner.optimizer.iterations.numpy())
        return {**history, "outputs": outputs.tolist(), "steps": [steps]}

    if on is None:
        found = fit(subject)
    else:
        with on_strategy(subject, on) as copy:
            found = fit(copy)
    return {**found, "weights": [float(np.abs(each.numpy()).sum()) for each in subject.variables]}


if __name__ == "__main__":
    workers = strategy(*sys.argv[2:] or ["multi_worker"])
    for case in json.loads(sys.argv[1]):
        sys.stdout.write(json.dumps({"case": case, "found": trained(*case, workers)}) + "\n")
