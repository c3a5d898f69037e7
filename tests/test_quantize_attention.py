"""Attention, masks, layer normalization and embeddings: trained, saved, exported and compared with their files."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfopt
from tests.conftest import quick
from tfopt.quantize.layer_norm import QuantizedNorm
from tfopt.quantize.masked_mean import QuantizedMaskedMean
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.run import predict_tflite

STEPS, WIDTH, WORDS = 6, 16, 20
# Drawn here once: tests that draw from a common generator get what those before them left.
FIRST = np.random.default_rng(0)
ROWS = FIRST.normal(size=(24, STEPS, WIDTH)).astype("float32")
LENGTHS = FIRST.integers(1, STEPS + 1, 24)
SEEN = np.arange(STEPS) < LENGTHS[:, None]
IDS = (FIRST.integers(1, WORDS, (24, STEPS)) * SEEN).astype("int32")
VALUES, KEYS = FIRST.normal(size=(24, 5, 12)).astype("float32"), FIRST.normal(size=(24, 5, 4)).astype("float32")


def rng(seed=0):
    """A generator of its own for each use."""
    return np.random.default_rng(seed)


def rows(name="rows"):
    return keras.Input((STEPS, WIDTH), name=name)


def words(mask_zero, dtype="int32"):
    ids = keras.Input((STEPS,), dtype=dtype, name="ids")
    return ids, layers.Embedding(WORDS, WIDTH, mask_zero=mask_zero, name="words")(ids)


def self_attention():
    x = rows()
    return keras.Model(x, layers.MultiHeadAttention(2, 8)(x, x)), ROWS


def cross_attention():
    x, y, z = rows(), keras.Input((5, 12), name="values"), keras.Input((5, 4), name="keys")
    attention = layers.MultiHeadAttention(2, 8, value_dim=6, output_shape=10, use_bias=False)
    return keras.Model([x, y, z], attention(x, y, key=z)), {"rows": ROWS, "values": VALUES, "keys": KEYS}


def causal():
    x = rows()
    return keras.Model(x, layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)), ROWS


def float_mask():
    x, mask = rows(), keras.Input((STEPS, STEPS), name="mask")
    visible = (rng().uniform(size=(24, STEPS, STEPS)) > 0.3) | np.eye(STEPS, dtype=bool)
    output = layers.MultiHeadAttention(2, 8, dropout=0.1)(x, x, attention_mask=mask)
    return keras.Model([x, mask], output), {"rows": ROWS, "mask": visible.astype("float32")}


def shared():
    """One attention for two calls; it gives its probabilities too."""
    x = rows()
    attention = layers.MultiHeadAttention(2, 8)
    once, scores = attention(x, x, return_attention_scores=True, use_causal_mask=True)
    return keras.Model(x, [attention(once, x), scores]), ROWS


def classifier():
    """Masks from an embedding, through a residual block, to a mean over what is not masked."""
    ids, x = words(mask_zero=True)
    y = layers.LayerNormalization()(x)
    y = layers.MultiHeadAttention(2, 8, dropout=0.1)(y, y)
    x = layers.Add()([x, layers.Dropout(0.1)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(ids, layers.Dense(3, activation="softmax")(x)), IDS


def raw_masks():
    """Masks by operators, indices as floats, an addition that loses the embedding's mask."""
    ids, x = words(mask_zero=True, dtype="float32")
    mask = ops.not_equal(ids, 0)
    x = x + layers.Embedding(STEPS, WIDTH)(ops.arange(STEPS))
    x = layers.TimeDistributed(layers.Dense(8, activation="relu"))(x)
    x = x * ops.expand_dims(ops.cast(mask, "float32"), -1)
    x = layers.MultiHeadAttention(2, 4)(x, x, attention_mask=ops.expand_dims(mask, 1))
    return keras.Model(ids, layers.GlobalAveragePooling1D()(x)), IDS.astype("float32")


def masked_rows():
    x = rows()
    y = layers.Dense(8)(layers.Masking()(x))
    return keras.Model(x, layers.GlobalAveragePooling1D(keepdims=True)(y)), ROWS * SEEN[..., None]


