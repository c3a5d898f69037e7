"""Patterns and criteria of pruning: their maths, in training, and in the exported integers."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tfopt
from tests.conftest import blobs, quick, small_model
from tfopt.patterns import Pattern, pattern_mask, pattern_masks
from tfopt.prune.magnitude import lamp_scores
from tfopt.prune.policy import pays_on_xnnpack
from tfopt.tflite.flatbuffer import read_tflite

PATTERNS = ["unstructured", "2:4", "1:3", "4:16", "1x4", "4x1", "2x2", "3x5"]
# Sides from 16: no group is larger than the tensor.
kernels = arrays.arrays(
    "float32",
    st.tuples(st.integers(1, 3), st.integers(16, 19), st.integers(5, 8)),
    elements=st.floats(-2, 2, width=16),
)


def mask_of(scores, sparsity, pattern, mask=None):
    return keras.ops.convert_to_numpy(pattern_mask(scores, sparsity, Pattern(pattern), mask))


def nonzeros_of_groups(matrix, size):
    """How many are not zero of each `size` rows in a row, for each column."""
    return [np.count_nonzero(matrix[start : start + size], axis=0) for start in range(0, len(matrix), size)]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(scores=kernels, sparsity=st.floats(0, 0.99))
@settings(max_examples=15, deadline=None)
def test_zeros_lie_in_the_pattern_and_are_as_many_as_asked(pattern, scores, sparsity):
    form = Pattern(pattern)
    sparsity = form.fixed_sparsity or sparsity
    mask = mask_of(scores, sparsity, pattern)
    matrix = mask.reshape(-1, mask.shape[-1])
    zeros, promised = int((mask == 0).sum()), form.zero_count(scores.shape, sparsity)
    assert form.structured_zeros(mask) == zeros >= promised
    if form.block is None:
        assert zeros == promised
    if form.ratio is not None:
        kept, size = form.ratio
        assert max(each.max() for each in nonzeros_of_groups(matrix, size)) <= kept
    if form.block is not None:
        high, wide = form.block
        starts = itertools.product(range(0, matrix.shape[0], high), range(0, matrix.shape[1], wide))
        blocks = [matrix[row : row + high, column : column + wide] for row, column in starts]
        assert all(each.min() == each.max() for each in blocks)
        assert sum(each.max() == 0 for each in blocks) == round(sparsity * len(blocks))
        # No removed block has a larger mean than a kept one.
        means = np.array([each.mean() for each in _blocks(scores, high, wide)])
        gone = np.array([each.max() == 0 for each in blocks])
        assert not gone.any() or gone.all() or means[gone].max() <= means[~gone].min() + 1e-5


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
def test_a_share_is_not_rounded_to_float32(pattern):
    # 0.66 of 25 groups is 16.5, and round(16.5) is 16; in float32 0.66 is a little more.
    rows = 25 * Pattern(pattern).block[0] if Pattern(pattern).block else 25
    mask = mask_of(np.arange(rows, dtype="float32")[:, None], 0.66, pattern)
    assert (mask == 0).sum() == Pattern(pattern).zero_count((rows, 1), 0.66) == rows * 16 // 25


def _blocks(scores, high, wide):
    matrix = scores.reshape(-1, scores.shape[-1])
    starts = itertools.product(range(0, matrix.shape[0], high), range(0, matrix.shape[1], wide))
    return [matrix[row : row + high, column : column + wide] for row, column in starts]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(scores=kernels, first=st.floats(0, 0.9), more=st.floats(0, 0.09))
@settings(max_examples=10, deadline=None)
def test_a_rising_sparsity_never_brings_a_weight_back(pattern, scores, first, more):
    old = mask_of(scores, first, pattern)
    assert (mask_of(scores + 3 * (1 - old), first + more, pattern, old) <= old).all()


def test_ranked_together_small_layers_go_first_but_never_whole():
    small, large = np.full((4, 4), 0.1, "float32"), np.arange(1.0, 17, dtype="float32").reshape(4, 4)
    masks = pattern_masks([small, large], 0.75, Pattern())
    zeros = [int((keras.ops.convert_to_numpy(each) == 0).sum()) for each in masks]
    assert zeros == [15, 9]


REFUSED = {
    "N equal to M": ("4:4", r"1 <= N < M <= 16; received '4:4'"),
    "N above M": ("5:4", r"1 <= N < M <= 16; received '5:4'"),
    "no N": ("0:4", r"1 <= N < M <= 16"),
    "M too large": ("2:17", r"1 <= N < M <= 16"),
    "an empty block": ("0x4", "at least one row and one column; received '0x4'"),
    "words": ("two of four", 'pattern must be "unstructured", "N:M".* received \'two of four\''),
    "a number": (4, "received 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_patterns_that_are_none(case):
    text, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tfopt.PruningCallback(tfopt.ConstantSparsity(0.5, 0), pattern=text)
    with pytest.raises(ValueError, match=message):
        tfopt.Prune(0.5, pattern=text)


def pruned(schedule, epochs=3, jit_compile=False, **options):
    x, y = blobs(96)
    keras.utils.set_random_seed(1)
    model = small_model()
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=jit_compile)
    callback = tfopt.PruningCallback(schedule, **options)
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=[callback])
    return model, callback


def kernels_of(model):
    return [keras.ops.convert_to_numpy(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")]


METHODS = {
    "2:4": (0.5, {"pattern": "2:4"}),
    "1:4": (0.75, {"pattern": "1:4"}),
    "1x2": (0.8, {"pattern": "1x2"}),
    "4x1": (0.6, {"pattern": "4x1"}),
    "2x2": (0.5, {"pattern": "2x2"}),
    "movement": (0.8, {"criterion": "movement"}),
    "taylor": (0.8, {"criterion": "taylor"}),
    "random": (0.8, {"criterion": "random"}),
}


@pytest.mark.parametrize("method", quick(METHODS, "2:4", "4x1", "taylor"))
def test_training_ends_at_the_sparsity_and_the_int8_file_has_it(method, tmp_path):
    sparsity, options = METHODS[method]
    model, callback = pruned(tfopt.PolynomialDecay(0.0, sparsity, 4, 24, frequency=5), **options)
    form = Pattern(options.get("pattern", "unstructured"))
    wanted = {kernel.size: form.zero_count(kernel.shape, sparsity) for kernel in kernels_of(model)}
    for kernel in kernels_of(model):
        assert form.structured_zeros(kernel) == (kernel == 0).sum() >= wanted[kernel.size]
    assert callback.invariant.check(model) == []
    tfopt.export_tflite(model, tmp_path / "m.tflite", "int8", blobs(96)[0])
    assert callback.invariant.check_tflite(tmp_path / "m.tflite", model) == []
    stored = weights_in(tmp_path / "m.tflite")
    assert sorted(each.size for each in stored) == sorted(wanted)
    for values in stored:
        assert (values == 0).sum() >= wanted[values.size]
        if form.ratio is not None:
            # One row an output, inputs as they are read: nothing but N of M.
            rows = values.reshape(values.shape[0], -1).T
            assert max(each.max() for each in nonzeros_of_groups(rows, form.ratio[1])) <= form.ratio[0]


@pytest.mark.slow
def test_xla_prunes_alike():
    criteria = ({"criterion": name} for name in ("global_magnitude", "lamp", "taylor"))
    for options in ({"pattern": "2x2"}, {"pattern": "2:4"}, *criteria):
        schedule = tfopt.PolynomialDecay(0.0, 0.5, 4, 12, frequency=4)
        plain, _ = pruned(schedule, epochs=1, **options)
        compiled, _ = pruned(schedule, epochs=1, jit_compile=True, **options)
        for one, other in zip(kernels_of(plain), kernels_of(compiled), strict=True):
            assert ((one == 0) == (other == 0)).mean() > 0.98


def test_global_magnitude_ranks_all_layers_together():
    model, callback = pruned(tfopt.PolynomialDecay(0.0, 0.8, 0, 24, frequency=5), criterion="global_magnitude")
    kernels = kernels_of(model)
    assert sum(int((each == 0).sum()) for each in kernels) == round(0.8 * sum(each.size for each in kernels))
    shares = list(callback.sparsity.values())
    assert max(shares) - min(shares) > 0.1
    kept = [np.abs(each[each != 0]).min() for each in kernels]
    assert min(kept) > 0
    assert callback.invariant.targets == pytest.approx(callback.sparsity)


@given(weights=kernels, factor=st.sampled_from([0.125, 1.0, 64.0]))
@settings(max_examples=25, deadline=None)
def test_lamp_is_the_share_of_a_square_in_what_is_left(weights, factor):
    scores = keras.ops.convert_to_numpy(lamp_scores(factor * weights))
    squares = np.square(weights.astype("float64")).ravel()
    order = np.argsort(squares, kind="stable")
    left = np.cumsum(squares[order][::-1])[::-1]
    expected = np.zeros_like(squares)
    expected[order] = np.divide(squares[order], left, out=np.zeros_like(left), where=left > 0)
    assert scores.shape == weights.shape
    # A factor, as a BatchNormalization may take up, changes nothing.
    np.testing.assert_allclose(scores.ravel(), expected, rtol=1e-4, atol=1e-7)
    # Within a tensor the order is that of the magnitudes.
    assert (np.diff(scores.ravel()[order]) >= -1e-7).all()


def test_lamp_spares_the_layer_that_is_small():
    rng = np.random.default_rng(0)
    # The weights of the small one are the smaller ones: by magnitude it would lose nearly all.
    small, large = rng.normal(0, 0.1, (3, 3, 16)).astype("float32"), rng.normal(0, 1, (64, 64)).astype("float32")
    kept = {}
    for name, score in (("magnitude", np.abs), ("lamp", lamp_scores)):
        masks = pattern_masks([score(small), score(large)], 0.8, Pattern())
        kept[name] = [float(keras.ops.convert_to_numpy(each).mean()) for each in masks]
    assert kept["magnitude"][0] < 0.02
    assert kept["lamp"][0] > 2 * kept["lamp"][1]
    model, callback = pruned(tfopt.PolynomialDecay(0.0, 0.8, 0, 24, frequency=5), criterion="lamp")
    zeros = [(kernel == 0).sum() for kernel in kernels_of(model)]
    sizes = [kernel.size for kernel in kernels_of(model)]
    assert sum(zeros) == round(0.8 * sum(sizes))
    shares = [zero / size for zero, size in zip(zeros, sizes, strict=True)]
    assert [share for _, share in sorted(zip(sizes, shares, strict=True))] == sorted(shares)
    assert list(callback.invariant.targets.values()) == shares


def test_each_layer_gets_the_sparsity_it_was_given():
    shares = {"conv": 0.25, "hidden": 0.9}
    _, callback = pruned(tfopt.PolynomialDecay(0.0, 0.6, 0, 24, frequency=5), layers=shares)
    assert {path.split("/")[-2]: round(share, 4) for path, share in callback.sparsity.items()} == {
        "conv": 0.25,
        "hidden": round(round(0.9 * 1536) / 1536, 4),
    }


def weights_in(path):
    """The integer weights of a file: [outputs, ...]."""
    tensors = read_tflite(path).graphs[0].tensors
    return [each.data for each in tensors if each.data is not None and each.dtype == "int8" and each.data.ndim > 1]


def quadratic(criterion):
    """One step of gradient descent towards known weights; the indices of the weights removed then."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False, name="d")])
    model.layers[0].kernel.assign([[1.0], [1.0], [1.0], [1.0]])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    # The weights move by -0.2, -0.1, 0, +0.2 in the first step.
    x, y = np.sqrt(4) * np.eye(4, dtype="float32"), np.array([[0.5], [1.0], [2.0], [4.0]], "float32")
    schedule = tfopt.ConstantSparsity(0.5, begin_step=1, end_step=1)
    callback = tfopt.PruningCallback(schedule, criterion=criterion)
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[callback])
    return set(np.flatnonzero(keras.ops.convert_to_numpy(model.layers[0].kernel) == 0))


