"""Batch prediction: what is written, and what ends a run."""

import json

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

import tfopt
from tfopt.predict import predict_files, run
from tfopt.predict.__main__ import main
from tfopt.tflite.run import predict_tflite

NUMBERS = np.random.default_rng(1).normal(size=(300, 4)).astype("float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two int8 files, and rows for them."""
    folder = tmp_path_factory.mktemp("files")
    for seed in (0, 1):
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(8, "relu"), keras.layers.Dense(3, "softmax", name="y")]
        net = keras.Sequential([keras.Input((4,), name="x"), *layers])
        tfopt.export_tflite(net, folder / f"{seed}.tflite", quantization="int8", calibration_data=NUMBERS)
    np.save(folder / "x.npy", NUMBERS)
    return folder


def predicted(folder):
    """The rows of all shards, in order."""
    table = pq.read_table(folder)
    order = np.argsort(table["row"].to_numpy())
    return table.take(order), np.stack(table["y"].to_numpy())[order]


def test_rows_are_predicted_once_with_the_bits_of_the_file_and_found_again(files, tmp_path):
    expected = predict_tflite(files / "0.tflite", NUMBERS)
    options = {"workers": 2, "shard_rows": 70, "class_names": ("a", "b", "c")}
    done = predict_files(files / "0.tflite", files / "x.npy", tmp_path / "out", **options)
    assert (done.rows, done.skipped, done.shards, done.found) == (300, 0, 5, 0)
    table, values = predicted(tmp_path / "out")
    assert table["row"].to_pylist() == list(range(300))
    assert table["id"][7].as_py() == "x.npy[7]"
    np.testing.assert_array_equal(values, expected)
    assert table["class"].to_pylist() == ["abc"[place] for place in expected.argmax(-1)]
    manifest = json.loads(done.manifest.read_text())
    assert (manifest["rows"], manifest["skipped"], len(manifest["shards"])) == (300, 0, 5)
    (tmp_path / "out" / "part-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"part-00003.parquet is missing, damaged or was changed"):
        predict_files(files / "0.tflite", files / "x.npy", tmp_path / "out", **options)
    (tmp_path / "out" / "_shards" / "00003.json").unlink()
    again = predict_files(files / "0.tflite", files / "x.npy", tmp_path / "out", **{**options, "workers": 1})
    assert (again.shards, again.found) == (5, 4)
    np.testing.assert_array_equal(predicted(tmp_path / "out")[1], expected)


def test_another_model_input_or_setting_is_refused(files, tmp_path):
    out = tmp_path / "out"
    np.save(tmp_path / "x.npy", NUMBERS[:10])
    options = {"workers": 1, "format": "npy", "class_names": ("a", "b", "c")}
    predict_files(files / "0.tflite", tmp_path / "x.npy", out, **options)
    names = sorted(path.name for path in (out / "part-00000").iterdir())
    assert names == ["class.npy", "id.npy", "row.npy", "y.npy"]
    np.testing.assert_array_equal(
        np.load(out / "part-00000" / "y.npy"), predict_tflite(files / "0.tflite", NUMBERS[:10])
    )
    with pytest.raises(ValueError, match=r"belongs to another run: model was 0.tflite, now 1.tflite; model_sha256"):
        predict_files(files / "1.tflite", tmp_path / "x.npy", out, **options)
    with pytest.raises(ValueError, match=r"format was npy, now parquet"):
        predict_files(files / "0.tflite", tmp_path / "x.npy", out, **{**options, "format": "parquet"})
    np.save(tmp_path / "x.npy", NUMBERS[:11])
    with pytest.raises(ValueError, match=r"the input has changed since .*: x.npy was \d+ bytes.* 10 rows, now"):
        predict_files(files / "0.tflite", tmp_path / "x.npy", out, **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis.txt and is no output of this"):
        predict_files(files / "0.tflite", tmp_path / "x.npy", tmp_path / "full", **options)


def test_a_model_that_is_replaced_meanwhile_ends_the_run(files, tmp_path, monkeypatch):
    (tmp_path / "m.tflite").write_bytes((files / "0.tflite").read_bytes())
    done = run.run_local

    def replaced(*arguments):
        done(*arguments)
        (tmp_path / "m.tflite").write_bytes((files / "1.tflite").read_bytes())

    monkeypatch.setattr(run, "run_local", replaced)
    with pytest.raises(RuntimeError, match=r"m.tflite was changed while it ran"):
        predict_files(tmp_path / "m.tflite", files / "x.npy", tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "_manifest.json").exists()


def test_bad_rows_stop_a_run_or_are_listed(files, tmp_path, capsys):
    rows = NUMBERS[:200].copy()
    rows[[5, 150], 2] = np.nan
    np.save(tmp_path / "x.npy", rows)
    words = [str(files / "0.tflite"), f"--input={tmp_path / 'x.npy'}", f"--output={tmp_path / 'out'}", "--workers=1"]
    words.append("--shard_rows=50")
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert "row 5, x.npy[5], cannot be used: it holds NaN or infinity for the input 'x'" in shown
    assert not (tmp_path / "out" / "_manifest.json").exists()
    assert main([*words, "--on_bad=skip"]) == 0
    assert "198 rows predicted, 2 skipped, in 4 shards" in capsys.readouterr().out
    table, values = predicted(tmp_path / "out")
    good = np.setdiff1d(np.arange(200), [5, 150])
    assert table["row"].to_pylist() == good.tolist()
    np.testing.assert_array_equal(values, predict_tflite(files / "0.tflite", rows[good]))
    listed = (tmp_path / "out" / "_skipped.csv").read_text().splitlines()
    reason = "it holds NaN or infinity for the input 'x'"
    assert listed == ["row,id,reason", f"5,x.npy[5],{reason}", f"150,x.npy[150],{reason}"]
    assert main(words) == 1
    assert "on_bad was skip, now raise" in capsys.readouterr().err


def test_outputs_that_parquet_does_not_hold_are_refused_at_once(tmp_path):
    module = tf.Module()
    module.call = tf.function(
        lambda x: {"y": tf.complex(x, x)}, input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")]
    )
    tf.saved_model.save(module, tmp_path / "m", signatures=module.call)
    np.save(tmp_path / "x.npy", np.ones((3, 2), "float32"))
    with pytest.raises(ValueError, match="'y' is complex64, which Parquet does not hold: pass format='npy'"):
        predict_files(tmp_path / "m", tmp_path / "x.npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"shard_rows": 0}, "shard_rows must be at least 1"),
        ({"engine": "dask"}, "engine must be local or ray"),
        ({"format": "csv"}, "format must be one of parquet, npy"),
        ({"on_bad": "ignore"}, "on_bad must be one of"),
        ({"address": "head:6379"}, "pass engine='ray'"),
        ({"class_names": ("a", "b")}, "there are 2 class_names"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(options, words, files, tmp_path):
    with pytest.raises(ValueError, match=words):
        predict_files(files / "0.tflite", files / "x.npy", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
