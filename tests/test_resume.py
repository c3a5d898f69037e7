"""Early stopping, checkpoints, and trainings that go on after an interruption."""

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import blobs, quick, small_model
from tests.test_train import fitted, linear, same
from tfopt.cluster.keep import KeepClusters
from tfopt.clusters import Clustered
from tfopt.evaluation import evaluate
from tfopt.train.checkpoint import read_checkpoint, write_checkpoint

layers = keras.layers


class Crash(keras.callbacks.Callback):
    """Breaks a training off when an epoch begins, or after some of its steps."""

    def __init__(self, epoch=None, batch=None):
        super().__init__()
        self.epoch, self.batch, self.now = epoch, batch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch
        if epoch == self.epoch and self.batch is None:
            raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            raise KeyboardInterrupt

    def state(self):
        return {"seen": np.array(self.now)}

    def restore(self, state):
        self.restored = int(state["seen"])


def noisy_model(seed=1):
    """Everything that draws random numbers in training."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 2))
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.RandomTranslation(0.1, 0.1)(x)
    x = layers.GaussianNoise(0.1)(x)
    x = layers.Conv2D(6, 3)(x)
    x = layers.BatchNormalization(momentum=0.8)(x)
    x = layers.Flatten()(layers.SpatialDropout2D(0.2)(x))
    x = layers.Dropout(0.3)(layers.Dense(8, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


WAYS = {
    "adam": {},
    "nadam, cosine, steps_per_execution": {
        "optimizer": "nadam",
        "learning_rate": tfopt.Cosine(0.01, warmup=0.2),
        "steps_per_execution": 3,
    },
    "mixed_float16": {"precision": "mixed_float16"},
}


@pytest.mark.parametrize("way", quick(WAYS, "adam"))
def test_a_training_that_was_broken_off_ends_with_the_same_bits(way, tmp_path):
    # Large inputs: float16 overflows, so that the loss scale has a history.
    x, y = blobs(72)
    scale = 300 if way == "mixed_float16" else 1
    data = tfopt.from_arrays((x * scale, y), batch_size=16)
    options = {"epochs": 4, **WAYS[way]}
    whole, history = fitted(tmp_path / "whole", data, noisy_model(), callbacks=[Crash()], **options)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "broken", data, noisy_model(), callbacks=[Crash(2, 2)], **options)
    # As in another process, fresh weights and seeds: all comes from the file.
    crash = Crash()
    resumed, again = fitted(tmp_path / "broken", data, noisy_model(seed=7), callbacks=[crash], **options)
    assert crash.restored == 1
    assert same(whole, resumed)
    assert again == history
    ends = [read_checkpoint(tmp_path / name / "checkpoint.npz")[0] for name in ("whole", "broken")]
    assert ends[0].keys() == ends[1].keys()
    for name, values in ends[0].items():
        assert np.array_equal(values, ends[1][name]), name
    if way == "mixed_float16":
        # Keras' dynamic scale starts at 2 ** 15 and halves at each overflow.
        assert {2.0**power for power in range(15)} & {float(each) for each in ends[0].values() if each.shape == ()}


def test_clusters_that_move_end_with_the_same_bits(tmp_path):
    def run(folder, *callbacks):
        keras.utils.set_random_seed(1)
        model = small_model(dropout=0.0)
        kernel = model.get_layer("hidden").kernel
        kernel.assign(np.round(kernel * 8) / 8)
        promise = Clustered({kernel.path: len(np.unique(kernel))})
        return fitted(tmp_path / folder, data, model, callbacks=[KeepClusters(promise, model), *callbacks])[0], promise

    data = tfopt.from_arrays(blobs(72), batch_size=16)
    whole, promise = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("broken", Crash(2, 2))
    resumed, _ = run("broken", Crash())
    assert promise.check(resumed) == []
    assert same(whole, resumed)


def test_momentum_is_taken_up(data, tmp_path, monkeypatch):
    """`Fit` names optimizers with Keras' defaults; state of any other must come back all the same."""
    momentum = keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True).get_config()
    monkeypatch.setattr(tfopt.Fit, "make_optimizer", lambda self, steps: keras.optimizers.SGD.from_config(momentum))
    whole, _ = fitted(tmp_path / "whole", data, linear(), callbacks=[Crash()])
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "broken", data, linear(), callbacks=[Crash(1)])
    resumed, _ = fitted(tmp_path / "broken", data, linear(), callbacks=[Crash()])
    assert same(whole, resumed)


