"""Augmentations: their maths against Pillow, and the same pictures whatever the batch, the order or the worker."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageEnhance, ImageOps

import tfopt
from tests.conftest import blobs, quick, small_model
from tfopt import augment
from tfopt.augment import tone
from tfopt.augment.base import in_float
from tfopt.augment.policies import CHANGES, Ranges, change
from tfopt.augment.seeds import fold, integers, uniform, uniforms
from tfopt.augment.warp import matrices, warp

OPERATIONS = {
    "flip": augment.Flip(0.5, 0.5),
    "crop": augment.Crop(5, 7),
    "pad_crop": augment.PadCrop(2),
    "reflected": augment.PadCrop(2, "reflect"),
    "resize": augment.Resize(6, 9),
    "affine": augment.Affine(30.0, 0.2, 10.0, (0.8, 1.2)),
    "nearest": augment.Affine(30.0, interpolation="nearest", fill=0.5),
    "erase": augment.Erase(1.0),
    "brightness": augment.Brightness(0.5),
    "contrast": augment.Contrast(0.5),
    "saturation": augment.Saturation(0.5),
    "hue": augment.Hue(0.3),
    "rand": augment.RandAugment(3, 0.7),
    "trivial": augment.TrivialAugment(),
    "augmix": augment.AugMix(),
}
# With these nothing changes.
STILL = [
    augment.Flip(0.0),
    augment.Crop(8, 10),
    augment.PadCrop(0),
    augment.Resize(8, 10),
    augment.Affine(),
    augment.Erase(0.0),
    augment.Brightness(0.0),
    augment.Contrast(0.0),
    augment.Saturation(0.0),
    augment.Hue(0.0),
    augment.RandAugment(0),
    augment.RandAugment(magnitude=0.0),
    augment.TrivialAugment(0.0),
    augment.AugMix(magnitude=0.0),
]
images = arrays.arrays("uint8", (3, 8, 10, 3))
SEEDS = np.array([5, -7, 2**40])


def picture(height=20, width=24):
    """Smooth, with some noise: what nearest and rounding cannot hide."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype("uint8")).resize((width, height), Image.BICUBIC)
    return np.clip(np.asarray(coarse).astype(int) + rng.integers(-20, 20, (height, width, 3)), 0, 255).astype("uint8")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("name", OPERATIONS)
@given(x=images)
@settings(max_examples=3, deadline=None)
def test_type_range_and_each_image_by_itself(name, dtype, x):
    operation = OPERATIONS[name]
    x = x if dtype == "uint8" else (x / 255.0).astype("float32")
    made = operation(x, SEEDS).numpy()
    assert made.dtype == dtype
    assert made.ndim == 4
    assert len(made) == 3
    assert made.min() >= 0
    assert made.max() <= (255 if dtype == "uint8" else 1.0 + 1e-6)
    assert np.array_equal(operation(x, SEEDS).numpy(), made)
    alone = operation(x[1], SEEDS[1]).numpy()
    # Float sums over a batch may be added up in another order.
    assert np.array_equal(alone, made[1]) if dtype == "uint8" else np.allclose(alone, made[1], atol=1e-5)


def test_light_of_an_image_is_to_the_last_bit_whatever_else_is_in_the_batch():
    rng = np.random.default_rng(0)
    x = tf.constant(rng.integers(0, 256, (33, 61, 67, 3)).astype("float32"))
    found = tone._mean_light(x).numpy()
    exact = x.numpy().astype("float64").mean((1, 2)) @ np.array(tone._LUMA)
    np.testing.assert_array_equal(found, exact.astype("float32"))
    for size in (1, 2, 5, 8, 32):
        np.testing.assert_array_equal(tone._mean_light(x[:size]), found[:size])


@pytest.mark.parametrize("operation", STILL, ids=repr)
@given(x=images)
@settings(max_examples=5, deadline=None)
def test_nothing_at_strength_zero(operation, x):
    assert np.array_equal(operation(x, SEEDS), x)
    floats = (x / 255.0).astype("float32")
    np.testing.assert_allclose(operation(floats, SEEDS), floats, atol=2e-6)


@pytest.mark.parametrize("name", OPERATIONS)
def test_seeds_change_the_result(name):
    x = np.stack([picture()] * 40)
    made = OPERATIONS[name](x, np.arange(40)).numpy()
    different = len({each.tobytes() for each in made})
    assert different == 1 if name == "resize" else different >= (4 if name == "flip" else 8)


def test_graphs_draw_the_same_numbers():
    seeds, ranges = tf.constant([3, -9], tf.int64), ((0, 1), (-2, 2), (0, 5))
    alone = [uniform(seeds, stream, *limits) for stream, limits in enumerate(ranges)]
    for each in (uniforms(seeds, *ranges), tf.function(lambda x: uniforms(x, *ranges))(seeds)):
        np.testing.assert_array_equal(tf.stack(each), tf.stack(alone))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("wide", [7, 8, 22, 23, 40, 263, 300])
