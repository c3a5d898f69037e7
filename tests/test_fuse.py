"""Fusing: the same outputs from fewer layers, whatever the kind and the structure; what stays, and why."""

import keras
import numpy as np
import pytest
from keras import layers

import tfopt
from tests.conftest import quick, small_model
from tests.test_channels import randomized
from tests.test_models import MODELS
from tfopt.clusters import Clustered
from tfopt.fuse import Fuse, fuse_layers
from tfopt.fuse.model import compare

NORM = layers.BatchNormalization


def sequence(shape, *parts):
    return randomized(keras.Sequential([keras.Input(shape), *parts]))


def kinds(model):
    inside = model._flatten_layers(include_self=False)
    return [type(each).__name__ for each in inside if not isinstance(each, layers.InputLayer)]


def outputs(model, x):
    return keras.tree.map_structure(np.asarray, model(x, training=False))


def fused(model, rtol=1e-4):
    """The result, whose outputs are compared here once more, on other numbers."""
    before = [each.numpy().copy() for each in model.variables]
    found = fuse_layers(model)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4, *model.inputs[0].shape[1:])).astype("float32")
    old, new = outputs(model, x), outputs(found.model, x)
    np.testing.assert_allclose(new, old, rtol=0, atol=rtol * np.abs(old).max())
    assert np.abs(old).max() > 1e-3
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))
    return found


IMAGE, SERIES, VOLUME = (9, 8, 4), (12, 4), (5, 5, 5, 2)
BEFORE = {
    "dense": ((6,), layers.Dense(5)),
    "dense of images": (IMAGE, layers.Dense(5, use_bias=False)),
    "conv1d": (SERIES, layers.Conv1D(6, 3, padding="causal")),
    "conv2d": (IMAGE, layers.Conv2D(6, 3, 2, padding="same", use_bias=False)),
    "grouped": (IMAGE, layers.Conv2D(6, 3, groups=2)),
    "conv3d": (VOLUME, layers.Conv3D(4, 2)),
    "transposed 1d": (SERIES, layers.Conv1DTranspose(6, 3, 2)),
    "transposed": (IMAGE, layers.Conv2DTranspose(6, 3, 2, use_bias=False)),
    "transposed 3d": (VOLUME, layers.Conv3DTranspose(3, 2)),
    "depthwise 1d": (SERIES, layers.DepthwiseConv1D(3, depth_multiplier=2)),
    "depthwise": (IMAGE, layers.DepthwiseConv2D(3, depth_multiplier=3, padding="same", use_bias=False)),
    "separable 1d": (SERIES, layers.SeparableConv1D(6, 3)),
    "separable": (IMAGE, layers.SeparableConv2D(6, 3, depth_multiplier=2, use_bias=False)),
}


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False, "epsilon": 0.1}], ids=str)
@pytest.mark.parametrize("name", BEFORE)
def test_a_norm_goes_into_the_layer_before_it(name, options):
    shape, layer = BEFORE[name]
    layer = type(layer).from_config(layer.get_config())
    found = fused(sequence(shape, layer, NORM(name="norm", **options), layers.ReLU()))
    assert found.fused == {"norm": layer.name}
    assert kinds(found.model) == [type(layer).__name__, "ReLU"]
    assert found.skipped == []
    assert [each.path for each in layer.variables if each.name != "bias"] == [
        each.path for each in found.model.layers[0].variables if each.name != "bias"
    ]


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((6,), layers.Dense(5)),
        (IMAGE, layers.Conv2D(6, 3, 2, use_bias=False, activation="relu")),
        (IMAGE, layers.Conv2D(6, 1, padding="same")),
        (SERIES, layers.Conv1D(6, 3, dilation_rate=2)),
        (IMAGE, layers.DepthwiseConv2D(3, depth_multiplier=2)),
    ],
    ids=lambda each: getattr(each, "name", str(each)),
)
def test_a_norm_goes_into_the_layer_behind_it_where_there_is_none_before(shape, layer):
    layer = type(layer).from_config(layer.get_config())
    found = fused(sequence(shape, NORM(name="norm"), layer))
    assert found.fused == {"norm": layer.name}
    assert kinds(found.model) == [type(layer).__name__]


