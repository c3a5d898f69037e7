"""`refuse`: says of TFMOT's names that are not here what to do instead."""

from collections.abc import Callable, Mapping
from typing import Any


def refuse(module: str, instead: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__`, which raises an AttributeError with advice.

    Args:
      module: name of the module.
      instead: what to do, by name.

    >>> refuse("tfmot", {"combine": "use the stages"})("combine")
    Traceback (most recent call last):
    AttributeError: TFMOT's tfmot.combine is not in tfopt.compat: use the stages
    """
    path = module.replace("tfopt.compat", "tfmot")

    def missing(name: str) -> Any:
        if name in instead:
            raise AttributeError(f"TFMOT's {path}.{name} is not in tfopt.compat: {instead[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing
