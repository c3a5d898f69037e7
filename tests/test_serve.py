"""A server on a loopback port, asked as clients of TensorFlow Serving and KServe do."""

import json
import time

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import quick
from tests.serving import CLASSES, FILES, Load, binary_answer, client_of, expected, infer, predict, write_models
from tests.tflite_models import normal, two_by_two


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def x(folder):
    return write_models(folder)


@pytest.fixture(scope="module")
def client(folder, x):
    with client_of(folder, replicas=1, max_body=1_000_000, max_tensors=2_000_000) as client:
        yield client


def one_row(answer, key="predictions"):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return np.array(answer.json()[key], "float32")


# Answers


@pytest.mark.parametrize("name", FILES)
def test_answers_are_those_of_the_file_bit_for_bit(client, folder, x, name):
    """Alone, in requests of several rows, as JSON and as binary tensors."""
    wanted = expected(folder, name, x)
    for start, end in ((0, 1), (1, 4), (4, 11), (0, 40)):
        rows = expected(folder, name, x[start:end])
        assert (one_row(predict(client, name, x[start:end].tolist())) == rows).all()
        assert (binary_answer(infer(client, name, x[start:end])) == rows).all()
        if name != "float_open":
            assert (rows == wanted[start:end]).all()
    columns = client.post(f"/v1/models/{name}/versions/1:predict", json={"inputs": {"image": x[:3].tolist()}})
    assert (one_row(columns, "outputs") == wanted[:3]).all()


@pytest.mark.parametrize("name", quick(FILES, "int8", "float_open"))
def test_requests_that_share_runs_get_the_same_bits(client, folder, x, name):
    wanted = {start: expected(folder, name, x[start : start + 1 + start % 3]) for start in range(12)}

    def ask(client, number):
        return infer(client, name, x[number : number + 1 + number % 3])

    with Load(str(client.base_url), ask, clients=12) as load:
        # All clients at once, however late one of them begins.
        until = time.monotonic() + 60
        while (len(load.kept) < 60 or len({number for number, _ in load.kept}) < 12) and time.monotonic() < until:
            time.sleep(0.01)
    assert len({number for number, _ in load.kept}) == 12
    for number, answer in load.kept:
        assert (binary_answer(answer) == wanted[number]).all()


