"""Models of every kind as functions of arrays, what may share a run of them, and the frames between processes."""

import dataclasses
import pathlib
import re
import socket
import subprocess
import sys
import types
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tests.tflite_models import dense_net, normal
from tfopt.data.dataset import Scaled
from tfopt.serve import rest_v1, rest_v2
from tfopt.serve.description import Description, TensorInfo
from tfopt.serve.merge import predict_all, shared_rows
from tfopt.serve.model import LiteModel, Model, load
from tfopt.serve.process import MAIN
from tfopt.serve.repository import SUFFIXES, Version, fingerprint, scan
from tfopt.serve.tensors import parse
from tfopt.tflite.export import export_tflite
from tfopt.tflite.flatbuffer import read_tflite
from tfopt.tflite.metadata import add_metadata, read_metadata
from tfopt.tflite.run import predict_tflite
from tfopt.tflite.stage import _metadata


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One model as files of every kind, and its examples."""
    folder = tmp_path_factory.mktemp("kinds")
    keras.utils.set_random_seed(0)
    model = dense_net()
    x = normal(model, 40)
    export_tflite(model, folder / "int8.tflite", "int8", x)
    export_tflite(model, folder / "open.tflite", "int8", x, batch_size=None)
    export_tflite(model, folder / "four.tflite", batch_size=4)
    model.save(folder / "m.keras")
    model.save(folder / "m.h5")
    model.export(folder / "saved", verbose=False)
    return folder, model, x


@pytest.mark.parametrize("name", ["int8.tflite", "open.tflite", "four.tflite"])
def test_files_give_the_bits_of_predict_tflite(files, name):
    folder, _, x = files
    model = load(folder / name)
    for count in (1, 3, 40):
        for raw in (False, True):
            wanted = predict_tflite(folder / name, x[:count], raw=raw)
            got = model.predict({"x": x[:count]}, raw)["y"]
            assert (got.dtype, got.tobytes()) == (wanted.dtype, wanted.tobytes())


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved"])
def test_keras_models_and_saved_models(files, name):
    folder, keras_model, x = files
    model = load(folder / name)
    assert model.description.batch == -1
    assert [info.shape for info in model.description.inputs] == [(-1, 20)]
    wanted = keras_model.predict(x, verbose=0, batch_size=40)
    (got,) = model.predict({model.description.inputs[0].name: x}).values()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_saved_models_of_strings(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="text")])
    def upper(text):
        return {"upper": tf.strings.upper(text), "size": tf.strings.length(text)}

    module = tf.Module()
    module.upper = upper
    tf.saved_model.save(module, tmp_path / "saved", signatures=upper)
    model = load(tmp_path / "saved")
    outputs = model.predict({"text": np.array([b"one", b"three"], object)})
    assert outputs["upper"].tolist() == [b"ONE", b"THREE"]
    assert outputs["size"].tolist() == [3, 5]


def saved(folder, function, spec, name=None):
    """A SavedModel of one function, called `name`."""
    module = tf.Module()
    module.call = tf.function(function, input_signature=[spec])
    signatures = module.call if name is None else {name: module.call}
    tf.saved_model.save(module, folder, signatures=signatures)
    return load(folder)


def version_of(description):
    """A version that is loaded."""
    return Version("m", 1, (), types.SimpleNamespace(description=description))


def test_saved_models_of_bfloat16_take_and_give_float32(tmp_path):
    model = saved(tmp_path / "m", lambda x: {"y": x + x}, tf.TensorSpec((None, 2), tf.bfloat16, name="x"))
    assert {info.dtype for info in (*model.description.inputs, *model.description.outputs)} == {"float32"}
    got = model.predict({"x": np.array([[0.5, 1.0009765625]], "float32")})["y"]
    assert (got.dtype, got.tolist()) == (np.float32, [[1.0, 2.0]])


def test_the_only_signature_of_a_saved_model_goes_by_its_own_name(tmp_path):
    model = saved(tmp_path / "m", lambda x: {"y": x}, tf.TensorSpec((None, 2), tf.float32, name="x"), "mine")
    about = Description.from_dict(model.description.to_dict())
    for name in ("", "mine", "serving_default"):
        body = {"signature_name": name, "instances": [[1.0, 2.0]]}
        assert rest_v1.read_request(body, about)["x"].tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="must be 'mine' or left out, received 'other'"):
        rest_v1.read_request({"signature_name": "other", "instances": [[1.0, 2.0]]}, about)
    assert list(rest_v1.metadata(version_of(about))["metadata"]["signature_def"]["signature_def"]) == ["mine"]


def test_errors_of_saved_models_say_what_is_wrong(tmp_path):
    def halve(x):
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "no negative numbers")]):
            return {"y": x / 2}

    model = saved(tmp_path / "m", halve, tf.TensorSpec((None,), tf.float32, name="x"))
    with pytest.raises(RuntimeError, match="no negative numbers") as caught:
        model.predict({"x": np.array([-1.0], "float32")})
    assert "Graph execution error" not in str(caught.value)
    assert shared_rows(model, 8) == 1
    assert model.predict({"x": np.array([1.0], "float32")})["y"].tolist() == [0.5]


def test_shapes_of_models_without_an_axis_of_examples_are_told_as_they_are(tmp_path):
    model = saved(tmp_path / "m", lambda x: {"y": tf.reduce_sum(x)}, tf.TensorSpec((3, 4), tf.float32, name="x"))
    about = version_of(model.description)
    assert rest_v2.metadata(about, [1])["inputs"][0]["shape"] == [3, 4]
    signature = rest_v1.metadata(about)["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert [each["size"] for each in signature["inputs"]["x"]["tensor_shape"]["dim"]] == ["3", "4"]


def test_types_that_no_request_can_hold_are_refused():
    infos = [TensorInfo(dtype, (-1, 2), dtype, dtype) for dtype in ("float32", "complex64")]
    Description("litert", (infos[0],), (infos[0],), -1).check_types()
    with pytest.raises(ValueError, match="'complex64' is of type complex64, which requests and answers cannot hold"):
        Description("litert", (infos[0],), (infos[1],), -1).check_types()


def test_saved_models_that_touch_files_are_refused(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec((), tf.string, name="path")])
    def read(path):
        return {"content": tf.io.read_file(path)}

    module = tf.Module()
    module.read = read
    tf.saved_model.save(module, tmp_path / "saved", signatures=read)
    with pytest.raises(ValueError, match="ReadFile, which touch files or call Python"):
        load(tmp_path / "saved")


def test_keras_files_with_code_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="Lambda"):
        load(tmp_path / "m.keras")


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x1c\0\0\0TFL3" + bytes(100)])
def test_damaged_files(tmp_path, content):
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or cut short"):
        load(tmp_path / "m.tflite")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load(tmp_path / "other.tflite")


def test_only_finite_numbers_of_the_right_shape_are_taken(files):
    folder, _, x = files
    model = load(folder / "int8.tflite")
    for wrong, message in (
        ({"x": x[:, :5]}, r"shape \[40, 5\], expected \[-1, 20\]"),
        ({"x": x.astype("float64")}, "type float64, expected float32 or int8"),
        ({"x": np.where(x > 2, np.nan, x)}, "NaN or infinity"),
        ({"z": x}, "expected the inputs x, received z"),
        ({"x": x[:0]}, "is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict(wrong)
    # Also after an error.
    assert (model.predict({"x": x})["y"] == predict_tflite(folder / "int8.tflite", x)).all()


def test_fields_of_v2_that_are_null_are_as_left_out():
    info = TensorInfo("x", (-1, 2), "float32", "float32")
    about = Description("litert", (info,), (info,), -1)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2], "parameters": None}
    body = {"id": None, "parameters": None, "inputs": [tensor], "outputs": None}
    inputs, stored = rest_v2.read_request(body, memoryview(b""), about)
    chosen, is_binary, raw = rest_v2.read_outputs(body, about, stored)
    assert (chosen, is_binary, raw) == ([("x", {})], False, False)
    answer, _ = rest_v2.write_answer(body, version_of(about), inputs, chosen, is_binary)
    assert "id" not in parse(answer)


# What may share a run


class Rounded(Model):
    """Adds the mean of a large enough batch: its examples are not independent."""

    def __init__(self, size):
        info = TensorInfo("x", (-1, 2), "float32", "float32")
        super().__init__(Description("litert", (info,), (info,), -1))
        self.size = size

    def _predict(self, inputs, raw):
        x = inputs["x"]
        return {"x": x + x.mean(0) if len(x) >= self.size else x}


class Choosy(Rounded):
    """Cannot compute a large enough batch."""

    def _predict(self, inputs, raw):
        if len(inputs["x"]) >= self.size:
            raise RuntimeError("gather index out of bounds")
        return {"x": inputs["x"]}


@pytest.mark.parametrize(("size", "shared"), [(1, 1), (2, 1), (4, 3), (9, 8)])
def test_models_that_cannot_compute_random_examples_are_served_all_the_same(size, shared):
    assert shared_rows(Choosy(size), 8) == shared


@pytest.mark.parametrize(("size", "shared"), [(2, 1), (3, 2), (9, 8), (10, 8)])
def test_runs_are_shared_only_as_far_as_the_bits_stay(size, shared):
    assert shared_rows(Rounded(size), 8) == shared


def test_files_that_mix_the_examples_of_a_batch_share_no_run(tmp_path):
    inputs = keras.Input((3,), batch_size=4, name="x")
    mixed = keras.layers.Lambda(lambda x: x - keras.ops.mean(x, 0, keepdims=True), name="y")(inputs)
    export_tflite(keras.Model(inputs, mixed), tmp_path / "m.tflite", batch_size=4)
    assert shared_rows(load(tmp_path / "m.tflite"), 32) == 1


def test_which_files_share_runs(files):
    folder, _, _ = files
    assert shared_rows(load(folder / "int8.tflite"), 32) == 1
    assert shared_rows(load(folder / "open.tflite"), 8) == 8
    assert shared_rows(load(folder / "four.tflite"), 32) == 4
    assert shared_rows(load(folder / "open.tflite"), 32, seconds=0.0) == 1


def test_a_wrong_request_does_not_harm_those_that_share_its_run(files):
    folder, _, x = files
    model = load(folder / "open.tflite")
    nan = np.full((1, 20), np.nan, "float32")
    first, wrong, last = predict_all(model, [{"x": x[:2]}, {"x": nan}, {"x": x[2:3]}], raw=False)
    assert "NaN" in wrong
    wanted = predict_tflite(folder / "open.tflite", x[:3])
    assert (np.concatenate([first["y"], last["y"]]) == wanted).all()


# Metadata


def test_metadata_travel_in_the_file_and_change_nothing_else(files, tmp_path):
    folder, _, x = files
    path, values = tmp_path / "m.tflite", {"class_names": ["a", "é"], "preprocessing": {"value_range": [0.0, 1.0]}}
    content = (folder / "int8.tflite").read_bytes()
    path.write_bytes(add_metadata(add_metadata(content, {"class_names": ["old"]}), values))
    assert read_metadata(read_tflite(path)) == values
    assert load(path).description.class_names == ("a", "é")
    assert (predict_tflite(path, x) == predict_tflite(folder / "int8.tflite", x)).all()
    assert path.stat().st_size - len(content) < 500
    assert read_metadata(read_tflite(folder / "int8.tflite")) == {}


def test_labels_that_others_packed_behind_the_file(files, tmp_path):
    folder, _, _ = files
    path = tmp_path / "m.tflite"
    path.write_bytes((folder / "int8.tflite").read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "one\ntwo\nthree\n")
    assert load(path).description.class_names == ("one", "two", "three")


def test_the_stage_writes_class_names_and_the_value_range(data):
    assert _metadata(data) == {"class_names": ["a", "b", "c"]}
    scaled = dataclasses.replace(data, transform=Scaled((-1.0, 1.0)), prepared=(np.abs,))
    assert _metadata(scaled)["preprocessing"] == {"value_range": [-1.0, 1.0], "steps": ["absolute"]}
    assert _metadata(dataclasses.replace(data, class_names=())) == {}


@pytest.mark.slow
def test_the_metadata_go_through_a_chain(digits, tmp_path):
    stages = [tfopt.Build(tfopt.models.cnn, {"filters": 2}), tfopt.Train(1), tfopt.ExportTFLite("none", max_drop=1.0)]
    work = tfopt.run(stages, tfopt.Work(data=digits, workdir=tmp_path))
    file = read_tflite(tmp_path / work.report.artefacts["tflite"]["path"])
    assert read_metadata(file) == {
        "class_names": [str(digit) for digit in range(10)],
        "preprocessing": {"value_range": [0.0, 1.0]},
    }


# Folders


def test_links_out_of_the_folder_are_refused(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "models"
    for folder in (outside / "2", root / "m" / "1"):
        folder.mkdir(parents=True)
        (folder / "m.tflite").touch()
    (root / "m" / "2").symlink_to(outside / "2")
    (root / "m" / "3").mkdir()
    (root / "m" / "3" / "m.tflite").symlink_to(outside / "2" / "m.tflite")
    (root / "m" / "4").mkdir()
    (root / "m" / "4" / "folder").symlink_to(root)
    found, _ = scan(root, "model")
    assert sorted(found) == [("m", 1), ("m", 2), ("m", 3), ("m", 4)]
    assert len(fingerprint(found["m", 1], root)) == 1
    for number in (2, 3):
        with pytest.raises(ValueError, match="leads out of the folder"):
            fingerprint(found["m", number], root)
    with pytest.raises(ValueError, match="link to a folder"):
        fingerprint(found["m", 4], root)
    (root / "m" / "1" / "loop").symlink_to(root / "m" / "1" / "loop")
    with pytest.raises(ValueError, match="loop is a link to a folder or to itself"):
        fingerprint(found["m", 1], root)


def test_what_a_folder_holds(tmp_path):
    for path in ("digits/1/m.tflite", "digits/x/m.tflite", "digits/0003/m.keras", "saved/saved_model.pb", "a.tflite"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    for path in (".hidden/1/m.tflite", "bad name/1/m.tflite", "notes.txt", f"long/{'9' * 30}/m.tflite"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert sorted(scan(tmp_path, "model")[0]) == [("a", 1), ("digits", 1), ("digits", 3), ("saved", 1)]
    assert sorted(scan(tmp_path / "digits", "other")[0]) == [("other", 1), ("other", 3)]
    assert scan(tmp_path / "saved", "other") == ({("other", 1): tmp_path / "saved"}, True)
    assert ".tflite" in SUFFIXES


# The command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/m.tflite"], "no file or folder /nowhere/m.tflite"),
        ([__file__], "test_serve_model.py cannot be served: .*no .tflite file at all"),
        ([__file__, "--replicas=0"], "--replicas must be at least 1, received 0"),
        ([__file__, "--name=a/b"], "--name must be of letters"),
        ([__file__, "--max_replicas=3"], "--max_replicas goes with --engine=ray"),
        ([__file__, "--max_body=0"], "body_bytes must be above 0"),
        ([__file__, "--engine=other"], "invalid choice: 'other'"),
    ],
)
def test_wrong_arguments_end_with_a_line(arguments, message):
    command = [sys.executable, "-P", str(MAIN), *arguments, "--port=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if ": " in line][-1:]
    assert re.search(message, line), done.stderr


def test_a_port_that_is_taken(files):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-P", str(MAIN), str(files[0] / "int8.tflite"), f"--port={port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert f"cannot listen at 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


PROBE = """
import sys, types
package = types.ModuleType("tfopt")
package.__path__ = [sys.argv[1]]
sys.modules["tfopt"] = package
import tfopt.serve.local, tfopt.serve.worker
print([name for name in ("tensorflow", "keras", "ray", "matplotlib") if name in sys.modules])
"""


def test_server_and_workers_import_neither_tensorflow_nor_keras():
    package = str(pathlib.Path(MAIN).parents[1])
    done = subprocess.run([sys.executable, "-P", "-c", PROBE, package], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


def test_the_kinds_are_told_by_content(files):
    assert isinstance(load(files[0] / "int8.tflite"), LiteModel)
