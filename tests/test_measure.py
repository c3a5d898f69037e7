"""Figures of .tflite files: size, sparsity, unique values, latency."""

import gc
import gzip
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import zstandard
from keras import layers

from tfopt.measure import latency
from tfopt.measure.file import measure_tflite
from tfopt.measure.latency import WORKER, cpu_name, measure_latencies, measure_latency
from tfopt.tflite.export import export_tflite


@pytest.fixture(scope="module", autouse=True)
def _frozen_garbage():
    # The converter collects garbage each time; spared TensorFlow's own objects, an export takes half as long.
    gc.freeze()
    yield
    gc.unfreeze()


def pruned_net(sparsity=0.75):
    """A conv, a depthwise and a dense layer with just that fraction of zeros in each kernel."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((10, 10, 4), name="image"),
            layers.Conv2D(32, 3, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(2, name="depthwise"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(40, name="dense"),
        ]
    )
    generator = np.random.default_rng(0)
    for name in ("conv", "depthwise", "dense"):
        kernel = model.get_layer(name).kernel
        # Away from 0, so that int8 rounds none to it.
        values = generator.uniform(0.5, 1.0, kernel.shape).ravel()
        values[generator.permutation(values.size)[: int(sparsity * values.size)]] = 0
        kernel.assign(values.reshape(kernel.shape))
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    model = pruned_net()
    x = np.random.default_rng(1).normal(size=(16, 10, 10, 4)).astype("float32")
    modes = ("none", "float16", "dynamic", "int8", "int16x8")
    return {
        mode: export_tflite(model, folder / f"{mode}.tflite", mode, x if mode.startswith("int") else None)
        for mode in modes
    }


@pytest.mark.parametrize("mode", ["none", "float16", "dynamic", "int8", "int16x8"])
def test_sparsity_of_the_file_is_that_of_the_keras_weights(files, mode):
    measured = files[mode]
    assert len(measured.tensors) == 3
    assert list(measured.sparsity.values()) == [0.75, 0.75, 0.75]
    assert measured.total_sparsity == 0.75


def test_weight_tensors_are_kernels_not_biases(files):
    shapes = {tensor.shape: (tensor.dtype, tensor.bytes) for tensor in files["int8"].tensors}
    assert shapes == {
        (32, 3, 3, 4): ("int8", 1152),
        (1, 2, 2, 32): ("int8", 128),
        (40, 32): ("int8", 1280),
    }
    assert files["float16"].tensors[0].dtype == "float16"
    assert files["float16"].tensors[0].bytes == 2 * 1152


def test_file_figures(files, tmp_path):
    measured = files["none"]
    with open(measured.path, "rb") as file:
        content = file.read()
    assert measured.bytes == len(content)
    assert measured.gzip_bytes == len(gzip.compress(content, 9, mtime=0)) < measured.bytes
    assert measured.zstd_bytes == len(zstandard.compress(content, 19)) < measured.bytes
    assert measured.ops == {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1}
    assert measured.float_ops == list(measured.ops)
    assert files["int8"].float_ops == []
    assert measured["bytes"] == measured.bytes
    assert json.loads(json.dumps(measured.to_dict()))["total_sparsity"] == 0.75
    assert measure_tflite(measured.path) == measured


def test_unique_values(tmp_path):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64, name="dense")])
    clusters = np.random.default_rng(0).choice([-1.0, -0.25, 0.5, 1.0], (64, 64))
    model.layers[0].kernel.assign(clusters)
    for mode in ("none", "dynamic"):
        measured = export_tflite(model, tmp_path / "m.tflite", mode)
        assert list(measured.unique_values.values()) == [4]


def test_a_shared_kernel_counts_once(tmp_path):
    shared = layers.Dense(20)
    inputs = keras.Input((20,))
    measured = export_tflite(keras.Model(inputs, shared(shared(inputs))), tmp_path / "m.tflite")
    assert measured.ops["FULLY_CONNECTED"] == 2
    assert [tensor.shape for tensor in measured.tensors] == [(20, 20)]


def test_a_file_without_weights(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.ReLU()])
    measured = export_tflite(model, tmp_path / "m.tflite")
    assert (measured.tensors, measured.total_sparsity, measured.sparsity) == ([], 0.0, {})


def test_latency(files):
    found = measure_latency(files["int8"].path, runs=5, warmup=1)
    assert 0 < found.median_ms <= found.p90_ms
    assert (found.runs, found.threads, found.cpu) == (5, 1, cpu_name())
    assert found.cpu
    assert found.runtime.startswith("ai-edge-litert ")
    assert found.runtime.endswith(", XNNPACK")


def test_several_files_take_turns(files):
    paths = [files[mode].path for mode in ("none", "int16x8")]
    latencies = measure_latencies(paths, threads=2, runs=3, warmup=0)
    assert [latency.runs for latency in latencies] == [3, 3]
    assert all(latency.threads == 2 and latency.median_ms > 0 for latency in latencies)
    # XNNPACK takes no int16 operators.
    assert [latency.runtime.split(", ")[1] for latency in latencies] == ["XNNPACK", "built-in kernels"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not let processes choose their CPU")
@pytest.mark.parametrize(("count", "threads", "shared"), [(2, 1, True), (2, 2, False), (1, 1, False)])
def test_several_files_of_one_thread_share_a_cpu(count, threads, shared, files, monkeypatch):
    begin, used = latency._Worker.answer, []

    def answer(worker):
        found = begin(worker)
        used.append(frozenset(os.sched_getaffinity(worker.process.pid)))
        return found

    monkeypatch.setattr(latency._Worker, "answer", answer)
    everywhere = frozenset(os.sched_getaffinity(0))
    for seed in range(2):
        used.clear()
        measure_latencies([files["int8"].path] * count, threads=threads, runs=2, warmup=0, seed=seed)
        expected = {sorted(everywhere)[seed % len(everywhere)]} if shared else everywhere
        assert set(used) == {frozenset(expected)}


def test_a_heavier_model_takes_longer(tmp_path):
    paths = []
    for units in (8, 768):
        model = keras.Sequential([keras.Input((units,)), layers.Dense(units), layers.Dense(units)])
        paths.append(export_tflite(model, tmp_path / f"{units}.tflite").path)
    small, large = measure_latencies(paths, runs=9, warmup=2)
    # 9,000 times the work: no noise hides that.
    assert large.median_ms > 5 * small.median_ms


def test_integer_and_dynamic_inputs_can_be_timed(tmp_path):
    model = keras.Sequential([keras.Input((6,), dtype="int32"), layers.Embedding(2, 8)])
    export_tflite(model, tmp_path / "m.tflite", batch_size=None)
    assert measure_latency(tmp_path / "m.tflite", runs=2, warmup=0).median_ms > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads must be at least 1, received 0"),
        ({"runs": 0}, "runs must be at least 1, received 0"),
        ({"warmup": -1}, "warmup must be at least 0, received -1"),
        ({"timeout": 0}, "timeout must be above 0 seconds"),
    ],
)
def test_bad_arguments(files, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(files["int8"].path, **arguments)


def test_no_files():
    with pytest.raises(ValueError, match="paths is empty"):
        measure_latencies([])


def test_a_time_limit(files):
    with pytest.raises(TimeoutError, match=r"took longer than 0.01 s: use fewer runs, or raise timeout"):
        measure_latency(files["int8"].path, timeout=0.01)


def test_missing_and_damaged_files(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        measure_latency(tmp_path / "none.tflite")
    with open(files["int8"].path, "rb") as file:
        (tmp_path / "m.tflite").write_bytes(file.read()[:900])
    with pytest.raises(ValueError, match=r"m\.tflite is damaged or cut short"):
        measure_latency(tmp_path / "m.tflite")


def test_flex_files_cannot_be_timed(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(keras.ops.erf)])
    export_tflite(model, tmp_path / "m.tflite", allow_flex=True)
    with pytest.raises(ValueError, match="needs Erf, which LiteRT's own runtime does not have"):
        measure_latency(tmp_path / "m.tflite")


def test_the_workers_failure_is_told_with_its_message(files, tmp_path, monkeypatch):
    # A file that vanishes between the check and the start of the process.
    monkeypatch.setattr(
        "tfopt.measure.latency.read_tflite", lambda path: type("", (), {"flex_ops": [], "custom_ops": []})
    )
    with pytest.raises(RuntimeError, match=r"LiteRT cannot run .*none.tflite: ValueError: .*none.tflite"):
        measure_latency(tmp_path / "none.tflite")


def test_a_worker_that_dies_is_told(files, tmp_path, monkeypatch):
    broken = tmp_path / "worker.py"
    broken.write_text("import sys\nsys.exit('out of luck')\n")
    monkeypatch.setattr("tfopt.measure.latency.WORKER", broken)
    with pytest.raises(RuntimeError, match="its process ended with code 1; it wrote: out of luck"):
        measure_latency(files["int8"].path)


def test_the_worker_imports_no_tensorflow():
    code = f"import runpy, sys; runpy.run_path({str(WORKER)!r}); import ai_edge_litert.interpreter; "
    code += "print([m for m in ('tensorflow', 'keras', 'tfopt') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
