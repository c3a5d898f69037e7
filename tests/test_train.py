"""Training: it learns in every way to run a step, weighs as told, and says what is wrong."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.conftest import blobs, small_model
from tfopt.evaluation import evaluate
from tfopt.train.loop import train
from tfopt.train.precision import computes_in

layers = keras.layers


def fitted(folder, data, model=None, epochs=3, callbacks=(), **options):
    """(model, history) of a training from the same start each time."""
    keras.utils.set_random_seed(1)
    options = {"learning_rate": 3e-3, **options}
    return train(
        model or small_model(), data, epochs, tfopt.Fit(**options), folder=folder, label="t", callbacks=callbacks
    )


def linear(units=3, activation="softmax", shape=(8, 8, 2)):
    """A model whose weights see nothing but the loss: no batch statistics, no dropout."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Flatten(),
            layers.Dense(units, activation, kernel_initializer=keras.initializers.GlorotUniform(1), name="head"),
        ],
        name="linear",
    )


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


# Ways to run a step


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_learns_and_comes_back_in_float32(precision, data, tmp_path):
    start = small_model()
    before = [each.copy() for each in start.get_weights()]
    work = tfopt.Work(start, data, tmp_path)
    after = tfopt.Train(4, tfopt.Fit(5e-3, precision=precision))(work)
    model, entry = after.model, after.report.stages[-1]
    assert not (tmp_path / "tensorboard").exists()
    assert computes_in(model, "float32")
    assert {str(each.dtype) for each in model.weights} == {"float32"}
    assert not any(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, start.get_weights(), strict=True))
    x, y = blobs(120, seed=5)
    assert (model.predict(x, verbose=0).argmax(1) == y).mean() > 0.9
    assert entry.metrics["after"]["accuracy"] > 0.9
    assert {key: len(values) for key, values in entry.history.items()} == dict.fromkeys(
        ["accuracy", "loss", "val_accuracy", "val_loss"], 4
    )
    assert entry.history["loss"][-1] < entry.history["loss"][0] / 2


def test_steps_per_execution_changes_nothing(data, tmp_path):
    assert data.steps_per_epoch == 8  # which 3 does not divide
    plain, history = fitted(tmp_path / "1", data)
    grouped, same_history = fitted(tmp_path / "3", data, steps_per_execution=3)
    assert same(plain, grouped)
    assert same_history == history


def test_xla_gives_the_losses_of_the_plain_step(data, tmp_path):
    _, plain = fitted(tmp_path / "plain", data, epochs=2)
    _, xla = fitted(tmp_path / "xla", data, epochs=2, jit_compile=True)
    assert xla["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert xla["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-3)


def test_xla_is_off_on_a_cpu_and_as_asked_otherwise():
    assert tfopt.Fit().uses_xla() is bool(tf.config.list_physical_devices("GPU"))
    assert tfopt.Fit(jit_compile=True).uses_xla() is True
    assert tfopt.Fit(jit_compile=False).uses_xla() is False


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "Lamb", "AdamW", "lion", "muon"])
def test_optimizers_are_made_by_name_with_the_rate(name):
    optimizer = tfopt.Fit(0.25, optimizer=name).make_optimizer(10)
    assert type(optimizer).__name__.lower() == name.lower()
    assert float(optimizer.learning_rate) == 0.25
    scheduled = tfopt.Fit(tfopt.Cosine(0.5), optimizer=name).make_optimizer(10)
    assert float(scheduled.learning_rate) == 0.5


def test_the_cosine_follows_its_formula():
    schedule = tfopt.Cosine(peak=0.2, warmup=0.2, final=0.1).over(100)
    for step in range(101):
        rising = 0.2 * step / 20
        falling = 0.2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80)))
        assert float(schedule(step)) == pytest.approx(rising if step < 20 else falling, abs=1e-7)
    plain = tfopt.Cosine(peak=0.3).over(50)
    assert [float(plain(step)) for step in (0, 25, 50)] == pytest.approx([0.3, 0.15, 0.0], abs=1e-7)
    with pytest.raises(ValueError, match="peak must be above 0, received 0"):
        tfopt.Cosine(peak=0)
    with pytest.raises(ValueError, match=r"warmup must be a fraction in \[0, 1\), received 10; for 10 % write 0.1"):
        tfopt.Cosine(warmup=10)


def test_the_rate_falls_over_the_whole_training(data, tmp_path):
    class Rates(keras.callbacks.Callback):
        seen = ()

        def on_epoch_end(self, epoch, logs=None):
            self.seen = (*self.seen, float(self.model.optimizer.learning_rate))

        def state(self):
            return {}

        def restore(self, state):
            pass

    rates = Rates()
    fitted(tmp_path, data, learning_rate=tfopt.Cosine(0.1), epochs=4, callbacks=[rates])
    assert rates.seen == pytest.approx([0.1 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)], abs=1e-7)


def test_tensorboard_logs_are_written(data, tmp_path):
    work = tfopt.Train(1, tfopt.Fit(tensorboard=True))(tfopt.Work(small_model(), data, tmp_path))
    logs = [path.relative_to(tmp_path / "tensorboard" / "Train") for path in tmp_path.rglob("events.out*")]
    assert {path.parts[0] for path in logs} == {"train", "validation"}
    assert work.report.stages[-1].name == "Train"


# Weights of classes and examples


def losses_by_hand(model, data):
    x, y = (np.concatenate([batch[part].numpy() for batch in data.batches("train")]) for part in (0, 1))
    probabilities = model.predict(x, verbose=0)
    return -np.log(probabilities[np.arange(len(y)), y]), y


