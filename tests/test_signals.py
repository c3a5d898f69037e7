"""Signals: augmentations that depend on the signal and its seed alone, and spectrograms as NumPy computes them."""

import dataclasses

import numpy as np
import pytest
import scipy.signal
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tfopt
from tfopt import signals
from tfopt.augment.seeds import fold
from tfopt.data import prepare
from tfopt.signals.amplitude import normal
from tfopt.signals.time import sample_at

OPERATIONS = {
    "jitter": signals.Jitter(0.3),
    "scaling": signals.Scaling(0.3),
    "warp": signals.TimeWarp(0.6, waves=4),
    "shift": signals.TimeShift(5),
    "wrap": signals.TimeShift(5, "wrap"),
    "mask": signals.TimeMask(0.7),
}
# With these nothing changes.
STILL = [
    signals.Jitter(0.0),
    signals.Scaling(0.0),
    signals.TimeWarp(0.0),
    signals.TimeShift(0),
    signals.TimeShift(0, "wrap"),
    signals.TimeMask(0.0),
]
# An odd length and number of channels: examples then begin anywhere in what the processor takes at once.
BATCH = arrays.arrays("float32", (5, 37, 3), elements=st.floats(-100, 100, width=32))
SEEDS = np.array([5, -7, 2**40, 0, 1])


@pytest.mark.parametrize("name", OPERATIONS)
@given(x=BATCH)
@settings(max_examples=5, deadline=None)
def test_each_signal_by_itself_to_the_bit(name, x):
    operation = OPERATIONS[name]
    made = operation(x, SEEDS).numpy()
    assert (made.shape, made.dtype) == (x.shape, x.dtype)
    assert np.isfinite(made).all()
    for rows in ([1], [4, 2], [3, 3, 0, 1]):
        assert np.array_equal(operation(x[rows], SEEDS[rows]), made[rows])
    assert np.array_equal(operation(x[2], SEEDS[2]), made[2])


@pytest.mark.parametrize("operation", STILL, ids=repr)
@given(x=BATCH)
@settings(max_examples=5, deadline=None)
def test_at_magnitude_0_nothing_changes(operation, x):
    assert np.array_equal(operation(x, SEEDS), x)


@pytest.mark.parametrize("name", OPERATIONS)
def test_seeds_make_the_difference(name):
    x = np.random.default_rng(0).normal(size=(37, 3)).astype("float32")
    made = {OPERATIONS[name](x, seed).numpy().tobytes() for seed in range(10)}
    assert len(made) >= 6


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("workers", [1, 8])
def test_parallel_maps_give_the_same(name, workers):
    x = np.random.default_rng(0).normal(size=(40, 21, 2)).astype("float32")
    seeds = fold(tf.range(40, dtype=tf.int64), 3)
    whole = OPERATIONS[name](x, seeds).numpy()
    pairs = tf.data.Dataset.from_tensor_slices((x, seeds))
    single = pairs.map(OPERATIONS[name], num_parallel_calls=workers)
    assert np.array_equal(np.stack(list(single.as_numpy_iterator())), whole)
    batched = pairs.batch(7).map(OPERATIONS[name], num_parallel_calls=workers)
    assert np.array_equal(np.concatenate(list(batched.as_numpy_iterator())), whole)


