"""Runs a server; a script, so that the server's own process imports neither TensorFlow nor Keras.

`python -m tfopt.serve` becomes this.
"""

import contextlib
import importlib.metadata
import logging
import pathlib
import runpy
import sys

if __name__ == "__main__":
    runpy.run_path(str(pathlib.Path(__file__).with_name("light.py")))["stub_package"]()

from tfopt.serve.flags import parse


def main() -> None:
    """Starts what the arguments say."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("tfopt.serve").setLevel(logging.INFO)
    settings, access, chosen = parse()
    version = ""
    # A clone that is run in place is not installed.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("tfopt")
    try:
        if chosen.engine == "ray":
            from tfopt.serve.ray_engine import run_ray

            run_ray(settings, access, sys.argv[1:], version, chosen.ray_address, chosen.max_replicas)
        else:
            from tfopt.serve.local import run

            run(settings, access, version)
    except ModuleNotFoundError as error:
        extra = "ray" if chosen.engine == "ray" else "serve"
        raise ValueError(f"there is no module {error.name}: pip install 'tfopt[{extra}]'") from error


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
