"""Several models as one: the maths, the graph, the file; and who may not be a member."""

import keras
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays

import tfopt
from tests.conftest import blobs, small_model
from tfopt.ensemble import as_one_model, boosted, combine, fresh, parts_of
from tfopt.ensemble.combine import METHODS, mixture_weights, regression_weights


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


LOGITS = arrays.arrays(np.float64, (3, 5, 4), elements=some.floats(-6, 6))


@given(LOGITS)
def test_every_method_gives_probabilities_within_those_of_the_members(logits):
    outputs = softmax(logits)
    for method in ("mean", "geometric"):
        found = combine(outputs, method)
        assert np.allclose(found.sum(-1), 1)
    mean = combine(outputs)
    assert (mean >= outputs.min(0) - 1e-12).all()
    assert (mean <= outputs.max(0) + 1e-12).all()
    assert np.allclose(combine(outputs, "geometric"), softmax(logits.mean(0)))
    # Members that agree are what they agree on.
    assert np.allclose(combine(np.stack([outputs[0]] * 3), "geometric"), outputs[0])


@given(LOGITS, some.lists(some.floats(0.1, 5), min_size=3, max_size=3))
def test_weights_count_as_copies_do(logits, weights):
    outputs = softmax(logits)
    doubled = np.concatenate([outputs, outputs[:1]])
    for method in METHODS:
        assert np.allclose(combine(outputs, method, [2, 1, 1]), combine(doubled, method))
        assert np.allclose(combine(outputs, method, weights), combine(outputs, method, [7 * each for each in weights]))


def test_votes_are_shares_of_the_members():
    outputs = np.array([[[0.4, 0.3, 0.3]], [[0.1, 0.5, 0.4]], [[0.0, 0.6, 0.4]]])
    assert np.allclose(combine(outputs, "vote"), [[1 / 3, 2 / 3, 0]])
    assert np.allclose(combine(np.array([[[0.7]], [[0.4]], [[0.9]]]), "vote"), [[2 / 3]])


FLAT = np.full((3, 6), 0.53125)
FLAT[0, 0] = 0.5390625


@given(arrays.arrays(np.float64, (3, 6), elements=some.floats(0.01, 1)))
@example(FLAT)
def test_no_other_mixture_is_likelier(likelihoods):
    weights = mixture_weights(likelihoods)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    best = np.log(weights @ likelihoods).mean()
    for other in [*np.eye(3), *np.random.default_rng(0).dirichlet(np.ones(3), 20)]:
        assert np.log(other @ likelihoods).mean() <= best + 1e-4


@given(arrays.arrays(np.float64, (3, 6), elements=some.floats(-5, 5)), some.integers(0, 5))
def test_no_other_mean_is_nearer(predictions, seed):
    targets = np.random.default_rng(seed).normal(size=6) + 100
    weights = regression_weights(predictions + 100, targets)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    best = np.square(weights @ (predictions + 100) - targets).mean()
    for other in [*np.eye(3), *np.random.default_rng(0).dirichlet(np.ones(3), 20)]:
        assert np.square(other @ (predictions + 100) - targets).mean() >= best - 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 1, 1)), "average"), "method must be one of mean, geometric, vote; received 'average'"),
        ((np.ones((2, 1)),), "members, examples, …, classes"),
        ((np.full((2, 1, 2), 3.0), "vote"), "for probabilities"),
        ((np.ones((2, 1, 1)), "mean", [1]), "one for each of 2 members"),
        ((np.ones((2, 1, 1)), "mean", [1, -1]), "at least 0"),
        ((np.ones((2, 1, 1)), "mean", [0, 0]), "at least 0"),
    ],
)
def test_outputs_that_cannot_be_combined(arguments, message):
    with pytest.raises(ValueError, match=message):
        combine(*arguments)


# The graph


def classifier(end="softmax", classes=3, shape=(4,), loss=None, name=None):
    layers = [keras.layers.Dense(5, "relu", name="hidden"), keras.layers.Dense(classes, name="out")]
    if end == "layer":
        layers.append(keras.layers.Softmax(name="end"))
    elif end == "activation":
        layers.append(keras.layers.Activation("softmax", name="end"))
    elif end is not None:
        layers[-1] = keras.layers.Dense(classes, end, name="out")
    model = keras.Sequential([keras.Input(shape), *layers], name=name)
    if loss is not None:
        model.compile("sgd", loss, metrics=["accuracy"], jit_compile=False)
    return model


