"""A worker of the server: one process, one model, one interpreter; run as a script.

Argument: the descriptor of its socket. It reads frames, first {"path", "threads", "most", "shared"}, then requests, and
answers each with one; it ends with the socket, so also when the server is killed.
"""

import pathlib
import runpy
import signal
import socket
import sys
from typing import Any

if __name__ == "__main__":
    # TensorFlow and Keras are imported for Keras models and SavedModels only.
    runpy.run_path(str(pathlib.Path(__file__).with_name("light.py")))["stub_package"]()

from tfopt.serve.merge import predict_all, shared_rows
from tfopt.serve.model import load
from tfopt.serve.wire import PREFIX, pack, unpack


def main(stream: Any) -> None:
    """Answers frame after frame."""
    setup, _ = _read(stream) or ({}, [])
    try:
        model = load(setup["path"], setup["threads"])
        model.description.check_types()
        shared = setup["shared"] or shared_rows(model, setup["most"])
    except Exception as error:  # noqa: BLE001 - handed on to the server, which tells whoever waits for the model
        _write(stream, pack({"error": f"{error}" or type(error).__name__}))
        return
    _write(stream, pack({"description": model.description.to_dict(), "shared": shared}))
    while frame := _read(stream):
        head, requests = frame
        answers = predict_all(model, requests, head["raw"])
        errors = [each if isinstance(each, str) else None for each in answers]
        _write(stream, pack({"errors": errors}, [{} if isinstance(each, str) else each for each in answers]))


def _read(stream: Any) -> tuple[dict, list] | None:
    prefix = stream.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    head, content = PREFIX.unpack(prefix)
    return unpack(stream.read(head), stream.read(content))


def _write(stream: Any, pieces: list) -> None:
    for piece in pieces:
        stream.write(piece)
    stream.flush()


if __name__ == "__main__":
    # Ctrl-C is for the server, which lets its workers finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as channel, channel.makefile("rwb", buffering=1 << 16) as connection:
        main(connection)
