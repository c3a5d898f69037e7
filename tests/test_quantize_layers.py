"""Every layer and operator with a rule, in a quantized model and in its file: the same operators and numbers."""

import dataclasses

import keras
import numpy as np
import pytest

import tfopt
from tests.quantize_cases import GROUPS, examples, model_of
from tfopt.measure.file import Measurement
from tfopt.tflite.flatbuffer import FlatBuffer, read_tflite
from tfopt.tflite.model import call_named
from tfopt.tflite.noise import run_by_name

# Keras compiles grouped convolutions with XLA, which takes its time.
_SLOW = {"grouped"}
CASES = [
    pytest.param(group, case, marks=[pytest.mark.slow] * (group in _SLOW), id=case)
    for group, cases in GROUPS.items()
    for case in cases
]


@dataclasses.dataclass
class Group:
    """A model with an output for each case, what it gives, and what its file gives."""

    aware: keras.Model
    measured: Measurement
    file: FlatBuffer
    inputs: dict[str, np.ndarray]
    of_float: dict[str, np.ndarray]
    of_aware: dict[str, np.ndarray]
    of_file: dict[str, np.ndarray]
    of_xnnpack: dict[str, np.ndarray]

    def step(self, output):
        return float(self.file.outputs[output].quantization.scales[0])

    def distance(self, output, ours, theirs):
        """In steps of the file's output."""
        return np.abs(ours[output].astype("float64") - theirs[output]) / self.step(output)


def predict(model, inputs):
    return {name: values.numpy() for name, values in call_named(model, list(inputs.values())).items()}


def exported(model, inputs, path):
    aware = tfopt.quantize_aware(model)
    tfopt.calibrate(aware, inputs)
    measured = tfopt.export_tflite(aware, path)
    files = [run_by_name(path, inputs, use_xnnpack) for use_xnnpack in (False, True)]
    return Group(aware, measured, read_tflite(path), inputs, predict(model, inputs), predict(aware, inputs), *files)


@pytest.fixture(scope="module")
def group_of(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            keras.utils.set_random_seed(0)
            model = model_of(GROUPS[name])
            made[name] = exported(model, examples(model), tmp_path_factory.mktemp(name) / "m.tflite")
        return made[name]

    return get


def operators_before(file, output):
    """The types of the operators that an output is made by, in running order."""
    main = file.graphs[0]
    made_by = {made: operator for operator in main.operators for made in operator.outputs}
    pending, found = [file.signature.outputs[output]], []
    while pending:
        operator = made_by.get(pending.pop())
        if operator is not None and operator not in found:
            found.append(operator)
            pending += operator.inputs
    return [operator.type for operator in main.operators if operator in found]


@pytest.mark.parametrize(("group", "case"), CASES)
def test_file_computes_what_the_model_does(group_of, group, case):
    found, output = group_of(group), f"{case}_output"
    assert " ".join(operators_before(found.file, output)) == GROUPS[group][case][1]
    of_rounding = found.distance(output, found.of_float, found.of_aware)
    assert of_rounding.mean() < 1.0
    error = found.distance(output, found.of_aware, found.of_file)
    noise = found.distance(output, found.of_xnnpack, found.of_file)
    assert error.mean() < noise.mean() + 0.1
    assert error.max() < max(1.0, noise.max()) + 0.01


def test_distance_shows_what_is_wrong(group_of):
    found = group_of("others")
    shifted = {name: values + found.step(name) for name, values in found.of_aware.items()}
    assert found.distance("sum_output", shifted, found.of_file).mean() > 0.9


@pytest.mark.parametrize("group", [pytest.param(each, marks=[pytest.mark.slow] * (each in _SLOW)) for each in GROUPS])
def test_model_trains_reloads_and_is_int8(group_of, group, tmp_path):
    found = group_of(group)
    assert found.measured.float_ops == []
    assert {each.dtype for each in (*found.file.inputs.values(), *found.file.outputs.values())} == {"int8"}
    assert not any(tensor.is_float for graph in found.file.graphs for tensor in graph.tensors)
    targets = [np.zeros_like(values) for values in found.of_aware.values()]
    # Tracing a step of so many branches takes longer than the step.
    found.aware.compile("sgd", ["mse"] * len(targets), run_eagerly=True)
    inputs = list(found.inputs.values())
    loss = found.aware.train_on_batch(inputs, targets)
    assert np.all(np.isfinite(loss))
    trained = predict(found.aware, found.inputs)
    found.aware.save(tmp_path / "m.keras")
    reloaded = predict(keras.models.load_model(tmp_path / "m.keras"), found.inputs)
    for name, values in trained.items():
        assert np.all(np.isfinite(values))
        np.testing.assert_array_equal(reloaded[name], values, err_msg=name)


@pytest.mark.slow
def test_4_bit_files_give_the_models_integers(tmp_path):
    """Built-in kernels run convolutions and round twice; XNNPACK runs averages and dense layers and rounds once."""
    keras.utils.set_random_seed(1)
    parts = []
    for width in (16, 32):
        parts += [
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
        parts += [
            keras.layers.DepthwiseConv2D(3, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    parts += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((16, 16, 3)), *parts])
    x = np.random.default_rng(0).normal(size=(64, 16, 16, 3)).astype("float32")
    for norm in model.layers:
        if isinstance(norm, keras.layers.BatchNormalization):
            norm.momentum = 0.0
    model(x, training=True)
    aware = tfopt.quantize_aware(model, weight_bits=4)
    tfopt.calibrate(aware, x)
    tfopt.export_tflite(aware, tmp_path / "m.tflite")
    found = tfopt.verify_tflite(aware, tmp_path / "m.tflite", x)
    assert found.mean_lsb < 0.01
    assert found.max_lsb < 1.01
    assert found.argmax_agreement == 1.0
    # What kernels make of 4 bits is coarse enough to show.
    assert found.noise.mean_lsb > 0.05
