"""Watches the connections to other workers for one worker; run as a script, without tfopt.

A process of its own, since TensorFlow keeps Python's lock while it waits for other workers to start. Arguments: for
each connection "descriptor:name of the worker". Ends with its standard input, which the worker holds. When another
worker ends, this one is ended: by SIGUSR1 where the other one failed and would fail again, else by SIGUSR2.
"""

import os
import selectors
import signal
import socket
import sys

# What a worker says at its end; one that was killed, or lost another one, says nothing.
GOODBYE = b"tfopt-meet/1 goodbye\n"
FAILED = b"tfopt-meet/1 failed\n"


def main() -> None:
    """Watches until somebody ends."""
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    for argument in sys.argv[1:]:
        descriptor, _, name = argument.partition(":")
        selector.register(socket.socket(fileno=int(descriptor)), selectors.EVENT_READ, name)
    worker, lost, seconds = os.getppid(), "", None
    while events := selector.select(seconds):
        for key, _ in events:
            if not isinstance(key.fileobj, socket.socket):
                return
            selector.unregister(key.fileobj)
            try:
                word = key.fileobj.recv(len(GOODBYE))
            except OSError:
                word = b""
            if word == FAILED:
                _end(worker, f"{key.data} failed; its own lines say why", signal.SIGUSR1)
                return
            if word != GOODBYE:
                # It may have ended because of another one, which failed, and whose word is still on its way.
                lost, seconds = lost or key.data, 0.5
    _end(worker, f"{lost} was lost: all workers have to start again", signal.SIGUSR2)


def _end(worker: int, text: str, number: signal.Signals) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    # Another parent would mean that the worker has ended.
    if os.getppid() == worker:
        os.kill(worker, number)


if __name__ == "__main__":
    main()
