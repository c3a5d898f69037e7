"""`Link`: connections to all other workers that stay open, so that the end of one is seen at once by all.

TensorFlow sees the death of a worker after ten seconds or more, and one that dies while the others start their
servers not at all: they wait for it for an hour.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

from tfopt.workers.addresses import Workers
from tfopt.workers.supervise import LOST_PEER, PREEMPTED

GOODBYE = b"tfopt-meet/1 goodbye\n"


class Link:
    """Connections to the other workers, made when they met.

    Args:
      workers: all of them, and which one this is.
      texts: what each of them said, in order of their indices.
      calls: by index of the other worker: the connection that was made from here.
      answers: by index: the connection that was made from there.
    """

    def __init__(
        self,
        workers: Workers,
        texts: tuple[str, ...],
        calls: Mapping[int, socket.socket],
        answers: Mapping[int, socket.socket],
    ) -> None:
        self.workers, self.texts, self._calls, self._answers = workers, texts, calls, answers

    def close(self) -> None:
        """Closes all connections; for the others this worker has ended."""
        for each in (*self._calls.values(), *self._answers.values()):
            each.close()

    @contextlib.contextmanager
    def watched(self, lost: Callable[[str], None] | None = None) -> Iterator[None]:
        """Ends this process with LOST_PEER when another worker ends without goodbye, as long as the block lasts.

        At the end of the block this worker says goodbye, unless the block raised an error.

        Args:
          lost: what is called instead, in a thread, with what there is to say.
        """
        here, there = socket.socketpair()
        thread = threading.Thread(target=self._watch, args=(there, lost or _end), daemon=True)
        thread.start()
        try:
            yield
            self._say_goodbye()
        except SystemExit as error:
            # Those that saved because of a SIGTERM end all at once, each by itself.
            if error.code in (None, 0, PREEMPTED):
                self._say_goodbye()
            raise
        finally:
            here.close()
            thread.join()
            there.close()
            self.close()

    def _say_goodbye(self) -> None:
        for each in self._answers.values():
            # Who has ended already does not listen.
            with contextlib.suppress(OSError):
                each.sendall(GOODBYE)

    def _watch(self, over: socket.socket, lost: Callable[[str], None]) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(over, selectors.EVENT_READ)
            for index, each in self._calls.items():
                _keep_alive(each)
                selector.register(each, selectors.EVENT_READ, index)
            others = {index for index in range(len(self.workers.addresses)) if index != self.workers.index}
            # Broken connections are gone already.
            ended = sorted(others - set(self._calls))
            while not ended:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    selector.unregister(key.fileobj)
                    if not _said_goodbye(self._calls[key.data]):
                        ended.append(key.data)
        lost(f"{self.workers.name(self.workers.index)} lost {self.workers.name(ended[0])}, which ended")


def _said_goodbye(connection: socket.socket) -> bool:
    try:
        return connection.recv(len(GOODBYE)) == GOODBYE
    except OSError:
        return False


def _keep_alive(connection: socket.socket) -> None:
    """Packets now and then: hosts that vanish are noticed, and firewalls do not forget a silent connection."""
    connection.setblocking(True)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        # Not all systems can change their times.
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _end(text: str) -> None:
    sys.stderr.write(f"{text}: all workers have to start again\n")
    sys.stderr.flush()
    # At once: the main thread may wait for the lost one, deep in TensorFlow.
    os._exit(LOST_PEER)
