"""The architectures: as published, at small sizes, and through every technique."""

import re

import keras
import numpy as np
import pytest

import tfopt
from tests.conftest import quick
from tfopt.train.blocks import scaled, strides_for

IMAGE = (16, 16, 3)
# What makes each, of inputs that it takes, small.
MODELS = {
    "cnn": lambda: tfopt.models.cnn(IMAGE, 4, filters=8),
    "ds_cnn": lambda: tfopt.models.ds_cnn(IMAGE, 4, width=0.25),
    "resnet8": lambda: tfopt.models.resnet8(IMAGE, 4, width=0.5),
    "resnet20": lambda: tfopt.models.resnet20(IMAGE, 4, width=0.5),
    "mobilenet_v2": lambda: tfopt.models.mobilenet_v2(IMAGE, 4, width=0.25, head=64, dropout=0.1),
    "mobilenet_v3_small": lambda: tfopt.models.mobilenet_v3(IMAGE, 4, width=0.25),
    "mobilenet_v3_large": lambda: tfopt.models.mobilenet_v3(IMAGE, 4, "large", width=0.25),
    "efficientnet_lite": lambda: tfopt.models.efficientnet_lite(IMAGE, 4, width=0.25, depth=0.5),
    "text_cnn": lambda: tfopt.text.text_cnn((12,), 4, tokens=20, dimensions=8, filters=8),
    "text_gru": lambda: tfopt.text.text_gru((6,), 4, tokens=20, dimensions=8, units=8),
    "conv1d_net": lambda: tfopt.signals.conv1d_net((32, 6), 4, filters=8),
}
QUICK = ("conv1d_net",)


def examples(model, size=24):
    """Inputs in [0, 1], or tokens, and labels."""
    rng, spec = np.random.default_rng(0), model.inputs[0]
    shape = (size, *spec.shape[1:])
    x = rng.integers(0, 20, shape) if spec.dtype == "int32" else rng.random(shape)
    return x.astype(spec.dtype), np.arange(size) % 4


def one_step(model, x, y):
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    return model.train_on_batch(x, y)


@pytest.mark.parametrize("name", quick(MODELS, *QUICK))
def test_each_trains_loses_channels_and_becomes_an_int8_file(name, tmp_path):
    model = MODELS[name]()
    x, y = examples(model)
    before = [each.numpy() for each in model.trainable_variables]
    assert np.isfinite(one_step(model, x, y))
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.trainable_variables, strict=True)]
    assert all(moved)
    small = tfopt.prune_channels(model, ratio=0.5, multiple=1)
    assert small.count_params() < model.count_params()
    assert np.isfinite(one_step(small, x, y))
    aware = tfopt.quantize_aware(small)
    tfopt.calibrate(aware, (x, y))
    assert np.isfinite(one_step(aware, x, y))
    file = tfopt.export_tflite(aware, tmp_path / "m.tflite")
    assert not file.float_ops
    assert not file.flex_ops
    assert tfopt.float_islands(aware) == {}


@pytest.mark.parametrize("name", quick(MODELS, "text_gru"))
def test_the_seed_gives_the_weights(name):
    made = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        made.append(np.concatenate([each.numpy().ravel() for each in MODELS[name]().trainable_variables]))
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


