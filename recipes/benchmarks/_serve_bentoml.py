"""The benchmark's model on BentoML, one LiteRT interpreter a worker; tensors as base64 in JSON.

MODEL=m.tflite REPLICAS=2 bentoml serve _serve_bentoml:Classifier
"""

import base64
import os

import bentoml
from serving_bare import Bare


@bentoml.service(workers=int(os.environ.get("REPLICAS", "1")))
class Classifier:
    """One interpreter on one thread."""

    def __init__(self) -> None:
        self._bare = Bare(os.environ["MODEL"])

    @bentoml.api
    def predict(self, data: str) -> str:
        """Runs the file."""
        return base64.b64encode(self._bare.run(base64.b64decode(data))).decode()
