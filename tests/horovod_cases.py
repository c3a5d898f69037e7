"""One of several processes that horovodrun has started: trains what its arguments name, and prints what came out."""

import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import tfopt
from tests.conftest import blobs, small_model
from tests.replica_cases import examples, model, trained
from tfopt.train.replicas import on_strategy
from tfopt.train.strategies import strategy, worker_index


def flat(learner: keras.Model) -> list[float]:
    """All weights in a row."""
    return np.concatenate([each.ravel() for each in learner.get_weights()]).tolist()


def words(micro_batches: int, on: tf.distribute.Strategy | None, drop_remainder: bool = False) -> dict[str, list]:
    """Losses and weights of a training with an embedding, whose gradients are sparse, in unequal shares of batches."""
    keras.utils.set_random_seed(0)
    reader = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(20, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 20, (39, 5)), rng.integers(0, 3, 39)
    batches = tf.data.Dataset.from_tensor_slices((tokens, labels)).batch(12, drop_remainder=drop_remainder)

    def fit(learner: keras.Model) -> list[float]:
        learner.compile(keras.optimizers.SGD(0.5, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False)
        return learner.fit(batches, epochs=3, shuffle=False, verbose=0).history["loss"]

    if on is None:
        losses = fit(reader)
    else:
        with on_strategy(reader, on, micro_batches) as copy:
            losses = fit(copy)
    return {"loss": losses, "weights": flat(reader)}


def tape(on: tf.distribute.Strategy) -> list[list[float]]:
    """Weights after four steps in equal shares: by Horovod's own DistributedGradientTape, and by `fit`."""
    import horovod.tensorflow as hvd

    x, y = (each[:96] for each in examples())
    by_hand, ours = model("float32", True), model("float32", True)
    loss_of = keras.losses.SparseCategoricalCrossentropy()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    for start in range(0, 96, 24):
        mine = slice(start + 12 * hvd.rank(), start + 12 * hvd.rank() + 12)
        with hvd.DistributedGradientTape(tf.GradientTape()) as gradients:
            loss = loss_of(y[mine], by_hand(x[mine], training=True))
        # It knows TensorFlow's variables only.
        variables = [each.value for each in by_hand.trainable_weights]
        optimizer.apply(gradients.gradient(loss, variables), by_hand.trainable_weights)
    with on_strategy(ours, on) as copy:
        copy.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False)
        copy.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(24), shuffle=False, verbose=0)
    return [flat(by_hand), flat(ours)]


def local(on: tf.distribute.Strategy) -> dict[str, list]:
    """The same of a training by local SGD, which is that of two replicas and not that of one device."""
    keras.utils.set_random_seed(0)
    subject, (x, y) = small_model(), blobs(96)
    with on_strategy(subject, on, synchronize_every=4) as copy:
        copy.compile(keras.optimizers.SGD(0.05, momentum=0.5), "sparse_categorical_crossentropy", steps_per_execution=4)
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(12)
        losses = copy.fit(batches, epochs=2, shuffle=False, verbose=0).history["loss"]
    return {"loss": losses, "weights": flat(subject)}


def pruned(folder: str, on: tf.distribute.Strategy | str) -> dict[str, list]:
    """The history and the weights of a chain with pruning, BatchNormalization in the model."""
    keras.utils.set_random_seed(0)
    data = tfopt.from_arrays(blobs(), batch_size=24, name="blobs", class_names=tuple("abc"))
    work = tfopt.Work(model=small_model(), data=data, workdir=folder, strategy=on)
    after = tfopt.run([tfopt.Train(1), tfopt.Prune(0.5, epochs=2)], work)
    history = {f"{index}/{key}": each for index in (0, 1) for key, each in after.report.stages[index].history.items()}
    return {**history, "weights": flat(after.model)}


if __name__ == "__main__":
    on = strategy("horovod")
    todo = json.loads(pathlib.Path(sys.argv[1]).read_text())
    found = {
        "cases": [trained(*case, on) for case in todo["cases"]],
        "words": [words(parts, on) for parts in todo["micro_batches"]],
        "equal": [words(1, on, drop_remainder=True)],
        "tape": tape(on),
        "local": [local(on)],
        "pruned": [pruned(todo["workdir"], on)],
    }
    # To a file: what goes through horovodrun is cut into lines of its own.
    pathlib.Path(f"{sys.argv[1]}.{worker_index(on)}").write_text(json.dumps(found))
