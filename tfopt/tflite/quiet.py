"""Keeping a chatty library quiet."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what is written to stdout and stderr, by C++ code too; an error gets it as a note.

    Works on file descriptors 1 and 2, so other threads are held back too for that time.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as chatter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # In a notebook this logger writes to the page, not to a file descriptor.
        logger = logging.getLogger("tensorflow")
        level = logger.level
        logger.setLevel(logging.ERROR)
        os.dup2(chatter.fileno(), 1)
        os.dup2(chatter.fileno(), 2)
        try:
            yield
        except Exception as error:
            sys.stderr.flush()
            chatter.seek(0)
            error.add_note(chatter.read().decode(errors="replace")[-10_000:])
            raise
        finally:
            logger.setLevel(level)
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
