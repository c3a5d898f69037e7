"""Lets a script import parts of tfopt without the package's own imports, TensorFlow and Keras among them.

Scripts load it by its path, before anything of tfopt: processes of a server start in a fraction of a second then, and
weigh a tenth.
"""

import pathlib
import sys
import types


def stub_package() -> None:
    """Puts an empty package in the place of tfopt, in which its modules are found."""
    package = types.ModuleType("tfopt")
    package.__path__ = [str(pathlib.Path(__file__).parents[1])]
    sys.modules.setdefault("tfopt", package)