@pytest.mark.parametrize(
    ("shape", "first", "second"),
    [
        ((9,), layers.Dense(8, name="one"), layers.Dense(4, activation="tanh", name="two")),
        ((9,), layers.Dense(8, use_bias=False, name="one"), layers.Dense(4, use_bias=False, name="two")),
        (SERIES, layers.Dense(16, name="one"), layers.Dense(4, name="two")),
        (
            IMAGE,
            layers.Conv2D(24, 3, 2, padding="same", name="one"),
            layers.Conv2D(8, 1, name="two", activation="relu"),
        ),
        (IMAGE, layers.Conv2D(24, 1, use_bias=False, name="one"), layers.Conv2D(8, 3, 2, padding="same", name="two")),
        (IMAGE, layers.Conv2D(24, 1, name="one"), layers.Conv2D(8, 3, dilation_rate=2, name="two")),
        (SERIES, layers.Conv1D(24, 3, padding="causal", name="one"), layers.Conv1D(2, 1, name="two")),
        (VOLUME, layers.Conv3D(24, 2, name="one"), layers.Conv3D(2, 1, name="two")),
    ],
)
def test_linear_layers_become_one(shape, first, second):
    first, second = (type(each).from_config(each.get_config()) for each in (first, second))
    model = sequence(shape, first, second)
    found = fused(model)
    assert found.fused == {"one": "two"}
    assert [each.name for each in found.model.layers] == ["two"]
    assert found.model.layers[0].activation is second.activation
    kernels = [sum(each.kernel.numpy().size for each in its.layers) for its in (model, found.model)]
    assert kernels[1] <= kernels[0]


def test_rounds_go_on_until_nothing_is_left():
    model = sequence(
        IMAGE,
        layers.Conv2D(16, 3, use_bias=False, name="a"),
        NORM(name="n1"),
        layers.Conv2D(8, 1, use_bias=False, name="b"),
        NORM(name="n2"),
        layers.ReLU(),
    )
    found = fused(model)
    assert found.fused == {"n1": "a", "n2": "b", "a": "b"}
    assert kinds(found.model) == ["Conv2D", "ReLU"]


def test_a_bottleneck_that_saves_work_stays():
    model = sequence((32,), layers.Dense(4, name="narrow"), layers.Dense(32, name="wide"), NORM(name="norm"))
    found = fused(model)
    assert found.fused == {"norm": "wide"}
    (skipped,) = found.skipped
    assert skipped["layer"] == "narrow"
    assert "one layer would have 1,024 weights in its kernel, and cost more than the two with 256" in skipped["reason"]


class Own(NORM):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


def functional(make, shape=IMAGE):
    x = keras.Input(shape)
    return randomized(keras.Model(x, make(x)))


def several_readers(x):
    y = layers.Conv2D(4, 3, name="conv")(x)
    return layers.Add()([y, NORM(name="norm")(y)])