def test_epochs_differ_and_repeat_by_the_seed():
    x = np.random.default_rng(0).normal(size=(20, 16, 2)).astype("float32")
    changes = (signals.TimeWarp(), signals.TimeShift(2), signals.Jitter())
    data, same = (tfopt.from_arrays((x, np.arange(20) % 2), batch_size=8, augment=changes) for _ in range(2))
    first, second, again = (
        np.concatenate([batch for batch, _ in each.as_numpy_iterator()])
        for each in (data.training_batches(0), data.training_batches(1), same.training_batches(0))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_noise_is_normal():
    drawn = np.sort(normal(tf.constant([3, 4], tf.int64), 0, (20_000,)).numpy().ravel())
    expected = scipy.stats.norm.cdf(drawn)
    # Kolmogorov's distance, of which 1.63 / sqrt(n) is passed once in a hundred draws.
    assert np.abs(expected - (np.arange(40_000) + 0.5) / 40_000).max() < 1.63 / 200
    assert (
        abs(np.corrcoef(normal(tf.range(9000, dtype=tf.int64), 0), normal(tf.range(9000, dtype=tf.int64), 1))[0, 1])
        < 0.04
    )


def test_jitter_and_scaling_have_their_deviations():
    x = np.ones((400, 50, 4), "float32")
    noisy = signals.Jitter(0.2)(x, np.arange(400)).numpy() - 1
    assert noisy.std() == pytest.approx(0.2, rel=0.02)
    assert abs(noisy.mean()) < 0.003
    scaled = signals.Scaling(0.2)(x, np.arange(400)).numpy()
    assert (scaled == scaled[:, :1]).all()
    assert scaled[:, 0].std() == pytest.approx(0.2, rel=0.1)
    assert scaled[:, 0].mean() == pytest.approx(1, abs=0.02)


@given(x=arrays.arrays("float32", (2, 23, 2), elements=st.floats(-100, 100, width=32)), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_warp_is_numpys_interpolation(x, seed):
    warp, seeds = signals.TimeWarp(0.7), np.array([seed, seed + 1])
    times = warp.times(23, tf.constant(seeds, tf.int64)).numpy()
    made = warp(x, seeds).numpy()
    for row in range(2):
        for channel in range(2):
            expected = np.interp(times[row], np.arange(23), x[row, :, channel])
            np.testing.assert_allclose(made[row, :, channel], expected, atol=1e-4)
    outside = np.array([[-3.0, 0.5, 21.75, 40.0]] * 2, "float32")
    expected = [np.interp(outside[0], np.arange(23), x[0, :, 0])]
    np.testing.assert_allclose(sample_at(tf.constant(x[:1]), tf.constant(outside[:1]))[..., 0], expected, atol=1e-4)


@pytest.mark.parametrize("strength", [0.2, 0.9])
def test_the_warp_keeps_ends_order_and_speed(strength):
    times = signals.TimeWarp(strength, waves=5).times(200, tf.range(500, dtype=tf.int64)).numpy()
    assert (times[:, 0] == 0).all()
    np.testing.assert_allclose(times[:, -1], 199, atol=1e-3)
    speed = np.diff(times, axis=1)
    assert 1 - strength - 1e-3 <= speed.min() < 1 - 0.4 * strength
    assert 1 + 0.4 * strength < speed.max() <= 1 + strength + 1e-3


def test_shifts_are_numpys():
    x = np.random.default_rng(0).normal(size=(200, 9, 2)).astype("float32")
    wrapped = signals.TimeShift(3, "wrap")(x, np.arange(200)).numpy()
    filled = signals.TimeShift(3)(x, np.arange(200)).numpy()
    seen = set()
    for before, one, other in zip(x, wrapped, filled, strict=True):
        shift = next(each for each in range(-3, 4) if np.array_equal(np.roll(before, each, 0), one))
        expected = np.roll(before, shift, 0)
        expected[: max(shift, 0)] = 0
        expected[9 + min(shift, 0) :] = 0
        assert np.array_equal(other, expected)
        seen.add(shift)
    assert seen == set(range(-3, 4))
    # Farther than the signal is long.
    assert (signals.TimeShift(100)(x, np.arange(200)).numpy() == 0).all(axis=(1, 2)).any()


def test_masks_are_one_stretch_of_every_length_and_place():
    made = signals.TimeMask(0.5)(np.ones((500, 10, 2), "float32"), np.arange(500)).numpy()
    assert np.array_equal(made[..., 0], made[..., 1])
    hidden = made[..., 0] == 0
    assert set(hidden.sum(axis=1)) == set(range(6))
    assert (np.abs(np.diff(hidden.astype(int), axis=1)).sum(axis=1) <= 2).all()
    assert hidden[hidden.sum(axis=1) == 1].any(axis=0).all()


# Spectrograms


def mel_by_hand(waves, rate, frame, hop, bins, low, high):
    """SciPy's short-time Fourier transform and the triangles of HTK, in float64."""
    window = scipy.signal.get_window("hann", frame)
    size = 2 ** int(np.ceil(np.log2(frame)))
    starts = range(0, waves.shape[1] - frame + 1, hop)
    frames = np.stack([waves[:, start : start + frame] * window for start in starts], axis=1)
    power = np.abs(np.fft.rfft(frames, size)) ** 2

    def mel(frequency):
        return 1127 * np.log1p(frequency / 700)

    edges = np.linspace(mel(low), mel(high), bins + 2)
    places = mel(np.arange(size // 2 + 1) * rate / size)[:, None]
    rising = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    # The constant part has no pitch.
    weights = np.maximum(0, np.minimum(rising, falling)) * (np.arange(size // 2 + 1) > 0)[:, None]
    return power @ weights


@pytest.mark.parametrize(
    "sizes",
    [
        {"rate": 8000, "frame": 256, "hop": 128, "bins": 40, "low": 20.0, "high": 4000.0},
        {"rate": 16000, "frame": 400, "hop": 160, "bins": 32, "low": 80.0, "high": 7600.0},
    ],
)
def test_spectrograms_are_scipys(sizes):
    waves = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 2000))
    expected = mel_by_hand(waves, **sizes)
    made = signals.MelSpectrogram(**sizes, log=False)(waves.astype("float32")).numpy()
    assert made.shape == (*expected.shape, 1)
    assert made.dtype == "float32"
    np.testing.assert_allclose(made[..., 0], expected, rtol=1e-4, atol=1e-5)
    logarithm = signals.MelSpectrogram(**sizes)(waves.astype("float32")[..., None]).numpy()
    np.testing.assert_allclose(logarithm[..., 0], np.log(expected + 1e-6), atol=1e-3)


def test_a_tone_is_in_the_band_of_its_pitch():
    tone = np.sin(2 * np.pi * 1000 * np.arange(4000) / 8000)[None]
    mel = signals.MelSpectrogram(8000, 256, 128, 30)
    band = mel(tone).numpy()[0, :, :, 0].mean(axis=0).argmax()
    centres = np.linspace(*(1127 * np.log1p(np.array([20, 4000]) / 700)), 32)[1:-1]
    assert abs(centres[band] - 1127 * np.log1p(1000 / 700)) <= centres[1] - centres[0]


def test_integers_are_the_same_sound():
    waves = np.random.default_rng(0).integers(-(2**15), 2**15, (2, 1000)).astype("int16")
    mel = signals.MelSpectrogram(8000, 256, 128, 30)
    assert np.array_equal(mel(waves), mel(waves.astype("float32") / 2**15))
    assert np.array_equal(mel(waves), mel(signals.Waveform()(waves)))


def test_spectrograms_as_preparation_and_as_transform_are_the_same():
    waves = np.random.default_rng(0).integers(-3000, 3000, (40, 1000)).astype("int16")
    mel = signals.MelSpectrogram(8000, 256, 128, 20)
    data = tfopt.from_arrays((waves, np.arange(40) % 2), batch_size=8)
    before = prepare(data, [mel])
    assert before.prepared == (mel,)
    after = prepare(dataclasses.replace(data, transform=mel), [signals.Waveform()])
    assert before.input_shape == after.input_shape == (6, 20, 1)
    for (x, label), (same, label_too) in zip(before.test, after.test, strict=True):
        assert np.array_equal(x, same)
        assert np.array_equal(label, label_too)
    noisy = dataclasses.replace(after, augment=(signals.Jitter(0.1), signals.TimeShift(100)))
    x, plain = (next(iter(each.training_batches(0)))[0].numpy() for each in (noisy, after))
    assert x.shape == plain.shape
    assert np.abs(x - plain).max() > 0.1


def test_all_of_conv1d_net_becomes_integers():
    aware = tfopt.quantize_aware(signals.conv1d_net((32, 2), 3, filters=4, blocks=2))
    assert tfopt.float_islands(aware) == {}
    assert aware.output_shape == (None, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: signals.Jitter(-1.0), "deviation must be at least 0, received -1"),
        (lambda: signals.Scaling(-1.0), "deviation must be at least 0, received -1"),
        (lambda: signals.TimeWarp(1.0), r"strength must be a fraction in \[0, 1\)"),
        (lambda: signals.TimeWarp(0.1, 0), "waves must be at least 1"),
        (lambda: signals.TimeShift(-1), "steps must be at least 0"),
        (lambda: signals.TimeShift(1, "reflect"), 'mode must be "constant" or "wrap"'),
        (lambda: signals.TimeMask(20), "fraction must be a fraction in .0, 1., received 20; for 20 % write 0.2"),
        (lambda: signals.Jitter()(np.zeros((3, 2)), 0), "takes signals as float32, received float64: cast them"),
        (lambda: signals.Jitter()(np.zeros(3, "float32"), 0), r"takes signals of shape \(t, c\) or \(n, t, c\)"),
        (lambda: signals.MelSpectrogram(hop=0), "rate, frame, hop and bins must be at least 1"),
        (lambda: signals.MelSpectrogram(8000, high=5000.0), "<= 4000 Hz, half of the rate; received 20 and 5000"),
        (lambda: signals.MelSpectrogram(8000, 64, bins=40), "of 40 bands are so narrow .* fewer bins, or longer"),
        (lambda: signals.MelSpectrogram()(np.zeros((2, 100), "int16")), "a frame has 512 samples, the waveforms have"),
        (lambda: signals.Waveform()(np.zeros((2, 9, 2), "int16")), r"received \(2, 9, 2\): take one channel"),
        (lambda: signals.Waveform()(np.zeros((2, 9), "uint8")), "int16 or floats in .-1, 1., received uint8"),
    ],
)
def test_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()
