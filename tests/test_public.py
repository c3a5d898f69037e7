"""The public surface: what `import tfopt` gives, loads and leaves alone; the figures of the first recipe."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import tfopt
from tfopt.tflite.flatbuffer import read_tflite

PROBE = """
import os, sys
import tensorflow, keras  # Keras loads matplotlib and scikit-learn where they are installed
loaded = set(sys.modules)
before = dict(os.environ)
import tfopt
heavy = [name for name in ("tensorflow_model_optimization", "tf_keras", "matplotlib", "ray", "optuna", "sklearn",
                           "tensorflow_datasets", "jax", "torch") if name in set(sys.modules) - loaded]
assert not heavy, heavy
changed = {key: value for key, value in os.environ.items() if before.get(key) != value}
assert not changed, changed
import tensorflow as tf
# TensorFlow's runtime is not started yet: devices can still be configured.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
assert len(tf.config.list_logical_devices("CPU")) == 2
assert tf.keras.__version__.startswith("3.")
print("fine")
"""


def test_import_is_light_and_leaves_tensorflow_as_it_was():
    # As a user's shell has it: TFMOT, which other tests import, asks for Keras 2 in the environment.
    clean = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, env=clean)
    assert done.stdout.strip() == "fine", done.stderr[-3000:]


def test_names_are_few_sorted_and_documented():
    assert tfopt.__all__ == sorted(tfopt.__all__)
    assert len(tfopt.__all__) <= 60
    assert all(getattr(tfopt, name).__doc__ for name in tfopt.__all__)


@pytest.mark.slow
def test_the_digits_recipe_reaches_its_figures(tmp_path, digits_dir):
    command = [sys.executable, "-m", "recipes.digits_int8", f"--workdir={tmp_path}", f"--data_dir={digits_dir}"]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads((tmp_path / "report.json").read_text())
    floats, pruned, int8 = report["chain"]
    assert int8["accuracy"] >= 0.97
    assert int8["accuracy"] >= floats["accuracy"] - 0.005
    assert pruned["sparsity"] >= 0.79
    # The zeros, read from the file by hand: every int8 weight that is equal to its zero point.
    graph = read_tflite(tmp_path / report["artefacts"]["tflite"]["path"]).graphs[0]
    weights = [
        graph.tensors[operator.inputs[1]].data
        for operator in graph.operators
        if operator.type in ("CONV_2D", "FULLY_CONNECTED")
    ]
    assert all(each.dtype == np.int8 for each in weights)
    assert sum((each == 0).sum() for each in weights) / sum(each.size for each in weights) >= 0.79