@pytest.mark.parametrize(
    "name", quick(["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"], "mobilenet_v3_small")
)
@pytest.mark.parametrize("width", [0.75, pytest.param(1.0, marks=pytest.mark.slow)])
def test_at_full_size_they_are_those_of_keras(name, width):
    # The same weights, by shape; Keras' V3 has convolutions of 1 x 1 in place of dense layers, another order, and at
    # other widths a first convolution of 16 filters still.
    peers = {
        "mobilenet_v2": (tfopt.models.mobilenet_v2, "MobileNetV2", {}),
        "mobilenet_v3_small": (tfopt.models.mobilenet_v3, "MobileNetV3Small", {"include_preprocessing": False}),
        "mobilenet_v3_large": (tfopt.models.mobilenet_v3, "MobileNetV3Large", {"include_preprocessing": False}),
    }
    make, peer, options = peers[name]
    ours = make((224, 224, 3), 10, width=width, **({"size": "large"} if "large" in name else {}))
    theirs = getattr(keras.applications, peer)((224, 224, 3), width, classes=10, weights=None, **options)
    shapes = [sorted(tuple(s for s in each.shape if s != 1) for each in model.weights) for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "depth", "parameters"),
    # Millions, as published: 4.7, 5.4, 6.1, 8.2, 13.0.
    [
        (1.0, 1.0, 4_652_008),
        (1.0, 1.1, 5_416_680),
        (1.1, 1.2, 6_092_072),
        (1.2, 1.4, 8_197_096),
        (1.4, 1.8, 13_006_568),
    ],
)
def test_efficientnet_lite_has_the_published_weights(width, depth, parameters):
    model = tfopt.models.efficientnet_lite((224, 224, 3), 1000, width, depth)
    assert sum(int(np.prod(each.shape)) for each in model.trainable_variables) == parameters


@pytest.mark.parametrize(
    ("size", "last"),
    [
        (28, 4),
        (96, 3),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((32, 4), (48, 3), (64, 4), (224, 7))),
    ],
)
def test_strides_suit_the_image(size, last):
    model = tfopt.models.mobilenet_v2((size, size, 3), 4, width=0.35, head=16)
    assert model.get_layer("head_conv").output.shape[1:3] == (last, last)
    # The shortcuts are those of the large one.
    assert sum(isinstance(each, keras.layers.Add) for each in model.layers) == 10


def test_resnets_have_the_depth_of_their_name():
    for name, depth in (("resnet8", 8), ("resnet20", 20)):
        model = getattr(tfopt.models, name)((32, 32, 3), 10)
        counted = [
            each
            for each in model.layers
            if isinstance(each, keras.layers.Conv2D | keras.layers.Dense) and not each.name.endswith("shortcut")
        ]
        assert len(counted) == depth
        widths = [each.filters for each in counted[:-1]]
        blocks = (depth - 2) // 6
        assert widths == [16] * (1 + 2 * blocks) + [32] * 2 * blocks + [64] * 2 * blocks


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfopt.models.mobilenet_v2((12,), 3), "takes images of one size, (height, width, channels)"),
        (lambda: tfopt.models.efficientnet_lite((None, None, 3), 3), "received (None, None, 3)"),
        (lambda: tfopt.models.mobilenet_v3(IMAGE, 3, "tiny"), 'size must be "small" or "large", received \'tiny\''),
        (lambda: tfopt.models.resnet20(IMAGE, 3, width=0), "width must be above 0, received 0"),
        (lambda: tfopt.models.efficientnet_lite(IMAGE, 3, depth=-1.0), "depth must be above 0, received -1.0"),
        (lambda: tfopt.text.text_gru((4, 4), 3), "text_gru takes rows of tokens"),
    ],
)
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_widths_are_rounded_as_in_the_papers():
    for filters in (16, 24, 32, 64, 96, 160, 320):
        for width in (0.25, 0.35, 0.5, 0.75, 1.3, 1.4):
            found = scaled(filters, width)
            assert found % 8 == 0
            assert found >= 0.9 * filters * width
            assert found <= max(8, filters * width + 8)
    assert strides_for((8, 96, 1), [2, 2, 1]) == [1, 2, 1]


@pytest.mark.slow
def test_a_chain_begins_with_any(data, tmp_path):
    options = {"width": 0.1, "head": 16}
    work = tfopt.run(
        [tfopt.Build(tfopt.models.mobilenet_v2, options), tfopt.Train(1)], tfopt.Work(None, data, tmp_path)
    )
    assert work.report.stages[0].repr == f"Build(factory=tfopt.train.mobile.mobilenet_v2, options={options})"
    assert np.isfinite(work.report.stages[-1].history["val_loss"]).all()
