"""HTML from Python values, where text is escaped unless it is marked as HTML."""

import html
from collections.abc import Iterable, Sequence
from typing import Any


class Markup(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """An HTML element; children and attribute values that are not `Markup` are escaped.

    Args:
      name: the element's name.
      children: texts and elements; None is left out.
      attributes: written in order; a trailing underscore, as in `class_`, is dropped, others become
        hyphens. An attribute that is None is left out; True gives one without a value.

    >>> element("p", "a < b ", element("b", "bold"), class_="note")
    '<p class="note">a &lt; b <b>bold</b></p>'
    """
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), each) for key, each in attributes.items())
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """Texts and elements one after another, escaped where they are not `Markup`.

    >>> join("<", None, Markup("<br>"))
    '&lt;<br>'
    """
    return Markup("".join(_escaped(each) for each in children if each is not None))


def _escaped(value: Any) -> str:
    return value if isinstance(value, Markup) else html.escape(str(value))


def _attribute(name: str, value: Any) -> str:
    if value is None:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], caption: Any = None, numbers: int = 0) -> Markup:
    """A table in a box that scrolls sideways; the first cell of each row is its heading.

    Args:
      heads: the columns' headings.
      rows: as many cells each.
      caption: a sentence below the table.
      numbers: how many columns, counted from the right, hold numbers.
    """
    aligned = [None] * (len(heads) - numbers) + ["number"] * numbers
    head = element(
        "tr", *(element("th", each, scope="col", class_=to) for each, to in zip(heads, aligned, strict=True))
    )
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", each, class_=to) for each, to in zip(row[1:], aligned[1:], strict=True)),
        )
        for row in rows
    ]
    whole = element("table", element("thead", head), element("tbody", *body))
    below = element("p", caption, class_="caption") if caption else None
    return join(element("div", whole, class_="scroll", tabindex=0), below)
