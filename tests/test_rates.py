"""Learning rates: schedules follow their formulas, layers have their own, plateaus resume, and the finder finds."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import tfopt
from tests.conftest import blobs, small_model
from tests.test_resume import Crash
from tests.test_train import fitted, linear, same
from tfopt.train import CosineRestarts, OneCycle, Plateau, Polynomial, StepDecay
from tfopt.train.layer_rates import layer_factors, with_factors
from tfopt.train.loop import train

# Schedules, each beside its formula in NumPy: from a step after the warm-up and how many there are.


def line(start, end, share, power=1.0):
    return (start - end) * (1 - share) ** power + end


def cosine(peak, final, share):
    return peak * ((1 - final) * 0.5 * (1 + np.cos(np.pi * share)) + final)


def restarts(each, step, count):
    lengths = np.array([each.growth**cycle for cycle in range(each.cycles)])
    ends = np.rint(np.cumsum(lengths) / lengths.sum() * count)
    cycle = min(int((step >= ends).sum()), each.cycles - 1)
    start = 0 if cycle == 0 else ends[cycle - 1]
    return cosine(each.peak * each.decay**cycle, each.final, (step - start) / max(1, ends[cycle] - start))


def drops(each, step, count, rising):
    passed = sum(step + rising >= int(share * (count + rising)) for share in each.drops)
    return each.peak * each.factor**passed


def expected(each, step, steps):
    rising = int(each.warmup * steps)
    if isinstance(each, OneCycle):
        low = each.start * each.peak
        if step < rising:
            return line(low, each.peak, step / rising)
        if step < 2 * rising:
            return line(each.peak, low, (step - rising) / rising)
        return line(low, each.final * each.peak, (step - 2 * rising) / max(1, steps - 2 * rising))
    if step < rising:
        return each.peak * step / rising
    left, step = steps - rising, step - rising
    if isinstance(each, CosineRestarts):
        return restarts(each, step, left)
    if isinstance(each, StepDecay):
        return drops(each, step, left, rising)
    if isinstance(each, Polynomial):
        return line(each.peak, each.final * each.peak, step / left, each.power)
    return cosine(each.peak, each.final, step / left)


shares = st.floats(0, 0.4)
peaks = st.floats(1e-5, 10)
finals = st.floats(0, 1)
SCHEDULES = st.one_of(
    st.builds(tfopt.Cosine, peaks, shares, finals),
    st.builds(CosineRestarts, peaks, shares, finals, st.integers(1, 3), st.floats(1, 2), st.floats(0.1, 1)),
    st.builds(Polynomial, peaks, shares, finals, st.floats(0.5, 3)),
    st.builds(StepDecay, peaks, shares, st.sampled_from([(0.5,), (0.5, 0.75), (0.4, 0.6, 0.9)]), st.floats(0.1, 0.9)),
    st.builds(OneCycle, peaks, st.floats(0.05, 0.45), st.floats(0.1, 0.5), st.floats(0, 0.1)),
)


@given(SCHEDULES, st.integers(40, 500))
def test_schedules_follow_their_formulas(each, steps):
    schedule = each.over(steps)
    places = np.unique(np.linspace(0, steps, 40).astype(int))
    rates = schedule(tf.constant(places, tf.int64)).numpy()
    assert rates == pytest.approx([expected(each, step, steps) for step in places], rel=1e-4, abs=1e-6 * each.peak)
    assert (rates >= 0).all()
    assert rates.max() <= each.peak * 1.00001


@given(SCHEDULES, st.integers(40, 300))
def test_rises_then_falls(each, steps):
    schedule = each.over(steps)
    rates = schedule(tf.range(steps + 1)).numpy()
    rising, slack = int(each.warmup * steps), 1e-5 * each.peak
    assert (np.diff(rates[: rising + 1]) >= -slack).all()
    assert rates[rising] == pytest.approx(each.peak, rel=1e-5)
    falls = np.diff(rates[rising:]) <= slack
    assert falls.all() or isinstance(each, CosineRestarts)
    assert (~falls).sum() <= (each.cycles - 1 if isinstance(each, CosineRestarts) else 0)
    if not isinstance(each, StepDecay):
        peak = each.peak * each.decay ** (each.cycles - 1) if isinstance(each, CosineRestarts) else each.peak
        assert rates[-1] == pytest.approx(peak * each.final, rel=1e-4, abs=slack)


@given(SCHEDULES)
def test_schedules_are_written_and_read_by_keras_and_by_their_repr(each):
    schedule = each.over(60)
    config = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    again = keras.optimizers.schedules.deserialize(config)
    assert np.array_equal(again(tf.range(60)), schedule(tf.range(60)))
    assert eval(repr(each), {**vars(tfopt), **vars(tfopt.train)}) == each


def test_reprs_stay_and_settings_out_of_range_are_refused():
    assert repr(tfopt.Cosine(0.1, final=0.5)) == "Cosine(peak=0.1, final=0.5)"
    assert Polynomial(0.1).scaled(512) == Polynomial(0.2, warmup=0.05)
    for make, message in (
        (lambda: CosineRestarts(cycles=0), "cycles must be a whole number from 1, received 0"),
        (lambda: CosineRestarts(growth=0.5), "growth must be at least 1, received 0.5"),
        (lambda: CosineRestarts(decay=0), "decay must be in"),
        (lambda: CosineRestarts(cycles=4, growth=3).over(15), "the first of 4 cycles with growth=3 would have no step"),
        (lambda: Polynomial(power=0), "power must be above 0, received 0"),
        (lambda: StepDecay(drops=()), "drops must be ascending shares"),
        (lambda: StepDecay(drops=(0.7, 0.5)), "drops must be ascending shares"),
        (lambda: StepDecay(warmup=0.6), "drops must be ascending shares .* from warmup=0.6 on"),
        (lambda: StepDecay(factor=1), "factor must be in"),
        (lambda: OneCycle(warmup=0.5), "warmup must be in"),
        (lambda: OneCycle(warmup=0.1).over(9), "warmup=0.1 of 9 steps is none"),
        (lambda: OneCycle(start=0.1, final=0.2), "final must not be above start=0.1, received 0.2"),
        (lambda: Plateau(factor=1.5), "factor must be in"),
        (lambda: Plateau(patience=0), "patience must be a number of epochs from 1, received 0"),
        (lambda: Plateau(1e-3, least=1e-2), "least must be at least 0 and below the peak, received 0.01"),
        (
            lambda: tfopt.Fit(Plateau(patience=3), early_stopping=3),
            r"early_stopping=3 ends training before Plateau\(patience=3\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


class Weights(keras.callbacks.Callback):
    """The weights after each step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights())