# Early stopping


def overfitting():
    """A few examples with labels by chance: the validation loss soon rises."""
    x, _ = blobs(40)
    labels = np.random.default_rng(3).integers(0, 3, 40)
    return tfopt.from_arrays((x, labels), (x[:20], np.roll(labels, 1)[:20]), (x, labels), batch_size=8)


STOP = {"epochs": 30, "early_stopping": 3, "learning_rate": 0.02}


def test_early_stopping_takes_the_best_weights_back(tmp_path):
    data = overfitting()
    model, history = fitted(tmp_path, data, **STOP)
    losses = history["val_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 3 < 30
    assert evaluate(model, data, "validation")["loss"] == pytest.approx(losses[best], rel=1e-5)
    exact, _ = fitted(tmp_path / "exact", data, epochs=best + 1, learning_rate=0.02)
    assert same(model, exact)


@pytest.mark.slow
def test_early_stopping_is_not_forgotten_by_a_crash(tmp_path):
    data = overfitting()
    whole, history = fitted(tmp_path / "whole", data, callbacks=[Crash()], **STOP)
    end = len(history["loss"])
    # Broken off in the middle of the patience, and after the end: before the stage could note it.
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "broken", data, callbacks=[Crash(end - 2)], **STOP)
    for _ in range(2):
        resumed, again = fitted(tmp_path / "broken", data, callbacks=[Crash()], **STOP)
        assert again == history
        assert same(whole, resumed)


def test_early_stopping_that_never_stops_still_takes_the_best(data, tmp_path):
    options = {"epochs": 3, "early_stopping": 10}
    model, history = fitted(tmp_path, data, **options)
    assert len(history["loss"]) == 3
    best = min(history["val_loss"])
    assert evaluate(model, data, "validation")["loss"] == pytest.approx(best, rel=1e-5)
    done, _ = fitted(tmp_path, data, **options)
    assert same(model, done)


# The file


def test_a_truncated_checkpoint_is_named(data, tmp_path):
    fitted(tmp_path, data, epochs=1)
    path = tmp_path / "checkpoint.npz"
    whole = path.read_bytes()
    for share in (0, 0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=rf"the checkpoint {path} is damaged .*delete it to start"):
            read_checkpoint(path)
    for content in (whole[:-1], whole + b"0", b"text" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            read_checkpoint(path)
    with pytest.raises(ValueError, match="is damaged"):
        fitted(tmp_path, data, epochs=1)


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    path = tmp_path / "checkpoint.npz"
    arrays = {"model/0": np.arange(6, dtype="float32"), "part/0/origin": np.array(3)}
    write_checkpoint(path, arrays, {"loss": [0.5, 0.25]}, 2)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"the checkpoint {path} is damaged .its checksum does not match"):
            read_checkpoint(path)
    path.write_bytes(whole)
    read, history, done = read_checkpoint(path)
    assert read.keys() == arrays.keys()
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
    assert (history, done) == ({"loss": [0.5, 0.25]}, 2)


def test_a_checkpoint_of_another_model_is_refused(data, tmp_path):
    fitted(tmp_path, data, epochs=1)
    wider = keras.Sequential([small_model(), layers.Dense(3, activation="softmax")])
    other_shapes = tfopt.models.cnn((8, 8, 2), 3, filters=4)
    for model in (wider, other_shapes, noisy_model()):
        with pytest.raises(ValueError, match=r"checkpoint.npz is a checkpoint of another model: .* delete it"):
            fitted(tmp_path, data, model, epochs=1)
    with pytest.raises(ValueError, match="is a checkpoint of another model: optimizer"):
        fitted(tmp_path, data, epochs=1, optimizer="sgd")


def test_no_half_written_checkpoint_is_left(data, tmp_path):
    fitted(tmp_path, data, epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]
    assert read_checkpoint(tmp_path / "none.npz") is None
