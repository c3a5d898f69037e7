"""Results that can be read by attribute and by key."""

import dataclasses
from collections.abc import Iterator
from typing import Any


class Record:
    """Base of result dataclasses: `r.bytes`, `r["bytes"]` and `dict(r)` all work.

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Size(Record):
    ...     bytes: int
    >>> Size(3)["bytes"], dict(Size(3))
    (3, {'bytes': 3})
    """

    def keys(self) -> Iterator[str]:
        """The names of the fields, as of a dict."""
        return (field.name for field in dataclasses.fields(self))  # type: ignore[arg-type]

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(f"{type(self).__name__} has no {key!r}; it has {', '.join(self.keys())}")
        return getattr(self, key)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain dicts, lists and numbers, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]
