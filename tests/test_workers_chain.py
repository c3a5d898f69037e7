"""A whole chain, with what trains and what does not, on two workers as on one device."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import tfopt

pytestmark = pytest.mark.slow


def report_of(folder, digits_dir, *flags):
    command = [sys.executable, "-m", "tests.chain_recipe", f"--workdir={folder}", f"--data_dir={digits_dir}", *flags]
    environ = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "report.json").read_text())


def test_a_chain_on_two_workers_is_that_of_one_device(digits_dir, tmp_path):
    one = report_of(tmp_path / "one", digits_dir, "--strategy=one_device")
    two = report_of(tmp_path / "two", digits_dir, "--local_workers=2")
    assert "2 replicas in 2 processes" in two["environment"]["strategy"]
    assert len(one["stages"]) == len(two["stages"]) == 10
    for ours, theirs in zip(two["stages"], one["stages"], strict=True):
        assert ours["name"] == theirs["name"]
        assert ours["history"].keys() == theirs["history"].keys()
        for name, values in theirs["history"].items():
            # From PruneChannels on, which of two channels that matter as little goes may be the other one.
            loss = 5e-3 if theirs["name"] == "Train" else 0.1
            # A decision is one of 144 in the validation split.
            tolerance = {"atol": 0.05} if "accuracy" in name else {"rtol": loss}
            np.testing.assert_allclose(ours["history"][name], values, **tolerance, err_msg=name)
        assert ours["changed"] == theirs["changed"]
    (path,) = (tmp_path / "two").glob("*-ExportTFLite/*.tflite")
    assert tfopt.measure_tflite(path).total_sparsity >= 0.45
    assert two["artefacts"]["tflite"]["accuracy"] == pytest.approx(one["artefacts"]["tflite"]["accuracy"], abs=0.05)
