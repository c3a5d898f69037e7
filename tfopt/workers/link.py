"""`Link`: connections to all other workers that stay open, so that the end of one is seen at once by all.

TensorFlow sees the death of a worker after ten seconds or more, and one that dies while the others start their
servers not at all: they wait for it for very long.
"""

import contextlib
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping

from tfopt.workers.addresses import Workers
from tfopt.workers.preemption import PREEMPTED
from tfopt.workers.supervise import FINAL
from tfopt.workers.watch import FAILED, GOODBYE

_WATCH = pathlib.Path(__file__).with_name("watch.py")


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
        """Closes all connections."""
        for each in (*self._calls.values(), *self._answers.values()):
            each.close()

    @contextlib.contextmanager
    def watched(self, again: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Ends this process when another worker ends before its work is done, as long as the block lasts.

        By SIGUSR2, which a supervisor takes for LOST_PEER, or by SIGUSR1 where the other one failed with an error of
        its own, which would come again. When the block ends, the other workers are told how.

        Args:
          again: the errors in the block after which all workers are to start again.
        """
        if not self._calls:
            yield
            return
        for each in self._calls.values():
            _keep_alive(each)
        names = [f"{each.fileno()}:{self.workers.name(index)}" for index, each in self._calls.items()]
        watch = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WATCH), *names],
            stdin=subprocess.PIPE,
            pass_fds=[each.fileno() for each in self._calls.values()],
        )
        word = b""
        try:
            yield
            word = GOODBYE
        except SystemExit as error:
            # Those that saved because of a SIGTERM end all at once, each by itself.
            done = error.code in (None, 0, PREEMPTED)
            word = GOODBYE if done else FAILED if error.code in FINAL or isinstance(error.code, str) else b""
            raise
        except again:
            raise
        except Exception:
            word = FAILED
            raise
        finally:
            watch.communicate()
            for each in self._answers.values():
                # Who has ended already does not listen.
                with contextlib.suppress(OSError):
                    each.sendall(word)
            self.close()


def _keep_alive(connection: socket.socket) -> None:
    """Packets now and then: hosts that vanish are noticed, and firewalls do not forget a silent connection."""
    connection.setblocking(True)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        # Not all systems can change their times.
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
