"""`python -m tfopt.serve`: see `tfopt.serve.flags`."""

import os
import pathlib
import sys

if __name__ == "__main__":
    # The package has been imported by now, TensorFlow with it: a server has no need of the half gigabyte.
    script = pathlib.Path(__file__).with_name("main.py")
    os.execv(sys.executable, [sys.executable, "-P", str(script), *sys.argv[1:]])