def test_criteria_remove_what_they_say():
    # Moves: 0.1 * (y - 2) for each weight.
    assert quadratic("movement") == {0, 1}
    assert quadratic("taylor") == {1, 2}
    assert quadratic("magnitude") == {0, 1}


def test_the_random_control_is_the_same_each_time():
    first, _ = pruned(tfopt.PolynomialDecay(0.0, 0.8, 0, 24), criterion="random")
    second, _ = pruned(tfopt.ConstantSparsity(0.8, 0, 0), criterion="random")
    for one, other in zip(kernels_of(first), kernels_of(second), strict=True):
        assert ((one == 0) == (other == 0)).all()


def test_what_does_not_go_together_is_refused():
    constant = tfopt.ConstantSparsity(0.8, 0)
    for message, options in {
        "ends at a sparsity of 0.5, the schedule at 0.8": {"pattern": "2:4"},
        "neither a sparsity by layer nor global_magnitude or lamp": {"pattern": "1:5", "criterion": "lamp"},
        "neither a sparsity by layer nor global": {"pattern": "1:5", "criterion": "global_magnitude"},
        "criterion must be one of magnitude": {"criterion": "size"},
        "movement has seen nothing at step 0": {"criterion": "movement"},
        "lamp finds each layer's sparsity itself": {"layers": {"conv": 0.5}, "criterion": "lamp"},
        "finds each layer's sparsity itself": {"layers": {"conv": 0.5}, "criterion": "global_magnitude"},
    }.items():
        with pytest.raises(ValueError, match=message):
            tfopt.PruningCallback(constant, **options)
    with pytest.raises(ValueError, match="leave final_sparsity out"):
        tfopt.Prune(0.5, layers={"conv": 0.5})
    for message, options in {
        r"blocks of 64x64 are larger than conv/kernel, a matrix of 18 inputs x 8 outputs": {"pattern": "64x64"},
        r"has no layer 'conf'; did you mean 'conv'\?": {"layers": {"conf": 0.5}},
        r"the sparsity of 'conv' must be": {"layers": {"conv": 1.0}},
    }.items():
        with pytest.raises(ValueError, match=message):
            pruned(constant, **options)


