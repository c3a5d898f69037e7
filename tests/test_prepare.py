"""Preparation in a chain: what was learned is kept beside the model."""

import numpy as np

import tfopt
from tfopt.tabular import Clip, Impute, Scale
from tfopt.text import CleanText, Vectorize, load_tokenizer


def test_what_was_learned_is_written(tmp_path):
    rows = np.random.default_rng(0).normal(3.0, 2.0, (60, 4))
    rows[::7, 1] = np.nan
    steps = (Impute(), Clip(), Scale())
    start = tfopt.Work(None, tfopt.from_arrays((rows, np.arange(60) % 2)), tmp_path)
    work = tfopt.run([tfopt.Prepare(steps)], start)
    folder = tmp_path / "01-Prepare"
    imputed, clipped, scaled = (
        np.load(folder / f"{n}-{name}.npz") for n, name in enumerate(("Imputed", "Clipped", "Scaled"), 1)
    )
    filled = np.where(np.isnan(rows), imputed["values"], rows)
    made = (np.clip(filled, clipped["low"], clipped["high"]) - scaled["mean"]) / scaled["deviation"]
    raw = np.stack([x for x, _ in start.data.examples("test").as_numpy_iterator()])
    mine = [made[np.flatnonzero((np.nan_to_num(rows) == np.nan_to_num(row)).all(1))[0]] for row in raw]
    found = np.stack([x for x, _ in work.data.examples("test").as_numpy_iterator()])
    np.testing.assert_allclose(found, mine, rtol=1e-5)
    assert "3-Scaled.npz" in work.report.stages[-1].notes[1]


def test_a_tokenizer_is_written(tmp_path):
    texts = np.array(["A good film!", "a bad one", "so good"] * 10)
    start = tfopt.Work(None, tfopt.from_arrays((texts, np.arange(30) % 2)), tmp_path)
    work = tfopt.run([tfopt.Prepare((CleanText(), Vectorize(20, 4)))], start)
    kept = load_tokenizer(tmp_path / "01-Prepare" / "2-WordTokenizer.json")
    assert kept.vocabulary == work.data.prepared[1].vocabulary
    assert len(kept.vocabulary) > 4
