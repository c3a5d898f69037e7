"""The benchmark's model on LitServe, one LiteRT interpreter a worker; tensors as base64 in JSON.

python _serve_litserve.py MODEL PORT REPLICAS
"""

import base64
import sys
from typing import Any

import litserve
from serving_bare import Bare


class Classifier(litserve.LitAPI):
    """One interpreter on one thread."""

    def setup(self, device: str) -> None:
        """Loads the file."""
        self._bare = Bare(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> bytes:
        """The tensor's bytes."""
        return base64.b64decode(request["data"])

    def predict(self, content: bytes) -> bytes:
        """Runs the file."""
        return self._bare.run(content)

    def encode_response(self, output: bytes) -> dict[str, Any]:
        """The tensor's bytes."""
        return {"data": base64.b64encode(output).decode()}


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(), accelerator="cpu", workers_per_device=int(sys.argv[3]))
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