def normalized(layer, shape):
    x = keras.Input(shape, name="x")
    return keras.Model(x, layer(x)), rng().normal(size=(24, *shape)).astype("float32")


def norm(**options):
    uniform = keras.initializers.RandomUniform(0.5, 1.5, seed=1)
    return layers.LayerNormalization(gamma_initializer=uniform, beta_initializer=uniform, **options)


def unit_norm(x):
    return layers.UnitNormalization()(layers.Dense(12)(x))


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with its inputs; operators that its file must have; how far the file may be from the model in steps, in
    the mean over all outputs, and the int8 model from the float one, as relative RMS error."""

    make: Callable
    operators: str
    steps: float
    error: float = 0.03
    weight_bits: int = 8
    activation_bits: int = 8


CASES = {
    "self": Case(self_attention, "BATCH_MATMUL SOFTMAX", 0.1),
    "cross_4_bits": Case(cross_attention, "BATCH_MATMUL SOFTMAX", 0.3, 0.25, weight_bits=4),
    "float_mask": Case(float_mask, "SELECT_V2 ARG_MAX", 0.1),
    "shared": Case(shared, "SELECT_V2", 0.5),
    "classifier": Case(classifier, "GATHER L2_NORMALIZATION SELECT_V2", 0.6),
    "classifier_16_bits": Case(classifier, "GATHER RSQRT SELECT_V2", 2.0, 0.01, activation_bits=16),
    "raw_masks": Case(raw_masks, "GATHER NOT_EQUAL SELECT_V2", 0.3),
    "masked_rows": Case(masked_rows, "ARG_MAX ARG_MIN GATHER", 0.2),
    "norm_3d": Case(lambda: normalized(norm(), (5, 12)), "PADV2 L2_NORMALIZATION DEPTHWISE_CONV_2D", 0.2),
    "norm_4d": Case(lambda: normalized(norm(epsilon=1e-6, center=False), (3, 4, 8)), "L2_NORMALIZATION", 0.2),
    "rms_norm": Case(lambda: normalized(layers.RMSNormalization(), (5, 12)), "L2_NORMALIZATION", 0.1),
    "unit_norm": Case(lambda: normalized(unit_norm, (12,)), "L2_NORMALIZATION", 0.1),
}


def flat(outputs):
    return np.concatenate([np.asarray(each).ravel() for each in keras.tree.flatten(outputs)])


def exported(model, x, path, weight_bits=8, activation_bits=8):
    """The calibrated model after its export."""
    aware = tfopt.quantize_aware(model, weight_bits, activation_bits)
    tfopt.calibrate(aware, x)
    tfopt.export_tflite(aware, path)
    return aware


@pytest.mark.parametrize("name", quick(CASES, "classifier", "masked_rows"))
def test_trained_saved_exported(name, tmp_path):
    case = CASES[name]
    model, x = case.make()
    aware = exported(model, x, tmp_path / "m.tflite", case.weight_bits, case.activation_bits)
    file = read_tflite(tmp_path / "m.tflite")
    assert not [tensor.name for tensor in file.graphs[0].tensors if tensor.is_float]
    assert set(case.operators.split()) <= {operator.type for operator in file.graphs[0].operators}
    assert any(tensor.dtype == "int4" for tensor in file.graphs[0].tensors) == (case.weight_bits == 4)
    found = tfopt.verify_tflite(aware, tmp_path / "m.tflite", x, use_xnnpack=False, layer_examples=2, noise_examples=8)
    assert found.mean_lsb <= case.steps
    assert found.max_lsb <= max(5, 5 * case.steps)
    expected, received = flat(model(x)), flat(aware(x))
    assert np.sqrt(np.mean((expected - received) ** 2) / np.mean(expected**2)) < case.error
    aware.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert np.array_equal(flat(again(x)), received)
    again.compile("sgd", "mse", run_eagerly=name != "classifier")
    targets = keras.tree.map_structure(np.zeros_like, keras.tree.map_structure(np.asarray, model(x)))
    assert np.isfinite(again.train_on_batch(x, targets)).all()
    assert not np.array_equal(flat(again(x)), received)


def test_what_follows_changes_nothing_before(tmp_path):
    model, x = causal()
    exported(model, x, tmp_path / "m.tflite")
    other = x.copy()
    other[:, 3:] = rng(1).normal(size=other[:, 3:].shape)
    one, two = (predict_tflite(tmp_path / "m.tflite", each, use_xnnpack=False) for each in (x, other))
    assert np.array_equal(one[:, :3], two[:, :3])
    assert not np.array_equal(one[:, 3:], two[:, 3:])


@pytest.mark.parametrize("dtype", quick(["bool", "int32"], "bool"))
def test_what_a_mask_hides_changes_nothing(dtype, tmp_path):
    x, mask = rows(), keras.Input((1, STEPS), dtype=dtype, name="mask")
    model = keras.Model([x, mask], layers.MultiHeadAttention(2, 8)(x, x, attention_mask=mask))
    seen = SEEN[:, None].astype(dtype)
    exported(model, {"rows": ROWS, "mask": seen}, tmp_path / "m.tflite")
    other = np.where(SEEN[..., None], ROWS, rng(1).normal(size=ROWS.shape).astype("float32"))
    one, two = (
        predict_tflite(tmp_path / "m.tflite", {"rows": each, "mask": seen}, use_xnnpack=False) for each in (ROWS, other)
    )
    assert np.array_equal(one[SEEN], two[SEEN])
    assert not np.array_equal(one[~SEEN], two[~SEEN])


@pytest.mark.slow
def test_what_stands_for_padding_changes_nothing(tmp_path):
    ids, x = words(mask_zero=True)
    x = layers.GlobalAveragePooling1D()(layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)]))
    model = keras.Model(ids, x)
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, IDS)
    table = aware.get_layer("words").layer.embeddings
    results = []
    for seed in (1, 2):
        values = table.numpy()
        values[0] = np.random.default_rng(seed).uniform(-0.04, 0.04, WIDTH)
        table.assign(values)
        tfopt.export_tflite(aware, tmp_path / "m.tflite")
        results.append(predict_tflite(tmp_path / "m.tflite", IDS, use_xnnpack=False))
    assert np.array_equal(*results)
    assert len(np.unique(results[0], axis=0)) > 10


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_query_that_may_see_nothing_gets_what_keras_gives_it(dropout):
    x, mask = rows(), keras.Input((1, STEPS), dtype="bool", name="mask")
    model = keras.Model([x, mask], layers.MultiHeadAttention(2, 8, dropout=dropout)(x, x, attention_mask=mask))
    given = {"rows": ROWS, "mask": np.zeros((24, 1, STEPS), bool)}
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, given)
    assert np.abs(np.asarray(aware(given)) - np.asarray(model(given))).max() < 0.03


def test_attention_drops_out_in_training_only():
    x = rows()
    model = keras.Model(x, layers.MultiHeadAttention(2, 8, dropout=0.5)(x, x))
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, ROWS)
    assert np.array_equal(aware(ROWS), aware(ROWS))
    one, two = (np.asarray(aware(ROWS, training=True)) for _ in range(2))
    assert np.abs(one - two).max() > 0.1


def test_a_normalization_resolves_small_rows(tmp_path):
    """A variance of 8 bits has 255 steps for the largest row and none for one that is a twentieth of it."""
    sizes = np.repeat([1.0, 0.2, 0.05], 8)[:, None]
    x = (rng().permutation(np.linspace(-1.7, 1.7, 24 * 64)).reshape(24, 64) * sizes).astype("float32")
    model, _ = normalized(layers.LayerNormalization(epsilon=1e-6), (64,))
    aware = tfopt.quantize_aware(model)
    aware(x, training=True)
    tfopt.export_tflite(aware, tmp_path / "m.tflite")
    off = predict_tflite(tmp_path / "m.tflite", x, use_xnnpack=False) - np.asarray(model(x))
    errors = np.sqrt(np.mean(off.reshape(3, 8, 64) ** 2, (1, 2)))
    # A step of the inputs is 0.013, so that of the small rows' 0.05 is a quarter: 0.15 by the rounding of the inputs
    # and of their differences from the mean.
    assert (errors < [0.04, 0.07, 0.2]).all()


def test_epsilon_counts_where_rows_are_small():
    layer = QuantizedNorm(layers.LayerNormalization(epsilon=0.01))
    x = 0.05 * rng().normal(size=(64, 32)).astype("float32")
    expected = np.asarray(layer.layer(x))
    layer(x, training=True)
    # A step of unit length is 1 / 128, so half a step of the result sqrt(32) / 256 = 0.022; the rest is the inputs'.
    assert np.abs(np.asarray(layer(x)) - expected).max() < 0.04
    assert np.abs(expected).max() < 2  # it would be 4 without epsilon


def test_a_masked_mean_is_exact_for_every_length(tmp_path):
    steps = 300
    x, mask = keras.Input((steps, 2), name="x"), keras.Input((steps,), dtype="bool", name="mask")
    model = keras.Model([x, mask], layers.GlobalAveragePooling1D()(x, mask=mask))
    lengths = rng().permutation(steps) + 1
    given = {"x": rng().uniform(0.5, 1.0, (steps, steps, 2)).astype("float32")}
    given["mask"] = np.arange(steps) < lengths[:, None]
    aware = tfopt.quantize_aware(model)
    aware(given, training=True)
    tfopt.export_tflite(aware, tmp_path / "m.tflite")
    assert any(isinstance(layer, QuantizedMaskedMean) for layer in aware.layers)
    received = predict_tflite(tmp_path / "m.tflite", given, use_xnnpack=False)
    expected = (given["x"] * given["mask"][..., None]).sum(1) / lengths[:, None]
    assert (np.abs(received / expected - 1) < 0.02).all()


def test_an_embedding_is_a_table_of_its_integers(tmp_path):
    ids, x = words(mask_zero=False)
    model = keras.Model(ids, x)
    aware = exported(model, IDS, tmp_path / "m.tflite")
    table = model.get_layer("words").embeddings.numpy()
    stored = next(
        t for t in read_tflite(tmp_path / "m.tflite").graphs[0].tensors if t.data is not None and t.data.ndim == 2
    )
    step = np.abs(table).max() / 127
    assert stored.dtype == "int8"
    assert stored.quantization.scales == pytest.approx(step)
    assert np.array_equal(stored.data, np.round(table / step))
    # The table is the only grid: nothing is rounded twice.
    assert np.array_equal(predict_tflite(tmp_path / "m.tflite", IDS), np.asarray(aware(IDS)))


def attended(**options):
    x = rows()
    return layers.MultiHeadAttention(2, 8, **options)(x, x), x


def refused(make):
    """A model of one layer behind rows."""
    x = rows()
    return keras.Model(x, make(x))


REFUSED = {
    "over the axes \\[1\\]": lambda: refused(layers.LayerNormalization(axis=1)),
    "all positions of an image": lambda: refused(layers.GroupNormalization(4)),
    "use MultiHeadAttention": lambda: refused(lambda x: layers.Attention()([x, x])),
    "GroupedQueryAttention": lambda: refused(lambda x: layers.GroupQueryAttention(4, 2, 1)(x, x)),
    "it attends over the axes \\(1, 2\\)": lambda: normalized(
        lambda x: layers.MultiHeadAttention(2, 8)(x, x), (3, 4, 8)
    )[0],
    "output_shape=\\(2, 3\\)": lambda: refused(lambda x: layers.MultiHeadAttention(2, 8, output_shape=(2, 3))(x, x)),
    "dtype='int32'": lambda: refused(lambda x: layers.Embedding(WORDS, 2)(layers.Flatten()(x))),
    "mask_value=0.0": lambda: refused(layers.Masking(-1.0)),
    "only Dense has a rule, not Conv1D": lambda: normalized(layers.TimeDistributed(layers.Conv1D(2, 1)), (3, 4, 8))[0],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_rule_says_why(message):
    with pytest.raises(ValueError, match=message):
        tfopt.quantize_aware(REFUSED[message]())


def test_tables_have_8_bits():
    ids, x = words(mask_zero=False)
    model = keras.Model(ids, layers.Dense(2)(x))
    with pytest.raises(ValueError, match=r"layers=\{'words': 8\}"):
        tfopt.quantize_aware(model, weight_bits=4)
    tfopt.quantize_aware(model, weight_bits=4, layers={"words": 8})