def shared_conv(x):
    conv = layers.Conv2D(4, 3, padding="same", name="conv")
    return NORM(name="norm")(conv(x)) + layers.ReLU()(conv(x * 2.0))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda x: NORM(name="norm")(layers.Conv2D(4, 3, activation="relu", name="conv")(x)),
            "'conv' has an activation",
        ),
        (lambda x: NORM(name="norm")(layers.ReLU(name="relu")(x)), "follows 'relu' (ReLU), which has no weights"),
        (lambda x: layers.ReLU()(NORM(name="norm")(x)), "it follows an input of the model"),
        (lambda x: layers.Conv2D(4, 3, padding="same", name="conv")(NORM(name="norm")(x)), "'conv' pads with zeros"),
        (lambda x: layers.Conv2D(4, 3, groups=2, name="conv")(NORM(name="norm")(x)), "'conv' is grouped"),
        (several_readers, "what 'conv' makes is read elsewhere too"),
        (shared_conv, "'conv' is shared, and"),
        (lambda x: NORM(name="norm")(layers.Conv2D(4, 3)(x), training=True), "called with training=True"),
        (lambda x: NORM(axis=1, name="norm")(layers.Conv2D(4, 3, name="conv")(x)), "normalizes axis 1, where 'conv'"),
        (lambda x: Own(name="norm")(layers.Conv2D(4, 3)(x)), "it is a Own, which computes in its own way"),
        (
            lambda x: NORM(name="norm")(layers.Conv2D(4, 3, kernel_constraint="non_neg", name="conv")(x)),
            "'conv' has a kernel_constraint",
        ),
    ],
)
def test_what_stays_is_told_with_the_reason(make, reason):
    with pytest.raises(ValueError, match="can be fused") as caught:
        fuse_layers(functional(make))
    assert reason in str(caught.value)
    # Beside something that can be fused, it stays and the rest goes on.
    found = fuse_layers(
        functional(lambda x: layers.Dense(2, name="last")(NORM(name="n")(layers.Dense(3)(layers.ReLU()(make(x))))))
    )
    assert "n" in found.fused
    assert [each["layer"] for each in found.skipped if reason in each["reason"]] == ["norm"]


def nested():
    inside = keras.Input(IMAGE)
    block = keras.Model(inside, layers.Conv2D(4, 3, padding="same", name="conv")(inside), name="block")
    only_norm = keras.Sequential([keras.Input(IMAGE), NORM(name="inner_norm")], name="only")
    x = keras.Input(IMAGE)
    # Called twice, each time with the same norm behind it; a norm that is all of a model.
    norm = NORM(name="norm")
    y = layers.ReLU()(norm(block(x))) + norm(block(x * 0.5))
    return randomized(keras.Model(x, layers.GlobalAveragePooling2D()(only_norm(layers.Conv2D(4, 1, name="last")(y)))))


def test_nested_models_and_layers_shared_in_step():
    model = nested()
    found = fused(model)
    assert found.fused == {"norm": "conv", "inner_norm": "last"}
    assert isinstance(found.model.get_layer("block"), keras.Model)
    assert isinstance(found.model.get_layer("only"), keras.Sequential)
    assert "BatchNormalization" not in kinds(found.model)


def test_several_inputs_and_outputs_by_name_and_words():
    a, b = keras.Input((6,), name="a"), keras.Input((3,), dtype="int32", name="words")
    y = NORM(name="norm")(layers.Dense(4, name="dense")(a))
    z = layers.Embedding(7, 4)(b)
    model = randomized(keras.Model({"a": a, "words": b}, {"y": y, "z": layers.Flatten()(z) + 1.0}))
    found = fuse_layers(model)
    x = {"a": np.ones((2, 6), "float32"), "words": np.array([[0, 6, 3]] * 2)}
    old, new = outputs(model, x), outputs(found.model, x)
    assert set(new) == {"y", "z"}
    np.testing.assert_allclose(new["y"], old["y"], rtol=1e-4)
    assert np.array_equal(new["z"], old["z"])


@pytest.mark.parametrize("name", quick(MODELS, "resnet8", "conv1d_net"))
def test_the_architectures(name, tmp_path):
    model = randomized(MODELS[name]())
    if not any(isinstance(each, NORM) for each in model.layers):
        with pytest.raises(ValueError, match="nothing in .* can be fused"):
            fuse_layers(model)
        return
    found = fused(model)
    assert "BatchNormalization" not in kinds(found.model)
    found.model.save(tmp_path / "m.keras")
    x = np.ones((1, *model.inputs[0].shape[1:]), "float32")
    assert np.array_equal(outputs(keras.models.load_model(tmp_path / "m.keras"), x), outputs(found.model, x))


