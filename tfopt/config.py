"""Configuration as frozen dataclasses whose repr is the call that makes them."""

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Any


class Config:
    """Base of frozen dataclasses: the repr shows what differs from the defaults and rebuilds the object.

    A function or class given as a value is written by its importable name, so that `eval` finds it again.

    >>> @dataclasses.dataclass(frozen=True, repr=False)
    ... class Cut(Config):
    ...     fraction: float = 0.5
    ...     name: str = "cut"
    >>> Cut(fraction=0.25)
    Cut(fraction=0.25)
    >>> eval(repr(Cut(fraction=0.25))) == Cut(fraction=0.25)
    True
    """

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if default is dataclasses.MISSING or type(value) is not type(default) or value != default:
                shown.append(f"{field.name}={source(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def source(value: Any) -> str:
    """Python source that gives `value` again: functions by name, everything else by its repr.

    >>> source({"activation": len, "sizes": (1, 2)})
    "{'activation': len, 'sizes': (1, 2)}"
    """
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        if value.__module__ in ("builtins", "__main__"):
            return value.__qualname__
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{source(key)}: {source(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(source, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(source, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)


def require(condition: bool, message: str) -> None:
    """Raises a ValueError with `message` unless `condition` holds.

    >>> require(2 > 1, "arithmetic is broken")
    """
    if not condition:
        raise ValueError(message)


def did_you_mean(name: Any, known: Iterable[str], most: int = 10) -> str:
    """The end of a message about an unknown name: what is close to it, and what there is, where that is not too much.

    >>> did_you_mean("txt", ["text", "label"])
    'did you mean text? There are text, label'
    >>> did_you_mean("image", map(str, range(100)), most=3)
    'There are 0, 1, 2 and 97 more'
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, 1)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    there = [] if near and more else [f"There are {', '.join(known[:most])}{more}"]
    return " ".join([*(f"did you mean {each}?" for each in near), *there])


def require_fraction(name: str, value: Any, *, one: bool = False) -> None:
    """Raises a ValueError unless `value` is a number in [0, 1), or in [0, 1] with `one`.

    >>> require_fraction("sparsity", 80)
    Traceback (most recent call last):
    ValueError: sparsity must be a fraction in [0, 1), received 80; for 80 % write 0.8
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (0 <= value < 1 or (one and value == 1)):
        return
    hint = f"; for {value:g} % write {value / 100:g}" if number and 1 < value < 100 else ""
    interval = "[0, 1]" if one else "[0, 1)"
    raise ValueError(f"{name} must be a fraction in {interval}, received {value!r}{hint}")
