"""Keeping a chatty library quiet."""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what Python and C++ code write to stdout and stderr; shows it on stderr if the block raises.

    Works on file descriptors 1 and 2, so other threads are held back too for that time.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as chatter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(chatter.fileno(), 1)
        os.dup2(chatter.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
            if failed:
                chatter.seek(0)
                sys.stderr.write(chatter.read().decode(errors="replace"))