CROSS = keras.losses.SparseCategoricalCrossentropy
X = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("end", "weights"),
    [("softmax", None), ("layer", [0.5, 0.2, 0.3]), ("activation", None), (None, [0.5, 0.2, 0.3])],
)
def test_one_model_computes_what_the_maths_say(method, end, weights):
    loss = CROSS(from_logits=True) if end is None else CROSS()
    members = [classifier(end, loss=loss) for _ in range(3)]
    model = as_one_model(members, method, weights)
    outputs = np.stack([keras.ops.convert_to_numpy(each(X)) for each in members])
    found = keras.ops.convert_to_numpy(model(X))
    if end is None:
        outputs = softmax(outputs)
        # Logits stay logits, and the loss is the members'; else it is one for probabilities.
        assert model.loss.get_config()["from_logits"] == (method == "geometric")
        found = softmax(found) if method == "geometric" else found
    assert np.allclose(found, combine(outputs, method, weights), atol=1e-5)
    assert model.compiled


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("from_logits", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_classes_of_one_output(method, from_logits):
    loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
    members = [classifier(None if from_logits else "sigmoid", 1) for _ in range(3)]
    accuracy = keras.metrics.BinaryAccuracy("accuracy", threshold=0.0 if from_logits else 0.5)
    for each in members:
        each.compile("sgd", loss, metrics=[accuracy], jit_compile=False)
    model = as_one_model(members, method)
    outputs = np.stack([keras.ops.convert_to_numpy(each(X)) for each in members])
    found = keras.ops.convert_to_numpy(model(X))
    if from_logits:
        outputs = 1 / (1 + np.exp(-outputs))
        found = 1 / (1 + np.exp(-found)) if method == "geometric" else found
    expected = combine(outputs, method)
    assert np.allclose(found, expected, atol=1e-5)
    truth = (expected > 0.5).astype("float32")
    assert model.evaluate(X, truth, verbose=0, return_dict=True)["accuracy"] == 1


def test_members_stay_as_they_are_and_names_differ(tmp_path):
    members = [small_model(), small_model()]
    before = [each.get_weights() for each in members]
    model = as_one_model(members)
    for variable in model.trainable_variables:
        variable.assign(variable + 1)
    for each, weights in zip(members, before, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(each.get_weights(), weights, strict=True))
    paths = [variable.path for variable in model.variables]
    assert len(set(paths)) == len(paths) == 2 * len(members[0].variables)
    assert {path.split("_")[0] for path in paths} == {"member1", "member2"}
    model.save(tmp_path / "ensemble.keras")
    x, _ = blobs(4)
    again = keras.saving.load_model(tmp_path / "ensemble.keras")
    assert np.array_equal(again(x), model(x))


def test_nested_shared_and_frozen_layers_and_several_inputs():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="deep")], name="inner")
    inner.layers[0].trainable = False

    def member():
        a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
        shared = keras.layers.Dense(4, name="shared")
        x = keras.layers.Concatenate(name="both")([shared(inner(a)), shared(b)]) * 2.0
        model = keras.Model({"a": a, "b": b}, keras.layers.Dense(3, "softmax", name="out")(x))
        model.get_layer("inner").get_layer("deep").trainable = False
        return model

    members = [member(), member()]
    model = as_one_model(members, "geometric")
    x = {"a": X, "b": X[::-1]}
    outputs = np.stack([keras.ops.convert_to_numpy(each(x)) for each in members])
    assert np.allclose(model(x), combine(outputs, "geometric"), atol=1e-5)
    assert len(model.trainable_variables) == 2 * len(members[0].trainable_variables)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mean", "vote"])
def test_int8_file_of_one_model(trained, method, tmp_path):
    other = small_model()
    other.set_weights([1.05 * each for each in trained.get_weights()])
    x, y = blobs(60, seed=5)
    third = small_model()
    third.set_weights(trained.get_weights())
    model = as_one_model([trained, other, third], method)
    file = tfopt.export_tflite(model, tmp_path / "m.tflite", quantization="int8", calibration_data=x)
    assert file.float_ops == file.flex_ops == []
    found = tfopt.verify_tflite(model, tmp_path / "m.tflite", (x, y))
    assert found.argmax_agreement > 0.95


