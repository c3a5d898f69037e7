"""The comparison with TFMOT: rows that are kept, resumed, summed up, and published."""

import json

import keras
import numpy as np
import pytest

import tfopt
from recipes import compare
from recipes.benchmarks import engine_table, engines, versus_tfmot
from recipes.benchmarks.engines import PEERS, TECHNIQUES, Contest, Rows
from tests.conftest import blobs


def row(engine="tfopt", technique="PQAT", seed=0, **values):
    known = {"accuracy": 0.9, "parity": 0.99, "sparsity": 0.8, "unique_values": 100, "bytes": 1000, "gzip_bytes": 500}
    ran = {"ran": True, "error": None, "promises": "", "stages": [], "seconds": 1.0}
    return {"model": "m", "seed": seed, "technique": technique, "engine": engine, **ran, **known, **values}


def test_rows_are_kept_and_replaced(tmp_path):
    rows = Rows(tmp_path / "rows.jsonl")
    assert rows.read() == []
    for each in (row(accuracy=0.5), row("TFMOT"), row(accuracy=0.6)):
        rows.write(each)
    assert [(each["engine"], each["accuracy"]) for each in rows.read()] == [("TFMOT", 0.9), ("tfopt", 0.6)]
    rows.path.write_text(rows.path.read_text() + '{"cut')
    with pytest.raises(ValueError, match="line 3 of .* is damaged"):
        rows.read()


def test_engines_take_turns():
    for seed in (0, 1):
        order = list(engines.plan(list(TECHNIQUES), seed))
        assert [engine for _, engine in order[: len(PEERS)]] == list(PEERS)
        first = [engine for _, engine in order[len(PEERS) :: 2]]
        assert first == ["tfopt", "TFMOT"] * 3 if seed == 0 else ["TFMOT", "tfopt"] * 3


def test_the_table_means_over_seeds_and_says_where_tfmot_is_ahead():
    rows = [
        row(seed=0, accuracy=0.90),
        row(seed=1, accuracy=0.92),
        row("TFMOT", seed=0, accuracy=0.95, gzip_bytes=600, sparsity=0.7),
        row("TFMOT", seed=1, accuracy=0.97, gzip_bytes=600, sparsity=0.7, promises="1 lost: x"),
        {**row("TFMOT", "CQAT"), "ran": False, "error": "RuntimeError: no"},
    ]
    merged = engine_table.merged(rows)
    assert [(each["technique"], each["engine"], each["seeds"]) for each in merged] == [
        ("PQAT", "tfopt", 2),
        ("PQAT", "TFMOT", 2),
        ("CQAT", "TFMOT", 0),
    ]
    assert engine_table.cells(merged[0])[0] == "0.9100 (0.9000 to 0.9200)"
    assert engine_table.cells(merged[2])[0] == "did not run"
    assert engine_table.remarks(rows) == [
        "m, PQAT, TFMOT: 1 lost: x",
        "m, CQAT, TFMOT: RuntimeError: no",
        "m, PQAT: TFMOT is ahead in accuracy, 0.96 for 0.91",
    ]
    text = engine_table.markdown(rows, "t", ["a note"])
    assert text.count("\n| ") == 4
    assert "- a note" in text


def test_what_fails_is_a_row_with_its_words(trained, data, tmp_path):
    subclassed = type("Own", (keras.Model,), {"call": lambda self, x: self.inner(x), "inner": None})()
    subclassed.inner = trained
    subclassed(np.zeros((1, 8, 8, 2), "float32"))
    contest = Contest(tfopt.Work(subclassed, data, seed=3), tmp_path, "own", engines.Budget())
    found = contest.row("QAT", "TFMOT")
    assert (found["ran"], found["seed"], found["engine"]) == (False, 3, "TFMOT")
    assert found["error"].startswith("ValueError: ")
    assert len(found["error"]) <= 160


@pytest.mark.slow
def test_files_after_training_are_measured(trained, data, tmp_path):
    contest = Contest(tfopt.Work(trained, data), tmp_path, "small", engines.Budget())
    plain, converted, quantized = (contest.row("after training", each) for each in PEERS)
    assert plain["float_ops"]
    assert converted["float_ops"] == quantized["float_ops"] == []
    assert converted["bytes"] < plain["bytes"]
    for each in (plain, converted, quantized):
        assert each["ran"], each["error"]
        assert each["accuracy"] > 0.9
        assert each["parity"] > 0.95


@pytest.mark.parametrize("program", [compare, versus_tfmot])
def test_flags_are_checked(program, capsys):
    assert program.main(["x", "--help"]) == 0
    assert "--only_timing" in capsys.readouterr().out
    assert program.main(["x", "--modle=m.keras"]) == 2
    given = ["--model=m", "--dataset=d"] if program is compare else []
    assert program.main(["x", *given, "--techniques=QTA"]) == 2
    assert "there is no 'QTA'; did you mean QAT?" in capsys.readouterr().err


@pytest.mark.slow
def test_what_tf_keras_does_not_have_is_timed_on_tfopt_alone(data, tmp_path):
    """It ended the whole comparison, after all trainings."""
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.RMSNormalization()(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    contest = Contest(tfopt.Work(model, data), tmp_path, "own", engines.Budget())
    found = engines.time_steps(contest, ["pruning"], engines.Timing(steps=1, rounds=1, memory=False))
    assert set(found) == {"float/tfopt", "pruning/tfopt"}


def test_a_log_has_the_figures_in_full(tmp_path, capsys):
    engine_table.publish([row(gzip_bytes=1_234_567)], tmp_path, "wide", [])
    assert "1,234,567" in capsys.readouterr().out


@pytest.mark.slow
def test_a_users_model_is_compared_and_the_comparison_goes_on(trained, tmp_path, capsys):
    trained.save(tmp_path / "mine.keras")
    x, y = blobs()
    np.savez(tmp_path / "set.npz", x=x, y=y)
    arguments = [
        "x",
        f"--model={tmp_path / 'mine.keras'}",
        f"--dataset={tmp_path / 'set.npz'}",
        f"--workdir={tmp_path / 'run'}",
        "--epochs=1",
        "--batch_size=24",
        "--clusters=4",
        "--techniques=clustering,PQAT",
    ]
    assert compare.main([*arguments, "--notiming"]) == 0
    rows = Rows(tmp_path / "run" / "rows.jsonl").read()
    assert [each["ran"] for each in rows] == [True] * 7, [each["error"] for each in rows]
    pruned = [each for each in rows if each["technique"] == "PQAT"]
    assert all(0.75 < each["sparsity"] < 0.85 for each in pruned)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [each["variant"] for each in report["chain"]] == [f"{each['technique']}, {each['engine']}" for each in rows]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert "| mine | PQAT | TFMOT |" in (tmp_path / "run" / "table.md").read_text()
    written = (tmp_path / "run" / "rows.jsonl").read_bytes()
    assert compare.main([*arguments, "--notiming"]) == 0
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == written
    contest = Contest(tfopt.Work(trained, tfopt.from_arrays((x, y), batch_size=24)), tmp_path / "run", "mine", None)
    timing = engines.Timing(runs=3, steps=2, rounds=1, memory=True)
    engines.time_rows(contest, ["clustering", "PQAT"], Rows(tmp_path / "run" / "rows.jsonl"), timing)
    timed = Rows(tmp_path / "run" / "rows.jsonl").read()
    assert all(each["median_ms"] > 0 for each in timed)
    assert all(each["step"] > 0 and each["memory"] > 0 for each in timed if each["engine"] not in PEERS)
