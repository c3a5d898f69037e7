"""How a server works, what it allows, and whom."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping

from tfopt.config import Config, require

TOKENS = "TFOPT_SERVE_TOKENS"
_MIB = 1 << 20
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclasses.dataclass(frozen=True, repr=False)
class Batching(Config):
    """How requests share a run of a model.

    Args:
      most: examples of several requests in a run, at least 1.
      wait_ms: milliseconds that the first of them waits for others, at least 0.

    >>> Batching(wait_ms=0.0)
    Batching(wait_ms=0.0)
    """

    most: int = 32
    wait_ms: float = 1.0

    def __post_init__(self) -> None:
        require(self.most >= 1, f"--max_batch must be at least 1, received {self.most}")
        require(self.wait_ms >= 0, f"--batch_wait_ms must be at least 0, received {self.wait_ms}")


@dataclasses.dataclass(frozen=True, repr=False)
class Limits(Config):
    """What a client may ask for.

    Args:
      body_bytes: of a request, also after it is decompressed.
      tensor_bytes: of all inputs of a request, and of all outputs.
      buffered_bytes: of all requests that are being read or computed.
      concurrency: requests at a time; more are answered 429.
      rate: requests a second of a client, in the mean of ten seconds; 0: any number.
      body_seconds: for a request to arrive.
      answer_seconds: for its answer to be computed.

    Raises:
      ValueError: one of them is out of range.
    """

    body_bytes: int = 16 * _MIB
    tensor_bytes: int = 64 * _MIB
    buffered_bytes: int = 256 * _MIB
    concurrency: int = 256
    rate: float = 0.0
    body_seconds: float = 30.0
    answer_seconds: float = 60.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = value >= 0 if field.name == "rate" else value > 0
            require(least, f"the limit {field.name} must be above 0, received {value}")


@dataclasses.dataclass(frozen=True, repr=False)
class Access(Config):
    """Where a server listens, and to whom.

    Args:
      host: name or address of the interface.
      port: 0: any that is free.
      token_file: a file with a token a line; "" for none.
      certificate: file of the server's certificate chain, in PEM; "": plain HTTP.
      key: file of its key.
      client_ca: file of the authorities whose client certificates are asked for.

    Raises:
      ValueError: they contradict each other.
      FileNotFoundError: a file is missing.
    """

    host: str = "127.0.0.1"
    port: int = 8501
    token_file: str = ""
    certificate: str = ""
    key: str = ""
    client_ca: str = ""

    def __post_init__(self) -> None:
        require(0 <= self.port < 1 << 16, f"--port must be 0 to 65535, received {self.port}")
        require(
            bool(self.certificate) == bool(self.key),
            "HTTPS needs both --certificate and --key, received only one of them",
        )
        require(
            not self.client_ca or bool(self.certificate),
            "--client_ca asks for certificates of clients, which HTTPS alone can: give --certificate and --key too",
        )
        for flag in ("token_file", "certificate", "key", "client_ca"):
            path = getattr(self, flag)
            if path and not pathlib.Path(path).is_file():
                raise FileNotFoundError(f"there is no file {path}, given as --{flag}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in _LOOPBACK

    def tokens(self, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
        """The tokens of the file and of the environment variable TFOPT_SERVE_TOKENS, which separates them by spaces.

        Raises:
          ValueError: a file or variable is given and holds none, or a token has characters that no header can carry.
        """
        found = environ.get(TOKENS, "").split()
        require(bool(found) or TOKENS not in environ, f"the environment variable {TOKENS} is empty: unset it")
        if self.token_file:
            lines = [line.strip() for line in pathlib.Path(self.token_file).read_text(encoding="utf-8").splitlines()]
            require(any(lines), f"{self.token_file} holds no token: write one a line")
            found += [line for line in lines if line]
        for number, token in enumerate(found, 1):
            require(
                re.fullmatch(r"[\x21-\x7e]+", token) is not None,
                f"token {number} has other characters than visible ASCII, or spaces inside",
            )
        return tuple(found)


@dataclasses.dataclass(frozen=True, repr=False)
class Settings(Config):
    """What a server serves, and how.

    Args:
      path: a .tflite or .keras file, the folder of a SavedModel, a folder of versions (1/, 2/, …), or a folder of
        models with such folders in it.
      name: of a single model.
      replicas: worker processes for each version of a model, at least 1.
      threads: of each interpreter, at least 1.
      batching: how requests share a run.
      limits: what clients may ask for.
      poll_seconds: how often new versions are looked for, above 0.

    Raises:
      ValueError: a value is out of range.
      FileNotFoundError: there is nothing at `path`.
    """

    path: str
    name: str = "model"
    replicas: int = 2
    threads: int = 1
    batching: Batching = dataclasses.field(default_factory=Batching)
    limits: Limits = dataclasses.field(default_factory=Limits)
    poll_seconds: float = 1.0

    def __post_init__(self) -> None:
        if not pathlib.Path(self.path).exists():
            raise FileNotFoundError(
                f"there is no file or folder {self.path}: give a .tflite or .keras file, a SavedModel, or a folder of "
                "models"
            )
        require(is_name(self.name), f"--name must be of letters, digits, '_', '-' and '.', received {self.name!r}")
        for flag in ("replicas", "threads"):
            require(getattr(self, flag) >= 1, f"--{flag} must be at least 1, received {getattr(self, flag)}")
        require(self.poll_seconds > 0, f"--poll_seconds must be above 0, received {self.poll_seconds}")


def is_name(text: str) -> bool:
    """Whether a model may be called so."""
    return _NAME.fullmatch(text) is not None