def test_windows_are_where_their_seeds_say(wide, dtype):
    x, seeds = np.random.default_rng(0).integers(0, 256, (30, 9, wide, 3)).astype(dtype), np.arange(30)
    made = augment.Crop(6, 7)(x, seeds)
    assert made.shape == (30, 6, 7, 3)
    top, left = integers(seeds, 0, 4).numpy(), integers(seeds, 1, wide - 6).numpy()
    assert left.max() >= (wide - 6) // 2
    for number, (row, column) in enumerate(zip(top, left, strict=True)):
        assert np.array_equal(made[number], x[number, row : row + 6, column : column + 7])
    of_unknown_size = tf.function(
        augment.Crop(6, 7),
        input_signature=[tf.TensorSpec((None, None, None, 3), dtype), tf.TensorSpec((None,), tf.int64)],
    )
    assert np.array_equal(of_unknown_size(x, seeds), made)


@pytest.mark.parametrize("operation", [augment.Crop(5, 6), augment.PadCrop(4), augment.PadCrop(3, "reflect")], ids=repr)
def test_windows_have_gradients_and_both_types_the_same(operation):
    x, seeds = np.random.default_rng(0).integers(1, 256, (9, 12, 10, 3)).astype("float32"), np.arange(9)
    with tf.GradientTape() as tape:
        images = tf.constant(x)
        tape.watch(images)
        made = operation(images, seeds)
        square = tf.reduce_sum(made**2) / 2
    assert np.array_equal(made, operation(x.astype("uint8"), seeds))
    # Each pixel's own value as often as it is in the window.
    counts = tape.gradient(square, images) / x
    assert np.array_equal(counts, np.round(counts))
    assert np.sum(counts * x) == np.sum(made)


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tone.brighten, ImageEnhance.Brightness),
        (tone.contrast, ImageEnhance.Contrast),
        (tone.saturate, ImageEnhance.Color),
        (tone.sharpen, ImageEnhance.Sharpness),
    ],
)
def test_light_and_colour_are_pillows(ours, theirs, factor):
    """Within 1: Pillow drops fractions, we round."""
    x = picture()
    made = in_float(tf.constant(x[None]), lambda each: ours(each, tf.constant([factor])))[0]
    expected = np.asarray(theirs(Image.fromarray(x)).enhance(factor))
    assert np.abs(made.numpy().astype(int) - expected).max() <= (1 if factor != 1.0 else 0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tone.autocontrast, ImageOps.autocontrast),
        (tone.equalize, ImageOps.equalize),
        (lambda x: tone.posterize(x, tf.constant([3])), lambda x: ImageOps.posterize(x, 3)),
        (lambda x: tone.solarize(x, tf.constant([100.0])), lambda x: ImageOps.solarize(x, 100)),
    ],
)
@given(x=arrays.arrays("uint8", (7, 9, 3)))
@settings(max_examples=20, deadline=None)
def test_bytes_are_pillows(ours, theirs, x):
    for each in (x, picture(), np.zeros_like(x)):
        np.testing.assert_array_equal(ours(tf.constant(each[None]))[0], theirs(Image.fromarray(each)))


def test_hue_is_tensorflows():
    x = tf.constant(picture() / 255.0, tf.float32)
    made = tone.shift_hue(x[None], tf.constant([0.17]))[0]
    np.testing.assert_allclose(made, tf.image.adjust_hue(x, 0.17), atol=1e-5)


@pytest.mark.parametrize("degrees", [20.0, -50.0, 180.0])
def test_turns_are_pillows(degrees):
    x = picture()
    transform = matrices((20, 24), degrees=tf.constant([degrees]))
    nearest = warp(tf.constant(x[None]), transform, "nearest")[0]
    np.testing.assert_array_equal(nearest, Image.fromarray(x).rotate(degrees, Image.NEAREST))
    bilinear = warp(tf.constant(x[None]), transform)[0].numpy().astype(int)
    expected = np.asarray(Image.fromarray(x).rotate(degrees, Image.BILINEAR)).astype(int)
    # At the border Pillow repeats the last pixels, where we mix with what comes in from outside.
    assert np.mean(np.abs(bilinear - expected) > 1) < 0.12


def test_shifts_and_shears_are_pillows():
    x = picture()
    moved = warp(tf.constant(x[None]), matrices((20, 24), shift=(tf.constant([3.0]), tf.constant([-2.0]))), "nearest")
    np.testing.assert_array_equal(moved[0], Image.fromarray(x).transform((24, 20), Image.AFFINE, (1, 0, -3, 0, 1, 2)))
    sheared = warp(tf.constant(x[None]), matrices((20, 24), shear=(tf.constant([0.4]), 0.0)), "nearest")
    middle = 0.4 * (20 - 1) / 2
    expected = Image.fromarray(x).transform((24, 20), Image.AFFINE, (1, 0.4, -middle - 0.2, 0, 1, 0))
    assert np.mean(sheared[0].numpy() != np.asarray(expected)) < 0.02