@pytest.mark.slow
def test_the_mean_is_quantized_too(trained, tmp_path):
    model = tfopt.quantize_aware(as_one_model([trained, trained], weights=[0.3, 0.7]))
    x, y = blobs(60, seed=5)
    tfopt.calibrate(model, x)
    file = tfopt.export_tflite(model, tmp_path / "m.tflite")
    assert file.float_ops == []
    assert tfopt.verify_tflite(model, tmp_path / "m.tflite", (x, y)).argmax_agreement > 0.98


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def two_outputs():
    inputs = keras.Input((4,))
    return keras.Model(inputs, [keras.layers.Dense(1)(inputs), keras.layers.Dense(1)(inputs)])


@pytest.mark.parametrize(
    ("make", "method", "message"),
    [
        (lambda: [classifier()], "mean", "two members or more, received 1"),
        (lambda: classifier(), "mean", "two members or more, received 1"),
        (lambda: [], "mean", "two members or more, received 0"),
        (lambda: [classifier(), classifier()], "median", "method must be one of mean, geometric, vote"),
        (lambda: [classifier(), classifier(classes=4)], "mean", "different outputs"),
        (lambda: [classifier(), classifier(shape=(5,))], "mean", "different inputs"),
        (lambda: [classifier(), classifier(None, loss=CROSS(from_logits=True))], "mean", "different task"),
        (lambda: [classifier(None), classifier(None)], "mean", "nothing tells whether it gives logits"),
        (lambda: [classifier(None, loss="mse")] * 2, "vote", "is for classes, and the members give plain numbers"),
        (lambda: [classifier(None, loss="mse")] * 2, "geometric", "take the mean"),
        (lambda: [two_outputs(), two_outputs()], "mean", "has 2 outputs"),
        (lambda: [Subclassed(), Subclassed()], "mean", "subclassed model"),
        (lambda: [tfopt.quantize_aware(classifier())] * 2, "mean", "quantization-aware: make one model of float"),
        (
            lambda: [keras.Sequential([keras.Input((4,)), classifier()]) for _ in range(2)],
            "geometric",
            "logits of .* are out of reach",
        ),
    ],
)
def test_no_ensemble(make, method, message):
    with pytest.raises(ValueError, match=message):
        as_one_model(make(), method)


def test_files_are_no_members():
    with pytest.raises(TypeError, match="must be a Keras model, received str"):
        as_one_model(["a.keras", "b.keras"])


# Members


def test_fresh_members_differ_where_they_learn():
    scale = keras.layers.Normalization(name="scale")
    scale.adapt(X)
    frozen = keras.layers.Dense(4, name="frozen", trainable=False)
    layers = [scale, frozen, keras.layers.BatchNormalization(), keras.layers.Dense(3, "softmax", name="out")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.layers[2].moving_mean.assign(np.ones(4))
    copy = fresh(model)
    assert np.allclose(copy.layers[0](X), scale(X))
    assert np.array_equal(copy.layers[1].kernel, frozen.kernel)
    assert not copy.layers[1].trainable
    assert not np.array_equal(copy.layers[3].kernel, model.layers[3].kernel)
    assert np.array_equal(copy.layers[2].moving_mean, np.zeros(4))


def test_fixed_seeds_make_no_members():
    init = keras.initializers.GlorotUniform(seed=1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer=init)])
    with pytest.raises(ValueError, match="begins with the same weights each time"):
        fresh(model)


def test_a_boosted_member_learns_the_residual():
    """With a squared error: what is left of the targets after the first one, and nothing of that one changes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 2)).astype("float32")
    y = (x @ [[1.0], [2.0]] + 3).astype("float32")

    def linear(name):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name=name)])
        model.compile(keras.optimizers.SGD(0.3), "mse", jit_compile=False)
        return model

    first = linear("a")
    first.set_weights([np.array([[1.0], [0.0]]), np.array([1.0])])
    model = boosted(parts_of(boosted([], first)), linear("b"), shrinkage=0.5)
    model.optimizer.learning_rate = 0.3
    model.fit(np.tile(x, (60, 1)), np.tile(y, (60, 1)), batch_size=64, shuffle=False, verbose=0)
    one, two = (part.get_weights() for part in parts_of(model))
    assert np.allclose(one[0].ravel(), [1, 0])
    assert np.allclose(one[1], 1)
    assert np.allclose(two[0].ravel(), [0, 4], atol=0.05)
    assert np.allclose(two[1], 4, atol=0.05)


def test_boosted_members_that_cannot_be_added():
    with pytest.raises(ValueError, match="cannot be added"):
        boosted(parts_of(boosted([], classifier())), classifier(classes=4))
    with pytest.raises(ValueError, match="shrinkage"):
        boosted([], classifier(), shrinkage=0)
