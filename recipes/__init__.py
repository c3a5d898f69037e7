"""Recipes: modules that chain stages; `python -m recipes` lists them."""

import os
import sys
import tempfile

if any(argument.startswith("recipes.") for argument in sys.orig_argv):
    # TensorFlow's start-up notes would drown a recipe's own words; they are shown if the import fails.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow

            tensorflow.config.list_physical_devices()
        except BaseException:
            notes.seek(0)
            os.write(stderr, notes.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