@pytest.mark.parametrize("fill", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    ("change", "upright"),
    [
        ({"degrees": 37.0, "shear": (0.3, -0.2)}, False),
        ({"shift": (2.3, -4.6), "zoom": 1.3}, False),
        ({"shift": (2.3, -4.6), "zoom": 1.3}, True),
        ({"zoom": 0.4}, True),
        ({"shift": (-3.0, 5.0)}, True),
        ({"shift": (90.0, 0.0)}, True),
    ],
)
def test_bilinear_moves_are_tensorflows(change, upright, dtype, fill):
    x = tf.constant(picture()[None])
    x = x if dtype == "uint8" else tf.cast(x, tf.float32) / 255.0
    transform = matrices((20, 24), **{**change, "degrees": tf.constant([change.get("degrees", 0.0)])})
    expected = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(x, tf.float32),
        transforms=transform,
        output_shape=(20, 24),
        fill_value=fill,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    made = tf.cast(warp(x, transform, fill=fill, upright=upright), tf.float32)
    # Bytes are rounded, so they lie at most a half away.
    np.testing.assert_allclose(made, expected, atol=0.501 if dtype == "uint8" else 3e-5)


@pytest.mark.parametrize(
    "operation", [augment.Affine(30.0, 0.2, 10.0), augment.Affine(shift=0.2, zoom=(0.7, 1.4))], ids=repr
)
def test_moves_are_to_the_last_bit_whatever_else_is_in_the_batch(operation):
    x = np.random.default_rng(0).random((40, 17, 23, 3), "float32")
    made = operation(x, np.arange(40)).numpy()
    for size in (1, 2, 7, 33):
        np.testing.assert_array_equal(operation(x[:size], np.arange(size)), made[:size])
    np.testing.assert_array_equal(operation(x[39], 39), made[39])


def test_zoom_keeps_the_middle():
    x = np.zeros((1, 9, 9, 1), "uint8")
    x[0, 4, 4] = 200
    grown = augment.Affine(zoom=(3.0, 3.0), interpolation="nearest")(x, [0]).numpy()
    assert (grown[0, 3:6, 3:6] == 200).all()
    assert (grown == 200).sum() == 9


def test_padding_shifts_evenly():
    x = np.tile(np.arange(6, dtype="uint8")[:, None, None] + 1, (3000, 1, 6, 1))
    made = augment.PadCrop(1)(x, np.arange(3000)).numpy()
    down = made[:, 1, 3, 0]
    assert np.abs(np.bincount(down)[1:4] - 1000).max() < 120


def test_erased_areas_are_as_wide_as_asked():
    x = np.ones((2000, 20, 30, 1), "uint8")
    made = augment.Erase(0.5, area=(0.1, 0.2))(x, np.arange(2000)).numpy()
    share = (made == 0).mean((1, 2, 3))
    assert np.abs((share > 0).mean() - 0.5) < 0.04
    assert share[share > 0].min() > 0.08
    assert share.max() < 0.22


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_of_the_policies(name):
    x = tf.constant(np.stack([picture()] * 6))
    choice, strength = tf.fill((6,), CHANGES.index(name)), tf.linspace(0.0, 1.0, 6)
    made = change(x, choice, strength, tf.range(6, dtype=tf.int64), Ranges()).numpy()
    same = [np.array_equal(each, picture()) for each in made]
    if name in ("autocontrast", "equalize"):
        assert len({each.tobytes() for each in made}) == 1
    else:
        assert same == [True] + [name == "identity"] * 5


def test_uniform_numbers():
    seeds = tf.range(20_000, dtype=tf.int64)
    one, other = uniform(seeds, 0).numpy(), uniform(seeds, 1).numpy()
    assert one.min() >= 0
    assert one.max() < 1
    assert np.abs(np.bincount((one * 10).astype(int)) - 2000).max() < 200
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.02
    assert len(np.unique(fold(seeds, 3))) == 20_000
    assert np.array_equal(np.unique(integers(seeds, 2, 7)), np.arange(7))
    many = uniform(seeds, 4, shape=(2, 3)).numpy()
    assert many.shape == (20_000, 2, 3)
    assert abs(np.corrcoef(many[:, 0, 0], many[:, 1, 2])[0, 1]) < 0.02


def mapped(operation, **options):
    x = tf.data.Dataset.from_tensor_slices(np.stack([picture()] * 24))
    return [y.numpy() for y in x.enumerate().map(lambda i, each: operation(each, fold(i, 9)), **options)]


