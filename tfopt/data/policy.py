"""What is done with examples that cannot be used."""

from typing import Any, Literal

from tfopt.config import require

Policy = Literal["raise", "skip", "repair"]
POLICIES = ("raise", "skip", "repair")


def check_policy(on_bad: Any) -> None:
    """Raises a ValueError unless `on_bad` is one of the policies.

    >>> check_policy("ignore")
    Traceback (most recent call last):
    ValueError: on_bad must be one of raise, skip, repair, received 'ignore'
    """
    require(on_bad in POLICIES, f"on_bad must be one of {', '.join(POLICIES)}, received {on_bad!r}")
