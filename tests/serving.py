"""What the tests of serving share: small files of every kind of batch, and requests for them."""

import contextlib
import json
import pathlib
import threading

import httpx
import keras
import numpy as np

import tfopt
from tests.tflite_models import depthwise_net, normal, two_by_two
from tfopt.serve import process
from tfopt.tflite.run import predict_tflite

CLASSES = [f"class {number}" for number in range(10)]
# name -> quantization and batch of the file; "two" has two inputs and outputs.
FILES = {
    "int8": ("int8", 1),
    "int8_open": ("int8", None),
    "int8_four": ("int8", 4),
    "float": ("none", 1),
    "float_open": ("none", None),
    "int16": ("int16x8", 1),
}


def write_models(folder: pathlib.Path) -> np.ndarray:
    """Writes folder/NAME/1/m.tflite for each kind; returns examples for all but "two"."""
    keras.utils.set_random_seed(0)
    model = depthwise_net()
    x = normal(model, 40)
    about = {"class_names": CLASSES, "preprocessing": {"value_range": [-1.0, 1.0]}}
    for name, (quantization, batch) in FILES.items():
        data = x if quantization.startswith("int") else None
        tfopt.export_tflite(model, folder / name / "1/m.tflite", quantization, data, batch_size=batch, metadata=about)
    tfopt.export_tflite(two_by_two(), folder / "two/1/m.tflite", batch_size=None)
    return x


def expected(folder: pathlib.Path, name: str, x, raw=False):
    """What `predict_tflite`, and so `verify_tflite`, computes."""
    return predict_tflite(folder / name / "1/m.tflite", x, raw=raw)


@contextlib.contextmanager
def client_of(path, **flags):
    """A client of a server that runs for the block; `client.process` is the server's."""
    started = process.start(path, **flags)
    try:
        with httpx.Client(base_url=process.wait_for_url(started, 300), timeout=120) as client:
            client.process = started
            yield client
    finally:
        process.end(started)


def predict(client, name, instances, **options):
    return client.post(f"/v1/models/{name}:predict", json={"instances": instances, **options})


def binary_request(x, name="image", datatype="FP32", **parameters):
    """Body and headers of a V2 request with one binary tensor, whose outputs are to be binary too."""
    content = x.tobytes()
    tensor = {"name": name, "datatype": datatype, "shape": list(x.shape)}
    tensor["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True, **parameters}}).encode()
    return {"content": head + content, "headers": {"Inference-Header-Content-Length": str(len(head))}}


def binary_answer(answer, dtype="float32"):
    """The first output of a binary answer."""
    assert answer.status_code == 200, answer.text
    size = int(answer.headers["Inference-Header-Content-Length"])
    tensor = json.loads(answer.content[:size])["outputs"][0]
    return np.frombuffer(answer.content[size:], dtype).reshape(tensor["shape"])


def infer(client, name, x, **options):
    return client.post(f"/v2/models/{name}/infer", **binary_request(x, **options))


def workers_of(pid):
    """The processes of a server's workers."""
    return [int(each) for each in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Load:
    """Clients that ask without a pause until told to stop, each with examples of its own.

    Args:
      url: of the server.
      ask: called with a client and a number; returns what is to be kept.
      clients: threads.
    """

    def __init__(self, url, ask, clients=4):
        self.kept, self._over = [], threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url, ask, number)) for number in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, url, ask, number):
        with httpx.Client(base_url=url, timeout=120) as client:
            while not self._over.is_set():
                self.kept.append((number, ask(client, number)))