@pytest.mark.parametrize("name", quick(["rand", "augmix", "affine"], "affine"))
def test_parallel_maps_give_what_sequential_ones_do(name):
    one, eight = (mapped(OPERATIONS[name], **each) for each in ({}, {"num_parallel_calls": 8}))
    assert all(np.array_equal(a, b) for a, b in zip(one, eight, strict=True))


def test_mixed_labels_follow_the_pixels():
    x = np.repeat(np.arange(4, dtype="float32") / 4, 8 * 8).reshape(4, 8, 8, 1)
    labels = np.eye(4, dtype="float32")
    for operation in (augment.MixUp(0.5), augment.CutMix()):
        images, mixed = (each.numpy() for each in operation(x, labels, np.arange(4)))
        np.testing.assert_allclose(mixed.sum(1), 1.0, atol=1e-6)
        # Each mean is that of both pictures, mixed as the labels are.
        np.testing.assert_allclose(images.mean((1, 2, 3)), mixed @ (np.arange(4) / 4), atol=1e-6)
        assert (np.count_nonzero(mixed, axis=1) <= 2).all()
    same, _ = augment.MixUp(0.0)(x, labels, np.arange(4))
    assert np.array_equal(same, x)


def training_images(data, epoch):
    return np.concatenate([x.numpy() for x, _ in data.training_batches(epoch)])


def test_epochs_differ_and_can_be_repeated():
    x, y = blobs(60)
    data = dataclasses.replace(tfopt.as_data((x / 9, y)), augment=(augment.Flip(), augment.PadCrop(1)))
    first, second = training_images(data, 0), training_images(data, 1)
    assert np.array_equal(training_images(data, 0), first)
    assert not np.array_equal(np.sort(first.sum((1, 2, 3))), np.sort(second.sum((1, 2, 3))))
    plain = dataclasses.replace(data, augment=())
    assert np.array_equal(next(iter(data.validation))[0], next(iter(plain.validation))[0])
    assert data.fingerprint() != plain.fingerprint()
    train = data.train
    one, other = (np.concatenate([x.numpy() for x, _ in train]) for _ in range(2))
    assert not np.array_equal(np.sort(one.sum((1, 2, 3))), np.sort(other.sum((1, 2, 3))))


def test_ranges_come_from_images_as_they_are(tmp_path):
    x, y = blobs(60)
    data = tfopt.as_data((x / 9, y))
    model = small_model()
    for name, each in {
        "plain": data,
        "erased": dataclasses.replace(data, augment=(augment.Erase(1.0, (0.9, 1.0)),)),
    }.items():
        tfopt.export_tflite(model, tmp_path / name, "int8", each)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "erased").read_bytes()


def test_it_runs_inside_a_model():
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    seeds = keras.Input((), dtype="int64")
    outputs = keras.layers.Lambda(lambda each: augment.RandAugment()(*each), output_shape=(8, 8, 3))([inputs, seeds])
    model = keras.Model([inputs, seeds], outputs)
    x = picture(8, 8)[None]
    assert np.array_equal(model([x, np.array([4])]), augment.RandAugment()(x, [4]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augment.Flip(2.0), "horizontal must be a fraction"),
        (lambda: augment.Affine(zoom=(2.0, 1.0)), "0 < least <= greatest"),
        (lambda: augment.Affine(shear=90.0), r"shear must be in \[0, 90\)"),
        (lambda: augment.RandAugment(magnitude=9), "magnitude must be a fraction"),
        (lambda: augment.Hue(0.6), r"\[0, 0.5\]"),
        (lambda: augment.Hue()(np.zeros((4, 4, 1), "uint8"), 0), "red, green and blue"),
        (lambda: augment.Crop(9, 9)(np.zeros((4, 4, 1), "uint8"), 0), "larger than images of 4 x 4"),
        (lambda: augment.Flip()(np.zeros((4, 4, 1), "int32"), 0), "uint8 in .* received int32"),
        (lambda: augment.Flip()(np.zeros((4, 4), "uint8"), 0), "of shape"),
        (lambda: augment.Flip()(np.zeros((2, 4, 4, 1), "uint8"), 0), "a seed for each image"),
        (lambda: augment.MixUp()(np.zeros((2, 4, 4, 1)), np.array([0, 1]), [0, 1]), "tf.one_hot"),
        (lambda: tfopt.Augment([augment.Flip()]), "must be a tuple"),
        (lambda: tfopt.from_arrays((np.zeros((30, 4)), np.zeros(30)), augment=(augment.Flip(),)), "images of shape"),
        (
            lambda: tfopt.from_arrays((np.zeros((30, 8, 8, 1), "uint8"), np.zeros(30)), augment=(augment.Crop(4, 4),)),
            "bring all splits to one size",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
