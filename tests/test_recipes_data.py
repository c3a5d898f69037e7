"""The recipes for words, motion and tables, on small data made here; and the options of `.npz` files that they use."""

import csv

import numpy as np
import pytest

import tfopt
from recipes import keyword, motion, tabular


def run(stages, folder):
    """Without the timing at the end; the accuracy on the test split, of the float model and of the int8 file."""
    assert isinstance(stages[-1], tfopt.Benchmark)
    work = tfopt.run(stages[:-1], tfopt.Work(workdir=folder))
    file = work.report.artefacts["tflite"]
    assert (file["float_ops"], file["flex_ops"]) == ([], [])
    trained = next(each for each in work.report.stages if each.name == "Train")
    return work, [trained.metrics["after"]["accuracy"], file["accuracy"]]


@pytest.mark.slow
def test_keyword_tells_tones_apart(tmp_path):
    rng = np.random.default_rng(0)
    words, lengths = np.arange(120) % 3, rng.integers(400, 1500, 120)
    sounds = [
        np.sin(2 * np.pi * (150 * (2 + word)) * np.arange(length) / 1000) * 8000 + rng.normal(0, 300, length)
        for word, length in zip(words, lengths, strict=True)
    ]
    np.savez(
        tmp_path / "words.npz",
        audio=np.concatenate(sounds).astype("int16"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        digit=words.astype("uint8"),
        is_test=np.arange(120) % 4 == 0,
    )
    stages = keyword.stages(
        path=str(tmp_path / "words.npz"),
        names="low,mid,high",
        rate=1000,
        bins=10,
        # Enough steps for the statistics of batch normalization to follow.
        epochs=8,
        prune_epochs=2,
        qat_epochs=1,
        filters=8,
        batch_size=8,
        learning_rate=1e-2,
    )
    work, accuracies = run(stages, tmp_path / "run")
    assert work.data.sizes == {"train": 81, "validation": 9, "test": 30}
    assert work.data.input_shape == (61, 10, 1)
    assert min(accuracies) >= 0.9
    assert any(isinstance(each, tfopt.Sparsity) for each in work.invariants)


@pytest.mark.slow
def test_motion_tells_rhythms_apart_in_other_people(tmp_path):
    rng = np.random.default_rng(0)
    y, who = np.arange(200) % 2, np.arange(200) // 20
    x = 30 + 5 * np.sin(np.arange(40)[:, None] * np.where(y, 0.3, 0.8)[:, None, None] + who[:, None, None])
    x = (x + rng.normal(0, 1, (200, 40, 3))).astype("float16")
    np.savez(tmp_path / "motion.npz", x=x, y=y.astype("uint8"), subject=who, classes=["slow", "fast"])
    stages = motion.stages(
        path=str(tmp_path / "motion.npz"), epochs=6, qat_epochs=1, filters=8, batch_size=16, learning_rate=1e-2
    )
    work, accuracies = run(stages, tmp_path / "run")
    assert work.data.class_names == ("slow", "fast")
    # Twenty windows of each person: whole people are in each split.
    assert work.data.sizes == {"train": 140, "validation": 20, "test": 40}
    assert min(accuracies) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("components", [0, 5])
def test_tabular_on_a_bundled_set(components, tmp_path):
    work, accuracies = run(
        tabular.stages("wine", components=components, epochs=30, qat_epochs=2, units=16), tmp_path / "run"
    )
    assert work.data.input_shape == (components or 13,)
    assert min(accuracies) >= 0.9


@pytest.mark.slow
def test_tabular_on_a_file_with_gaps(tmp_path):
    rng = np.random.default_rng(0)
    with open(tmp_path / "pets.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["weight", "age", "kind"])
        for row in range(120):
            weight = rng.normal(4, 1) if row % 2 else rng.normal(30, 3)
            writer.writerow([f"{weight:.2f}", "" if row % 7 == 0 else row % 13, "cat" if row % 2 else "dog"])
    stages = tabular.stages(path=str(tmp_path / "pets.csv"), target="kind", epochs=10, qat_epochs=1, units=8)
    work, accuracies = run(stages, tmp_path / "run")
    assert work.data.class_names == ("cat", "dog")
    assert min(accuracies) >= 0.9


# Options of .npz files


@pytest.fixture
def recordings(tmp_path):
    """Recordings of 1 to 6 samples, whose samples are their number."""
    lengths = np.arange(30) % 6 + 1
    path = tmp_path / "all.npz"
    np.savez(
        path,
        x=np.repeat(np.arange(30), lengths).astype("int16"),
        y=np.arange(30) % 2,
        begin=np.concatenate([[0], np.cumsum(lengths)]),
        late=np.arange(30) >= 24,
        who=np.arange(30) // 4,
        names=np.array(["no", "yes"]),
        short=np.ones(3, bool),
    )
    return path


def test_recordings_are_cut_and_filled_and_tested_as_said(recordings):
    data = tfopt.from_npz(recordings, offsets="begin", length=4, test="late", groups="who", classes="names")
    assert data.class_names == ("no", "yes")
    seen = {}
    for split in data.sizes:
        for x, y in data.examples(split).as_numpy_iterator():
            number = x[0]
            assert np.array_equal(x, [number] * min(4, number % 6 + 1) + [0] * (4 - min(4, number % 6 + 1)))
            assert y == number % 2
            seen.setdefault(split, []).append(int(number))
    assert seen["test"] == list(range(24, 30))
    assert sorted(sum(seen.values(), [])) == list(range(30))
    assert not {each // 4 for each in seen["train"]} & {each // 4 for each in seen["validation"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offsets": "begin"}, "offsets and length go together"),
        ({"offsets": "begin", "length": 0}, "length must be at least 1"),
        ({"offsets": "late", "length": 3}, "offsets must be whole numbers that rise"),
        ({"offsets": "who", "length": 3, "test": "late"}, "must be a boolean for each of 29 examples"),
        ({"offsets": "begin", "length": 3, "test": "short"}, "must be a boolean for each of 30 examples"),
        ({"offsets": "begin", "length": 3, "test": "y"}, "must be a boolean for each of 30 examples, received int64"),
        ({"offsets": "begin", "length": 3, "test": "last"}, "has no array 'last', it has x, y, begin"),
        ({"offsets": "x", "length": 3}, "as many rows each"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, recordings):
    with pytest.raises(ValueError, match=message):
        tfopt.from_npz(recordings, **options)