def test_the_stage_promises_its_pattern(data, tmp_path):
    fit = tfopt.Fit(3e-3)
    stages = [tfopt.Prune(epochs=1, pattern="2:4", fit=fit), tfopt.QuantizeAware(1, fit=fit), tfopt.ExportTFLite()]
    work = tfopt.run(stages, tfopt.Work(small_model(), data, tmp_path))
    (promise,) = work.invariants
    assert promise.pattern == "2:4"
    assert min(promise.targets.values()) >= 0.44
    assert work.report.stages[0].sparsity
    path = work.report.artefacts["tflite"]["path"]
    for values in weights_in(path):
        assert max(each.max() for each in nonzeros_of_groups(values.reshape(len(values), -1).T, 4)) <= 2
    broken = work.model
    kernel = next(each for each in broken.weights if each.path in promise.targets)
    values = keras.ops.convert_to_numpy(kernel).copy()
    # As many zeros, but in other places.
    kernel.assign(np.sort(values.ravel()).reshape(values.shape))
    assert "in the pattern 2:4" in promise.check(broken)[0]


def test_only_layers_where_zeros_can_pay():
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=2)
    pays = pays_on_xnnpack(model)
    chosen = [layer for layer in model.layers if pays(layer)]
    points = [each for each in model.layers if type(each) is keras.layers.Conv2D and each.kernel_size == (1, 1)]
    assert chosen == points
    callback = tfopt.PruningCallback(tfopt.ConstantSparsity(0.8, 0, 0), layers=pays)
    model.compile("sgd", "sparse_categorical_crossentropy")
    callback.set_model(model)
    assert "predictions" in {each["layer"] for each in callback.skipped}
    with pytest.raises(ValueError, match="does not begin with a 3 x 3 convolution of stride 2"):
        pays_on_xnnpack(small_model())
    wide = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, 2), keras.layers.Conv2D(4, 3, name="wide")]
    )
    with pytest.raises(ValueError, match=r"wide \(Conv2D\) stands between"):
        pays_on_xnnpack(wide)