def test_class_weights_weigh_the_loss(tmp_path):
    x, y = blobs(120)
    keep = (y != 2) | (np.arange(120) % 3 == 0)
    data = tfopt.from_arrays((x[keep], y[keep]), batch_size=16)
    model = linear()
    losses, labels = losses_by_hand(model, data)
    counts = np.bincount(labels)
    assert counts[2] < counts[0]
    frozen = {"learning_rate": 1e-12, "optimizer": "sgd", "epochs": 1, "model": model}
    _, plain = fitted(tmp_path / "none", data, **frozen)
    assert plain["loss"][0] == pytest.approx(losses.mean(), rel=1e-5)
    weights = {0: 0.5, 1: 2.0, 2: 7.0}
    _, weighted = fitted(tmp_path / "dict", data, class_weight=weights, **frozen)
    assert weighted["loss"][0] == pytest.approx((losses * np.array([0.5, 2, 7])[labels]).mean(), rel=1e-5)
    _, balanced = fitted(tmp_path / "balanced", data, class_weight="balanced", **frozen)
    by_class = [losses[labels == each].mean() for each in range(3)]
    assert balanced["loss"][0] == pytest.approx(np.mean(by_class), rel=1e-5)
    assert balanced["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-5)


def test_class_weights_that_do_not_fit_are_refused_before_training(data, tmp_path):
    x, y = blobs(60)

    def check(data, weights, model=None):
        tfopt.Train(1, tfopt.Fit(class_weight=weights)).validate(tfopt.Work(model or small_model(), data, tmp_path))

    with pytest.raises(ValueError, match=r"no weight for the classes \[2\]"):
        check(data, {0: 1.0, 1: 2.0})
    with pytest.raises(ValueError, match="class_weight cannot be used with sample weights"):
        check(tfopt.from_arrays((x, y, np.ones(60))), "balanced")
    with pytest.raises(ValueError, match="class_weight needs integer labels; the data give TensorSpec.*float32"):
        check(tfopt.from_arrays((x, y.astype("float32"))), "balanced", linear(1, None))
    for wrong in ("even", 0.5):
        with pytest.raises(ValueError, match=f'class_weight must be a dict, "balanced" or None, received {wrong!r}'):
            tfopt.Fit(class_weight=wrong)


def test_examples_of_weight_zero_are_as_good_as_absent(tmp_path):
    x, y = blobs(96)
    weights = (np.arange(96) % 2).astype("float32")

    def weights_after(noise, name):
        spoilt = np.where(weights[:, None, None, None] == 1, x, noise).astype("float32")
        data = tfopt.from_arrays((spoilt, y, weights), (x, y, weights), (x, y, weights), batch_size=16)
        keras.utils.set_random_seed(1)
        return fitted(tmp_path / name, data, linear(), optimizer="sgd", learning_rate=0.1)[0]

    one, other = weights_after(3.0, "a"), weights_after(-20.0, "b")
    assert same(one, other)
    assert evaluate(one, tfopt.from_arrays((x, y)))["accuracy"] > 0.9


# Losses that are no numbers


def poisoned_data(batch_size=8, size=64):
    """One training example, far too large for float32 sums of squares, and the step of epoch 0 that meets it."""
    x, y = blobs(size)
    x[21] = 3e38
    good = blobs(16, seed=1)
    data = tfopt.from_arrays((x, y), good, good, batch_size=batch_size)
    steps = [step for step, batch in enumerate(data.training_batches(0), 1) if np.max(batch[0]) > 1e30]
    assert len(steps) == 1
    return data, steps[0]


@pytest.mark.parametrize("together", [1, 3])
def test_a_nan_loss_stops_with_its_step_and_saves_nothing(together, tmp_path):
    data, step = poisoned_data()
    first = step if together == 1 else step - (step - 1) % together
    where = f"at step {step}" if together == 1 else f"within steps {first} to {min(first + together - 1, 8)}"
    with pytest.raises(FloatingPointError, match=rf"first {where} of epoch 1 \(step {first} of training\)"):
        fitted(tmp_path, data, linear(), steps_per_execution=together, optimizer="sgd")
    assert not (tmp_path / "checkpoint.npz").exists()


class PoisonFrom(keras.callbacks.Callback):
    """Spoils the weights just before a step."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.epoch, self.batch, self.now = epoch, batch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            self.model.layers[-1].kernel.assign(np.full((128, 3), np.nan))

    def state(self):
        return {}

    def restore(self, state):
        pass


def test_the_checkpoint_of_the_last_good_epoch_stays(data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"first at step 6 of epoch 3 \(step 22 of training\)"):
        fitted(tmp_path, data, linear(), callbacks=[PoisonFrom(2, 5)])
    with np.load(tmp_path / "checkpoint.npz") as saved:
        assert all(np.isfinite(saved[name]).all() for name in saved.files)
    model, history = fitted(tmp_path, data, linear(), callbacks=[PoisonFrom(None, None)])
    whole, _ = fitted(tmp_path / "whole", data, linear())
    assert same(model, whole)
    assert len(history["loss"]) == 3


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_learning_rate_far_too_high_is_an_error(precision, data, tmp_path):
    with pytest.raises(FloatingPointError, match="the loss is not a finite number any more: first .* Lower the lear"):
        fitted(tmp_path, data, learning_rate=1e20, precision=precision)
    assert not (tmp_path / "checkpoint.npz").exists()


def test_a_last_step_that_ruins_the_weights_is_seen_on_the_validation_split(tmp_path):
    x, y = blobs(32)
    data = tfopt.from_arrays((x, y), (x, y), (x, y), batch_size=32)
    with pytest.raises(FloatingPointError, match=r"on the validation split after epoch 1 \(step 1 of training\)"):
        fitted(tmp_path, data, linear(), epochs=1, learning_rate=1e38, optimizer="sgd")
    assert not (tmp_path / "checkpoint.npz").exists()
