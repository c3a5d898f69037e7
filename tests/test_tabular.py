"""Columns of numbers: what is learned is the training split's own, and nothing that spoils a training is left."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tfopt
from tfopt import tabular
from tfopt.data import prepare
from tfopt.data.dataset import SPLITS
from tfopt.tabular.scale import moments

NUMBERS = st.floats(-1e6, 1e6, width=32)
ROWS = arrays.arrays("float32", st.tuples(st.integers(2, 30), st.integers(1, 4)), elements=NUMBERS)
GAPS = arrays.arrays(
    "float32", st.tuples(st.integers(2, 30), st.integers(1, 4)), elements=st.one_of(NUMBERS, st.just(np.nan))
)


def adapt(step, rows, batch=7):
    return step.adapt(tf.data.Dataset.from_tensor_slices(rows).batch(batch))


def table(rows=90, columns=5, seed=0):
    """Splits whose columns are of quite different sizes, with gaps."""
    rng = np.random.default_rng(seed)

    def part(size, centre):
        x = rng.normal(centre, 1 + np.arange(columns), (size, columns)).astype("float32")
        x[rng.random(x.shape) < 0.1] = np.nan
        return x, np.arange(size) % 3

    return {"train": part(rows, 0), "validation": part(20, 50), "test": part(30, -50)}


STEPS = [
    tabular.Impute(),
    tabular.Impute("mean", indicate=True),
    tabular.Clip(0.05, 0.9),
    tabular.Clip(iqr=1.5),
]
LATER = [tabular.Scale(), tabular.Pca(2)]


def learned_arrays(change):
    return [np.asarray(getattr(change, field.name)) for field in dataclasses.fields(change)]


@pytest.mark.parametrize("step", [*STEPS, *LATER], ids=repr)
def test_what_is_learned_comes_from_training_alone(step):
    """Other validation and test splits, or none, change nothing; all rows together would."""
    parts = table()
    if step in LATER:
        parts = {split: (np.nan_to_num(x), y) for split, (x, y) in parts.items()}
    found = learned_arrays(prepare(tfopt.from_arrays(**parts), [step]).prepared[0])
    other = {**parts, "test": parts["validation"], "validation": parts["test"]}
    for alone in (
        adapt(step, parts["train"][0], batch=256),
        prepare(tfopt.from_arrays(**other), [step]).prepared[0],
    ):
        assert all(np.array_equal(one, two) for one, two in zip(found, learned_arrays(alone), strict=True))
    everything = np.concatenate([x for x, _ in parts.values()])
    leaked = learned_arrays(adapt(step, everything))
    assert not all(np.allclose(one, two) for one, two in zip(found, leaked, strict=True))


def test_a_chain_learns_each_step_from_training_as_the_steps_before_left_it():
    parts = table()
    work = tfopt.run(
        [tfopt.Prepare((tabular.Impute(), tabular.Clip(0.1, 0.9), tabular.Scale()))],
        tfopt.Work(data=tfopt.from_arrays(**parts)),
    )
    impute, clip, scale = work.data.prepared
    train = parts["train"][0].astype("float64")
    np.testing.assert_allclose(impute.values, np.nanmedian(train, axis=0))
    train = np.where(np.isnan(train), impute.values, train)
    low, high = np.quantile(train, (0.1, 0.9), axis=0)
    np.testing.assert_allclose(clip.low, low, rtol=1e-6)
    np.testing.assert_allclose(clip.high, high, rtol=1e-6)
    train = train.clip(low, high)
    np.testing.assert_allclose(scale.mean, train.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(scale.deviation, train.std(axis=0), rtol=1e-5)
    # The same function reaches every split.
    for split in SPLITS:
        x = parts[split][0]
        x = np.where(np.isnan(x), impute.values, x).clip(low, high)
        x = (x - train.mean(axis=0)) / train.std(axis=0)
        given = np.concatenate([batch.numpy() for batch, _ in work.data.batches(split)])
        assert given.dtype == "float32"
        np.testing.assert_allclose(given, x, atol=1e-5)


@given(rows=ROWS)
@settings(max_examples=25, deadline=None)
def test_scaled_columns_have_mean_0_and_deviation_1(rows):
    made = adapt(tabular.Scale(), rows)(rows).numpy().astype("float64")
    constant = (rows == rows[0]).all(axis=0)
    np.testing.assert_allclose(made.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(made.std(axis=0), np.where(constant, 0, 1), atol=1e-5)
    assert (made[:, constant] == 0).all()


@given(rows=ROWS, batch=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_moments_are_numpys_however_the_rows_come(rows, batch):
    rows = rows.astype("float64")
    mean, deviation = moments([rows[each : each + batch] for each in range(0, len(rows), batch)])
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-9, atol=1e-9)
    expected = np.where((rows == rows[0]).all(axis=0), 1, rows.std(axis=0))
    np.testing.assert_allclose(deviation, expected, rtol=1e-6, atol=1e-7)


def test_large_offsets_keep_their_digits():
    """Seconds since 1970: float32 knows them to two minutes only."""
    times = 1.7e9 + np.arange(100.0)[:, None]
    made = adapt(tabular.Scale(), times)(times).numpy()
    np.testing.assert_allclose(made[:, 0], (np.arange(100) - 49.5) / np.std(np.arange(100)), atol=1e-6)
    through = adapt(tabular.Clip(0, 1), times)(adapt(tabular.Impute(), times)(times))
    assert np.array_equal(through, times)


@given(rows=ROWS, iqr=st.sampled_from([None, 0.0, 1.5]))
@settings(max_examples=25, deadline=None)
def test_clipped_columns_stay_in_their_bounds(rows, iqr):
    learned = adapt(tabular.Clip(0.1, 0.8, iqr), rows)
    outside = np.concatenate([rows, rows * 10 - 5])
    made = learned(outside).numpy()
    low, high = np.quantile(rows.astype("float64"), (0.1, 0.8) if iqr is None else (0.25, 0.75), axis=0)
    if iqr is not None:
        low, high = low - iqr * (high - low), high + iqr * (high - low)
    free = low == high
    assert np.array_equal(made[:, free], outside[:, free])
    expected = np.clip(outside, low.astype("float32"), high.astype("float32"))
    np.testing.assert_allclose(made[:, ~free], expected[:, ~free], rtol=1e-6, atol=1e-6)


def test_a_flag_that_is_seldom_set_is_not_clipped_away():
    rows = np.zeros((1000, 1), "float32")
    rows[3] = 1
    assert adapt(tabular.Clip(), rows)(rows).numpy().max() == 1
    assert adapt(tabular.Clip(iqr=1.5), rows)(rows).numpy().max() == 1


@given(rows=GAPS, strategy=st.sampled_from(["median", "mean", "constant"]), indicate=st.booleans())
@settings(max_examples=25, deadline=None)
def test_no_gap_is_left_and_nothing_else_changes(rows, strategy, indicate):
    rows = np.concatenate([rows, np.zeros_like(rows[:1])])
    learned = adapt(tabular.Impute(strategy, -7.0, indicate), rows)
    # A gap where training had none is filled too.
    later = np.concatenate([rows, np.full_like(rows[:1], np.nan)])
    made, columns, missing = learned(later).numpy(), rows.shape[1], np.isnan(later)
    assert np.isfinite(made).all()
    assert np.array_equal(made[:, :columns][~missing], later[~missing])
    expected = {
        "median": np.nanmedian(rows.astype("float64"), axis=0),
        "mean": np.nanmean(rows.astype("float64"), axis=0),
        "constant": np.full(columns, -7.0),
    }
    np.testing.assert_allclose(made[-1, :columns], expected[strategy], rtol=1e-5, atol=1e-5)
    with_gaps = np.isnan(rows).any(axis=0) & indicate
    assert np.array_equal(made[:, columns:], missing[:, with_gaps])


def test_signals_are_prepared_by_channel():
    rng = np.random.default_rng(0)
    x = rng.normal(5, (1, 10, 100), (20, 30, 3)).astype("float16")
    scaled = adapt(tabular.Scale(), x)(x).numpy()
    np.testing.assert_allclose(scaled.mean(axis=(0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=(0, 1)), 1, atol=1e-5)
    x[4, 7, 1] = np.nan
    filled = adapt(tabular.Impute(), x)(x)
    assert filled.dtype == tf.float32
    assert float(filled[4, 7, 1]) == pytest.approx(np.nanmedian(x[..., 1].astype("float64")), rel=1e-6)
    assert adapt(tabular.Clip(0.4, 0.6), x)(x).shape == x.shape


def test_components_are_scikit_learns():
    from sklearn.decomposition import PCA

    x = tabular.from_sklearn("wine").examples("train")
    rows = np.stack([each for each, _ in x.as_numpy_iterator()])
    learned = adapt(tabular.Pca(3), rows)
    reference = PCA(3, svd_solver="full").fit(rows)
    np.testing.assert_allclose(learned(rows), reference.transform(rows), atol=1e-3)
    np.testing.assert_allclose(learned.explained, reference.explained_variance_ratio_)
    most = adapt(tabular.Pca(0.9999), rows)
    assert most.explained.sum() >= 0.9999 > most.explained[:-1].sum()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tabular.Impute("mode"), "strategy must be one of median, mean, constant, received 'mode'"),
        (lambda: tabular.Impute("constant", np.nan), "value must be finite"),
        (lambda: tabular.Clip(5, 95), "low must be a fraction in .0, 1., received 5; for 5 % write 0.05"),
        (lambda: tabular.Clip(0.9, 0.1), "low must be below high"),
        (lambda: tabular.Clip(iqr=-1.0), "iqr must be at least 0"),
        (lambda: tabular.Pca(0), "components must be a whole number from 1, or a share"),
        (lambda: adapt(tabular.Impute(), [[np.nan, 1.0]]), "column 0 has no value in the training split"),
        (lambda: adapt(tabular.Impute("mean"), [[1.0, np.inf]]), "the mean of column 1 is infinite"),
        (lambda: adapt(tabular.Clip(), [[1.0, np.nan]]), "column 1 has no value in the training split"),
        (lambda: adapt(tabular.Clip(0, 1), [[1.0, np.inf], [1.0, 1.0]]), "column 1 is infinite so often"),
        (lambda: adapt(tabular.Scale(), [[1.0, np.nan]]), "column 1 of the training inputs has NaN .* put Impute"),
        (lambda: adapt(tabular.Scale(), np.array([[1.0], [1e300]])), "column 0 has values too large to be squared"),
        (lambda: adapt(tabular.Scale(), ["a", "b"]), "Scale takes one array of numbers"),
        (lambda: adapt(tabular.Scale(), [1.0, 2.0]), r"Scale takes examples of shape \(columns,\)"),
        (lambda: adapt(tabular.Pca(2), [[1.0], [2.0]]), "2 components cannot be had of 2 rows of 1 columns"),
        (lambda: adapt(tabular.Pca(1), [[1.0], [1.0]]), "nothing varies"),
        (
            lambda: adapt(tabular.Pca(1), [[[1.0]], [[1.0]]]),
            r"Pca takes examples of shape \(columns,\), received \(1, 1",
        ),
        (lambda: adapt(tabular.Scale(), [[1.0, 2.0]])(np.ones((4, 1))), "Scale learned 2 columns, received .*4, 1"),
        (lambda: tabular.mlp((8, 8, 1), 2), r"mlp takes examples of shape \(columns,\), received \(8, 8, 1\)"),
        (lambda: tabular.from_sklearn("digits"), "name must be one of breast_cancer, iris, wine"),
    ],
)
def test_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()
