"""The command line of the server."""

import argparse
from collections.abc import Sequence

from tfopt.serve.settings import TOKENS, Access, Batching, Limits, Settings

ENGINES = ("local", "ray")

DESCRIPTION = f"""Serves a .tflite or .keras file, a SavedModel, or a folder of models, until Ctrl-C.

  python -m tfopt.serve m.tflite --replicas=2
  curl -d '{{"instances": [[1.0, 2.0]]}}' http://127.0.0.1:8501/v1/models/model:predict

A folder has a folder for each model, and in it one for each version: digits/1/, digits/2/. New ones are loaded, and
those that are gone unloaded, without losing a request. Tokens of clients are read from --token_file, a token a line, or
from the environment variable {TOKENS}."""


def parser() -> argparse.ArgumentParser:
    """The flags; each is a field of `Settings`, `Batching`, `Limits` or `Access`, or of the engine."""
    access, settings, batching, limits = Access(), _defaults(Settings), Batching(), Limits()
    found = argparse.ArgumentParser(
        prog="python -m tfopt.serve", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def flag(name: str, default: object, text: str) -> None:
        shown = f" (default: {default})" if default not in ("", None) else ""
        kind = str if default is None else type(default)
        found.add_argument(f"--{name}", type=kind, default=default, help=text.replace("%", "%%") + shown)

    found.add_argument("path", help=".tflite or .keras file, SavedModel, or folder of models")
    flag("name", settings["name"], "name of a single model")
    flag("replicas", settings["replicas"], "worker processes for each version of a model")
    flag("threads", settings["threads"], "threads of each worker's interpreter")
    found.add_argument(
        "--engine", choices=ENGINES, default="local", help="processes here, or Ray Serve (default: local)"
    )
    flag("host", access.host, "interface to listen at; 0.0.0.0: all")
    flag("port", access.port, "0: any that is free")
    flag(
        "max_batch", batching.most, "examples of several requests in one run, where that changes no bit of the answers"
    )
    flag("batch_wait_ms", batching.wait_ms, "milliseconds that a request waits for others to share its run")
    flag("poll_seconds", settings["poll_seconds"], "how often new versions are looked for")
    flag("token_file", access.token_file, "a token a line; each request must bear one")
    flag("certificate", access.certificate, "PEM file of the server's certificate chain, for HTTPS")
    flag("key", access.key, "PEM file of its key")
    flag("client_ca", access.client_ca, "PEM file of the authorities whose client certificates are asked for")
    flag("max_body", limits.body_bytes, "bytes of a request, decompressed")
    flag("max_tensors", limits.tensor_bytes, "bytes of the inputs of a request, and of its outputs")
    flag("max_buffered", limits.buffered_bytes, "bytes of all requests being read or answered")
    flag("max_concurrency", limits.concurrency, "requests at a time; more are answered 429")
    flag("max_rate", limits.rate, "requests a second of a client; 0: any number")
    flag("body_seconds", limits.body_seconds, "for a request to arrive")
    flag("answer_seconds", limits.answer_seconds, "for an answer to be computed")
    flag("ray_address", "", "of a running Ray cluster; left out: Ray is started here")
    flag("max_replicas", 0, "with --engine=ray: replicas up to which Ray adds some under load; 0: --replicas, always")
    return found


def _defaults(kind: type) -> dict[str, object]:
    return {name: field.default for name, field in kind.__dataclass_fields__.items()}  # type: ignore[attr-defined]


def parse(arguments: Sequence[str] | None = None) -> tuple[Settings, Access, argparse.Namespace]:
    """What the command line says.

    Raises:
      ValueError: a value is out of range, or flags contradict each other.
      FileNotFoundError: a file is missing.

    >>> import tempfile
    >>> settings, access, _ = parse([tempfile.mkdtemp(), "--replicas=3", "--port=0"])
    >>> settings.replicas, access
    (3, Access(port=0))
    """
    chosen = parser().parse_args(arguments)
    limits = Limits(
        chosen.max_body,
        chosen.max_tensors,
        chosen.max_buffered,
        chosen.max_concurrency,
        chosen.max_rate,
        chosen.body_seconds,
        chosen.answer_seconds,
    )
    settings = Settings(
        chosen.path,
        chosen.name,
        chosen.replicas,
        chosen.threads,
        Batching(chosen.max_batch, chosen.batch_wait_ms),
        limits,
        chosen.poll_seconds,
    )
    access = Access(chosen.host, chosen.port, chosen.token_file, chosen.certificate, chosen.key, chosen.client_ca)
    for flag in ("ray_address", "max_replicas"):
        if getattr(chosen, flag) and chosen.engine != "ray":
            raise ValueError(f"--{flag} goes with --engine=ray, received --engine={chosen.engine}")
    return settings, access, chosen