def test_the_loss_and_what_is_frozen_stay_and_it_trains(data):
    model = randomized(small_model())
    model.get_layer("conv").trainable = False
    model.get_layer("hidden").bias.trainable = False
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    found = fused(model)
    assert found.model.loss == model.loss
    assert not found.model.get_layer("conv").trainable
    assert [each.trainable for each in found.model.get_layer("hidden").weights] == [True, False]
    before = found.model.get_layer("conv").kernel.numpy()
    found.model.fit(data.train, epochs=1, verbose=0, shuffle=False)
    assert np.array_equal(before, found.model.get_layer("conv").kernel)


def test_outputs_that_differ_are_an_error():
    model = sequence((6,), layers.Dense(5), NORM())
    other = fuse_layers(model).model
    other.layers[0].kernel.assign(other.layers[0].kernel * 1.01)
    with pytest.raises(RuntimeError, match="differs by 0.0"):
        compare(model, other)
    model.layers[-1].moving_mean.assign(np.full(5, np.nan))
    with pytest.raises(RuntimeError, match="differs by nan"):
        fuse_layers(model)


def test_quantized_and_16_bit_models_are_refused(data):
    with pytest.raises(ValueError, match="Fuse before QuantizeAware"):
        fuse_layers(tfopt.quantize_aware(small_model()))
    with pytest.raises(ValueError, match="computes in bfloat16"):
        fuse_layers(sequence((6,), layers.Dense(5, dtype="mixed_bfloat16"), NORM()))


def test_zeros_stay_and_clusters_are_refused(data, tmp_path):
    fit = tfopt.Fit(3e-3)
    prune = tfopt.Prune(0.5, 1, tfopt.ConstantSparsity(0.5, 2), fit=fit)
    work = tfopt.run([prune, Fuse(), tfopt.Train(1, fit)], tfopt.Work(small_model(), data, tmp_path))
    assert [type(each).__name__ for each in work.invariants] == ["Sparsity"]
    assert "small/conv/kernel" in {**work.invariants[0].targets} or "conv/kernel" in work.invariants[0].targets
    assert (work.model.get_layer("conv").kernel.numpy() == 0).mean() >= 0.5
    entry = work.report.stages[1]
    assert entry.changed == ["bn into conv"]
    assert entry.metrics["after"] == pytest.approx(entry.metrics["before"], rel=1e-3)
    with pytest.raises(ValueError, match="put Fuse before Cluster"):
        tfopt.validate([tfopt.Cluster(8, 1), Fuse()], tfopt.Work(small_model(), data, tmp_path / "clusters"))
    # Layers whose weights are not scaled may have clusters.
    hidden = tfopt.Cluster(8, 1, layers=["hidden"])
    tfopt.validate([hidden, Fuse()], tfopt.Work(small_model(), data, tmp_path / "clusters"))


def test_no_product_is_made_of_weights_under_a_promise():
    model = sequence((9,), layers.Dense(8, name="one"), layers.Dense(4, name="two"), NORM(name="norm"))
    path = model.get_layer("one").kernel.path
    for promise in (tfopt.Sparsity({path: 0.0}), Clustered({path: 100})):
        found = fuse_layers(model, keep=[promise])
        assert found.fused == {"norm": "two"}
        assert "promise about" in found.skipped[0]["reason"]


@pytest.mark.slow
def test_before_quantization_in_a_chain(data, tmp_path):
    fit = tfopt.Fit(3e-3)
    stages = [tfopt.Train(1, fit), Fuse(), tfopt.QuantizeAware(1, fit=fit), tfopt.ExportTFLite(max_drop=1.0)]
    work = tfopt.run(stages, tfopt.Work(small_model(), data, tmp_path))
    assert not work.report.artefacts["tflite"]["float_ops"]
    with pytest.raises(ValueError, match="Fuse before QuantizeAware"):
        tfopt.validate([tfopt.QuantizeAware(1), Fuse()], tfopt.Work(small_model(), data, tmp_path / "wrong"))