def samples(client, name):
    """The values of a metric by model."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {each.labels["model"]: each.value for family in families for each in family.samples if each.name == name}


@pytest.mark.slow
def test_files_whose_bits_allow_it_share_runs(client, x):
    """Many clients at once: int8 files with an open batch, and those only whose batches were found equal."""
    for name in ("int8", "int8_open"):
        with Load(str(client.base_url), lambda client, _, name=name: infer(client, name, x[:1]), clients=12) as load:
            while len(load.kept) < 300:
                time.sleep(0.01)
    runs, rows = samples(client, "tfopt_batch_examples_count"), samples(client, "tfopt_batch_examples_sum")
    assert rows["int8_open"] / runs["int8_open"] > rows["int8"] / runs["int8"]


def test_integers_in_integers_out_where_a_client_asks_for_it(client, folder, x):
    stored = expected(folder, "int8", x[:3], raw=True)
    info = client.get("/v2/models/int8").json()["inputs"][0]
    scale, zero = info["parameters"]["scale"], info["parameters"]["zero_point"]
    integers = np.clip(np.rint(x[:3] / np.float32(scale)) + zero, -128, 127).astype("int8")
    assert info["parameters"]["stored_datatype"] == "INT8"
    assert (binary_answer(infer(client, "int8", integers, datatype="INT8"), "int8") == stored).all()
    real = binary_answer(infer(client, "int8", integers, datatype="INT8", quantized=False))
    assert (real == expected(folder, "int8", x[:3])).all()
    assert (binary_answer(infer(client, "int8", x[:3], quantized=True), "int8") == stored).all()
    tensor = {"name": "image", "datatype": "INT8", "shape": [3, 10, 10, 3], "data": integers.ravel().tolist()}
    output = client.post("/v2/models/int8/infer", json={"inputs": [tensor], "id": "7"}).json()
    assert (output["id"], output["outputs"][0]["datatype"], output["outputs"][0]["shape"]) == ("7", "INT8", [3, 10])
    assert (np.array(output["outputs"][0]["data"]).reshape(3, 10) == stored).all()


def test_several_inputs_and_outputs(client, folder):
    left, extra = normal(two_by_two(), 4)
    wanted = expected(folder, "two", {"left": left, "extra": extra})
    rows = [{"left": a.tolist(), "extra": b.tolist()} for a, b in zip(left, extra, strict=True)]
    answer = predict(client, "two", rows).json()["predictions"]
    for name in ("zeta", "alpha"):
        assert (np.array([row[name] for row in answer], "float32") == wanted[name]).all()
    columns = {"inputs": {"left": left.tolist(), "extra": extra.tolist()}}
    outputs = client.post("/v1/models/two:predict", json=columns).json()["outputs"]
    assert (np.array(outputs["zeta"], "float32") == wanted["zeta"]).all()
    tensors = [
        {"name": name, "datatype": "FP32", "shape": list(values.shape), "data": values.tolist()}
        for name, values in (("extra", extra), ("left", left))
    ]
    body = {"inputs": tensors, "outputs": [{"name": "alpha"}]}
    (output,) = client.post("/v2/models/two/infer", json=body).json()["outputs"]
    assert output["name"] == "alpha"
    assert (np.array(output["data"], "float32").reshape(4, 1) == wanted["alpha"]).all()


def test_class_names_and_preprocessing_travel_in_the_file(client, folder, x):
    wanted = expected(folder, "int8", x[:2])
    answer = predict(client, "int8", x[:2].tolist(), classification=2).json()
    best = np.argsort(-wanted, axis=1, kind="stable")[:, :2]
    assert [[each["label"] for each in row] for row in answer["classes"]] == [[CLASSES[i] for i in row] for row in best]
    assert answer["classes"][0][0]["score"] == wanted[0, best[0, 0]]
    tensor = {"name": "image", "datatype": "FP32", "shape": [2, 10, 10, 3], "data": x[:2].tolist()}
    body = {"inputs": [tensor], "outputs": [{"name": "logits", "parameters": {"classification": 1}}]}
    output = client.post("/v2/models/int8/infer", json=body).json()["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 1])
    assert output["data"][0].split(":")[1:] == [str(best[0, 0]), CLASSES[best[0, 0]]]
    about = client.get("/v2/models/int8").json()["parameters"]
    assert about == {"class_names": CLASSES, "preprocessing": {"value_range": [-1.0, 1.0]}}
    assert client.get("/v1/models/int8/metadata").json()["metadata"]["tfopt"] == about


# What is asked about models and the server


def test_status_metadata_and_health(client):
    available = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/int8", "/v1/models/int8/versions/1"):
        assert client.get(path).json() == {"model_version_status": [available]}
    about = client.get("/v1/models/int8/metadata").json()
    signature = about["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert about["model_spec"] == {"name": "int8", "signature_name": "", "version": "1"}
    assert signature["inputs"]["image"]["dtype"] == "DT_FLOAT"
    assert [each["size"] for each in signature["inputs"]["image"]["tensor_shape"]["dim"]] == ["-1", "10", "10", "3"]
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data", "classification"]
    assert client.get("/v2/models/int8/versions/1").json()["versions"] == ["1"]
    for path in ("/healthz", "/v2/health/live", "/v2/health/ready", "/v2/models/int8/ready"):
        assert client.get(path).status_code == 200
    assert [each["name"] for each in client.get("/v1/models").json()["models"]] == sorted([*FILES, "two"])


def test_metrics_count_requests_batches_and_queue(client, x):
    predict(client, "int8", x[:2].tolist())
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    assert found["tfopt_requests_total", "200", "POST", "predict"] >= 1
    assert found["tfopt_request_seconds_count", "predict"] >= 1
    assert found["tfopt_batch_examples_sum", "1", "int8"] >= 2
    assert found["tfopt_queue_requests", "1", "int8"] == 0
    assert found["tfopt_workers", "1", "int8"] == 1


def test_the_openapi_document_has_every_path(client):
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {"/v1/models/{name}:predict", "/v2/models/{name}/versions/{version}/infer", "/metrics"} <= set(
        document["paths"]
    )


# Requests that are wrong


def wrong_bodies():
    row = np.zeros((10, 10, 3)).tolist()
    deep = "[" * 150 + "0" + "]" * 150
    texts = {
        "no JSON": b"{",
        "no text": b"\xff\xfe",
        "nothing": b"",
        "NaN": b'{"instances": [[[[NaN]]]]}',
        "Infinity": b'{"inputs": Infinity}',
        "a list": b"[]",
        "null": b"null",
        "deep": b'{"instances": ' + deep.encode() + b"}",
        "deeper": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "huge": json.dumps({"instances": [row]}).replace("0.0", "1e400", 1).encode(),
        "too large for float32": json.dumps({"instances": [row]}).replace("0.0", "1e39", 1).encode(),
        "huge integer": json.dumps({"instances": [row]}).replace("0.0", "9" * 400, 1).encode(),
    }
    values = {
        "no key": {},
        "both keys": {"instances": [row], "inputs": [row]},
        "unknown key": {"instances": [row], "x": 1},
        "signature": {"instances": [row], "signature_name": "other"},
        "signature's type": {"instances": [row], "signature_name": ["serving_default"]},
        "no rows": {"instances": []},
        "an object": {"instances": {"image": [row]}},
        "shape": {"instances": [[1.0, 2.0]]},
        "axes": {"instances": [[row]]},
        "ragged": {"instances": [[[1.0], [1.0, 2.0]]]},
        "ragged rows": {"instances": [row, row[:-1]]},
        "text": {"instances": [json.loads(json.dumps(row).replace("0.0", '"1.0"', 1))]},
        "long text": {"instances": [["x" * 10_000, *[0] * 100_000]]},
        "null inside": {"instances": [json.loads(json.dumps(row).replace("0.0", "null", 1))]},
        "true": {"instances": np.ones((1, 10, 10, 3), bool).tolist()},
        "b64": {"instances": [{"b64": "AAAA"}]},
        "another input": {"instances": [{"other": row}]},
        "different names": {"instances": [{"image": row}, {"other": row}]},
        "mixed rows": {"instances": [{"image": row}, row]},
        "columns": {"inputs": {"image": [row], "other": [row]}},
        "empty rows": {"inputs": np.zeros((0, 10, 10, 3)).tolist()},
        "classes": {"instances": [row], "classification": "all"},
        "no classes": {"instances": [row], "classification": 0},
    }
    return texts | {name: json.dumps(value).encode() for name, value in values.items()}


@pytest.mark.parametrize("name", wrong_bodies())
@pytest.mark.parametrize("model", ["int8", "float_open"])
def test_wrong_predict_requests_are_answered_400(client, model, name):
    answer = client.post(f"/v1/models/{model}:predict", content=wrong_bodies()[name])
    assert answer.status_code == 400, answer.text
    assert len(answer.json()["error"]) > 10
    assert list(answer.json()) == ["error"]


def wrong_infers():
    data = np.zeros(300).tolist()
    good = {"name": "image", "datatype": "FP32", "shape": [1, 10, 10, 3], "data": data}
    changes = {
        "name": {"name": "other"},
        "name's type": {"name": ["image"]},
        "datatype": {"datatype": "FP64"},
        "datatype's type": {"datatype": {"FP32": 1}},
        "unknown datatype": {"datatype": "FP8"},
        "shape": {"shape": [1, 10, 10, 4]},
        "fewer axes": {"shape": [300]},
        "negative shape": {"shape": [-1, 10, 10, 3]},
        "huge shape": {"shape": [10**18, 10**18, 10, 3]},
        "shape of true": {"shape": [True, 10, 10, 3]},
        "no shape": {"shape": None},
        "many axes": {"shape": [1] * 100},
        "few values": {"data": data[:-1]},
        "values": {"data": ["a"] * 300},
        "values' type": {"data": {"a": 1}},
        "NaN as text": {"data": ["NaN"] * 300},
        "parameters": {"parameters": [1]},
        "binary and data": {"parameters": {"binary_data_size": 0}},
        "binary size": {"parameters": {"binary_data_size": -1}},
        "huge binary size": {"parameters": {"binary_data_size": 10**30}},
        "binary size's type": {"parameters": {"binary_data_size": "10"}},
    }
    bodies = {name: {"inputs": [{**good, **change}]} for name, change in changes.items()}
    return bodies | {
        "no inputs": {},
        "empty inputs": {"inputs": []},
        "inputs' type": {"inputs": good},
        "input's type": {"inputs": [1]},
        "twice": {"inputs": [good, good]},
        "no data": {"inputs": [{key: good[key] for key in ("name", "datatype", "shape")}]},
        "unknown output": {"inputs": [good], "outputs": [{"name": "other"}]},
        "output twice": {"inputs": [good], "outputs": [{"name": "logits"}] * 2},
        "outputs' type": {"inputs": [good], "outputs": {"name": "logits"}},
        "id": {"inputs": [good], "id": 7},
        "binary_data_output": {"inputs": [good], "parameters": {"binary_data_output": 1}},
        "classification": {
            "inputs": [good],
            "outputs": [{"name": "logits", "parameters": {"classification": True}}],
        },
    }


@pytest.mark.parametrize("name", wrong_infers())
def test_wrong_infer_requests_are_answered_400(client, name):
    answer = client.post("/v2/models/int8/infer", json=wrong_infers()[name])
    assert answer.status_code == 400, answer.text
    assert len(answer.json()["error"]) > 10


@pytest.mark.parametrize(
    "change",
    [
        {"length": "-1"},
        {"length": "abc"},
        {"length": "9" * 30},
        {"length": "1e3"},
        {"length": "0"},
        {"length": "5"},
        {"cut": 1},
        {"more": b"x"},
        {"size": 1199},
        {"size": 1201},
        {"size": 10**12},
        {"shape": [2, 10, 10, 3]},
        {"shape": [2**62, 2**62, 10, 3]},
        {"datatype": "INT8"},
        {"datatype": "BYTES"},
        {"nan": np.nan},
        {"nan": np.inf},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["int8", "float_open"])
def test_malformed_binary_tensors_are_answered_400(client, x, model, change):
    values = x[:1].copy()
    values[0, 0, 0, 0] = change.get("nan", 0.0)
    content = values.tobytes()
    tensor = {
        "name": "image",
        "datatype": change.get("datatype", "FP32"),
        "shape": change.get("shape", [1, 10, 10, 3]),
        "parameters": {"binary_data_size": change.get("size", len(content))},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    body = (head + content)[: -change.get("cut", 0) or None] + change.get("more", b"")
    headers = {"Inference-Header-Content-Length": change.get("length", str(len(head)))}
    answer = client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert "error" in answer.json()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/models/other/metadata", 404),
        ("POST", "/v1/models/other:predict", 404),
        ("POST", "/v1/models/int8/versions/2:predict", 404),
        ("POST", "/v1/models/int8/versions/x:predict", 404),
        ("POST", "/v1/models/int8/versions/-1:predict", 404),
        ("GET", f"/v1/models/int8/versions/{'9' * 40}", 404),
        ("GET", "/v1/models/int8/versions/٣", 404),
        ("GET", "/v1/models/..%2f..%2fetc", 404),
        ("GET", "/v2/models/%2e%2e/ready", 404),
        ("GET", "/v1/models/int8%00", 404),
        ("POST", "/v2/models/int8/versions/9/infer", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v1/models/int8:predict", 405),
        ("GET", "/v2/models/int8/infer", 405),
        ("DELETE", "/v1/models/int8", 405),
        ("POST", "/v1/models/int8:classify", 400),
        ("POST", "/v1/models/int8:regress", 400),
    ],
)
def test_paths_that_are_not_there(client, method, path, status):
    answer = client.request(method, path)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert (status == 405) == ("allow" in answer.headers)


def test_the_server_goes_on_after_all_that(client, folder, x):
    assert (one_row(predict(client, "int8", x[:1].tolist())) == expected(folder, "int8", x[:1])).all()
    text = client.get("/metrics").text
    assert 'code="500"' not in text
    assert all(line.endswith(" 0.0") for line in text.splitlines() if line.startswith("tfopt_worker_restarts_total{"))


def test_outputs_and_inputs_beyond_the_limit(client):
    answer = client.post("/v2/models/int8/infer", content=b" " * 1_000_001)
    assert answer.status_code == 413
    assert "1,000,000 bytes" in answer.json()["error"]
    many = np.zeros((3000, 10, 10, 3), "int8").tolist()
    answer = httpx.post(f"{client.base_url}/v1/models/int8:predict", json={"instances": many}, timeout=60)
    assert answer.status_code == 413