@pytest.mark.parametrize("xla", [False, True])
def test_the_compiled_step_uses_the_schedule(xla):
    # A constant gradient: each step moves the weight by the rate alone.
    x = np.ones((64, 1), "float32")
    data = tfopt.from_arrays((x, x), (x, x), (x, x), batch_size=8)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    rates = CosineRestarts(0.1, warmup=0.25, cycles=2)
    steps = Weights()
    model.compile(tfopt.Fit(rates, optimizer="sgd").make_optimizer(16), loss=Output(), jit_compile=xla)
    model.fit(data.train.repeat(2), shuffle=False, verbose=0, callbacks=[steps])
    moved = -np.diff([0.0, *(float(np.squeeze(each[0])) for each in steps.seen)])
    assert moved == pytest.approx([expected(rates, step, 16) for step in range(16)], abs=1e-6)


class Output(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return y_pred[:, 0]


# Plateaus


class Rates(Crash):
    """The learning rate of each epoch."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self.seen.append(float(self.model.optimizer.learning_rate))


def test_a_plateau_lowers_the_rate_and_resumes(tmp_path):
    x, y = blobs(72)
    data = tfopt.from_arrays((x, y), batch_size=16)
    # What has to fall by 10 never does: the rate is lowered after every second epoch but the first.
    options = {"learning_rate": Plateau(0.02, 0.5, patience=2, least=0.004, min_delta=10), "epochs": 9}
    rates = Rates()
    whole, history = fitted(tmp_path / "whole", data, linear(), callbacks=[rates], **options)
    assert rates.seen == pytest.approx([0.02, 0.02, 0.02, 0.01, 0.01, 0.005, 0.005, 0.004, 0.004])
    assert history["learning_rate"] == pytest.approx(rates.seen)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "broken", data, linear(), callbacks=[Rates(4, 1)], **options)
    resumed, again = fitted(tmp_path / "broken", data, linear(), callbacks=[Rates()], **options)
    assert same(whole, resumed)
    assert again == history
    falling = fitted(tmp_path / "falls", data, linear(), learning_rate=Plateau(1e-3, patience=1), epochs=3)[1]
    assert np.diff(falling["val_loss"]).max() < -1e-4
    assert falling["learning_rate"] == pytest.approx([1e-3] * 3)


# Rates by layer


def nested():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="one")], name="block")
    inputs = keras.Input((4,))
    x = keras.layers.Dense(2, name="head_b")(keras.layers.Dense(3, name="head")(inner(inputs)))
    return keras.Model(inputs, x, name="net")


def test_a_name_goes_before_a_beginning_and_an_inner_layer_before_an_outer_one():
    model = nested()
    assert [variable.path.split("/")[-2] for variable in model.trainable_variables[::2]] == ["one", "head", "head_b"]
    for rates, wanted in (
        ({}, [1, 1, 1]),
        ({"head": 2}, [1, 2, 1]),
        ({"hea": 2}, [1, 2, 2]),
        ({"hea": 2, "head_b": 3, "h": 4}, [1, 2, 3]),
        ({"head_": 2, "h": 4}, [1, 4, 2]),
        ({"block": 0.5}, [0.5, 1, 1]),
        ({"one": 0.25, "block": 0.5}, [0.25, 1, 1]),
    ):
        assert layer_factors(model, rates)[::2] == wanted, rates
    model.get_layer("head").trainable = False
    with pytest.raises(ValueError, match="'head' stands for, none has weights that learn"):
        layer_factors(model, {"head": 2})


OPTIMIZERS = ["sgd", "adam", "adamw", "lion", "rmsprop", "nadam", "lamb", "muon", "adafactor", "ftrl", "adagrad"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_factor_is_exactly_that_learning_rate(name):
    """As two optimizers, one for each rate, decay of weights included."""
    rng = np.random.default_rng(0)
    starts = rng.normal(size=(2, 4, 3)).astype("float32")
    gradients = rng.normal(size=(6, 2, 4, 3)).astype("float32")

    def optimizer(rate):
        made = tfopt.Fit(rate, optimizer=name).make_optimizer(6)
        made.weight_decay = 0.1 if name in ("sgd", "adam", "adamw", "lion", "muon") else made.weight_decay
        return made

    def run(made, places):
        variables = [keras.Variable(starts[place], name=f"w{place}") for place in places]
        for step in gradients:
            made.apply([keras.ops.convert_to_tensor(step[place]) for place in places], variables)
        return [variable.numpy() for variable in variables]

    slow, fast = run(with_factors(optimizer(0.05), [0.125, 1.0]), [0, 1])
    np.testing.assert_allclose(slow, run(optimizer(0.05 * 0.125), [0])[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fast, run(optimizer(0.05), [1])[0], rtol=1e-5, atol=1e-7)
    assert np.abs(slow - run(optimizer(0.05), [0])[0]).max() > 1e-3


WAYS = {
    "plain": {},
    "scheduled, several steps, clipped": {
        "learning_rate": tfopt.Cosine(5e-3, warmup=0.2),
        "steps_per_execution": 3,
        "clip_norm": 0.5,
    },
    "XLA": {"jit_compile": True},
    "loss scaling": {"precision": "mixed_float16"},
    "parts of a batch": {"micro_batches": 2},
}


def distances(before, after):
    """How far each layer has moved."""
    pairs = zip(before.trainable_variables, after.trainable_variables, strict=True)
    return {
        old.path.split("/")[-2]: float(np.abs(old.numpy() - new.numpy()).max())
        for old, new in pairs
        if old.name == "kernel"
    }


REFUSED = ("XLA", "two replicas")
QUICK = [("loss scaling", "two replicas")]
# With XLA, two replicas are refused: the model has BatchNormalization.
PLACES = [(way, where) for where in ("one device", "two replicas") for way in WAYS if (way, where) != REFUSED]


@pytest.mark.parametrize(
    ("way", "where"),
    [pytest.param(*place, marks=[pytest.mark.slow] * (place not in QUICK)) for place in PLACES],
)
def test_layers_move_by_their_rates(way, where, mirrored, tmp_path):
    x, y = blobs(60)
    data = tfopt.from_arrays((x, y), batch_size=48)
    options = {"learning_rate": 1e-3, **WAYS[way]}
    options["layer_rates"] = {"hid": 1e-4, "out": 3.0}
    before = small_model()
    keras.utils.set_random_seed(1)
    start = keras.models.clone_model(before)
    start.set_weights(before.get_weights())
    strategy = mirrored if where == "two replicas" else None
    after, _ = train(start, data, 3, tfopt.Fit(**options), folder=tmp_path, label="t", strategy=strategy)
    moved = distances(before, after)
    # Adam moves each weight by about its rate at each step.
    assert moved["hidden"] < moved["conv"] * 1e-3
    assert moved["hidden"] > 0
    assert moved["out"] > 2 * moved["conv"]


def test_rates_by_layer_resume(data, tmp_path):
    options = {"layer_rates": {"head": 0.1}, "optimizer": "adamw", "model": linear()}
    whole, _ = fitted(tmp_path / "whole", data, callbacks=[Crash()], **options)
    options["model"] = linear()
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "broken", data, callbacks=[Crash(1, 3)], **options)
    options["model"] = linear()
    resumed, _ = fitted(tmp_path / "broken", data, callbacks=[Crash()], **options)
    assert same(whole, resumed)


def test_unknown_layers_and_a_factor_of_zero_are_refused_before_training(data, tmp_path):
    stage = tfopt.Train(1, tfopt.Fit(layer_rates={"hiden": 0.1}))
    with pytest.raises(ValueError, match="no layer of 'small' is called 'hiden' or begins so; did you mean hidden"):
        stage.validate(tfopt.Work(small_model(), data, tmp_path))
    with pytest.raises(ValueError, match=r"'hidden' must be above 0, received 0; .* use Train\(layers=\.\.\.\)"):
        tfopt.Fit(layer_rates={"hidden": 0})


def test_rates_of_layers_that_quantization_renames_are_refused_before_training(data, tmp_path):
    layers = keras.layers
    block = keras.Sequential([keras.Input((8, 8, 2)), layers.Conv2D(4, 3, name="conv")], name="block")
    x = keras.Input((8, 8, 2))
    model = keras.Model(x, layers.Dense(3, activation="softmax", name="out")(layers.Flatten()(block(x))))
    work = tfopt.Work(model, data, tmp_path)

    # In the model that trains the layers of the block stand by themselves.
    def stages(name):
        return [tfopt.Train(1), tfopt.QuantizeAware(1, fit=tfopt.Fit(layer_rates={name: 0.1}))]

    assert tfopt.validate(stages("conv"), work).trained
    with pytest.raises(ValueError, match="no layer of .* is called 'block'"):
        tfopt.validate(stages("block"), work)
    assert not any(tmp_path.iterdir())
