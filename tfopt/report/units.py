"""Numbers as a reader wants to see them; a value that was not measured is a dash."""

import math
from typing import Any

NOT_MEASURED = "\N{EM DASH}"

_FRACTIONS = ("accuracy", "agreement", "sparsity", "precision", "recall")


def percent(fraction: float | None, decimals: int = 2) -> str:
    """A fraction in [0, 1] as a percentage.

    >>> percent(0.9806), percent(None)
    ('98.06 %', '—')
    """
    return NOT_MEASURED if fraction is None else f"{100 * fraction:.{decimals}f} %"


def share(fraction: float | None) -> str:
    """A fraction in [0, 1] as a percentage without trailing zeros.

    >>> share(0.8), share(0.7996)
    ('80 %', '79.96 %')
    """
    if fraction is None:
        return NOT_MEASURED
    return f"{100 * fraction:.2f}".rstrip("0").rstrip(".") + " %"


def points(before: float | None, after: float | None) -> str:
    """The difference of two fractions in percentage points; empty where one is missing.

    >>> points(0.9833, 0.9806), points(0.98, 0.98)
    ('-0.27 points', '+0.00 points')
    """
    if before is None or after is None:
        return ""
    return f"{round(100 * (after - before), 2) + 0.0:+.2f} points"


def count(value: float | None) -> str:
    """A whole number with thousands separated.

    >>> count(48912)
    '48,912'
    """
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def milliseconds(value: float | None) -> str:
    """A time in milliseconds to three significant digits, without its unit.

    >>> milliseconds(0.02134), milliseconds(1.2), milliseconds(1234.5)
    ('0.0213', '1.20', '1,234')
    """
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def seconds(value: float | None) -> str:
    """A time in seconds with its unit.

    >>> seconds(0.04), seconds(12.34), seconds(125)
    ('0.04 s', '12.3 s', '2 min 5 s')
    """
    if value is None:
        return NOT_MEASURED
    if value >= 59.95:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes:,} min {rest} s"
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"


def ratio(before: float | None, after: float | None) -> str:
    """`after` as a multiple of `before`; empty where one is missing or `before` is zero.

    >>> ratio(44100, 13900), ratio(1, None)
    ('x0.32', '')
    """
    if before is None or after is None or before == 0:
        return ""
    value = after / before
    if value == 0 or 0.1 <= value < 10:
        return f"x{value:.2f}"
    return f"x{value:.2g}" if value < 0.1 else f"x{value:,.1f}"


def value(name: str, measured: Any) -> str:
    """Any plain value as text; a number that `name` marks as a fraction comes out as a percentage.

    >>> value("val_accuracy", 0.9806), value("loss", 0.08125), value("float_ops", []), value("CONV_2D", 2)
    ('98.06 %', '0.08125', 'none', '2')
    """
    if measured is None:
        return NOT_MEASURED
    if isinstance(measured, bool):
        return "yes" if measured else "no"
    if isinstance(measured, int | float):
        if any(word in name for word in _FRACTIONS) and 0 <= measured <= 1:
            return percent(measured)
        whole = isinstance(measured, int) or (measured == math.floor(measured) and abs(measured) >= 1000)
        return count(measured) if whole else f"{measured:.4g}"
    if isinstance(measured, dict):
        inner = [f"{key}: {value(key, each)}" for key, each in measured.items()]
        return ", ".join(inner) or "none"
    if isinstance(measured, list | tuple):
        return ", ".join(value(name, each) for each in measured) or "none"
    return str(measured)
