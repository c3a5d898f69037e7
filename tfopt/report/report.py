"""What a run did and measured: immutable, JSON in and out."""

import copy
import dataclasses
import difflib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from tfopt import files
from tfopt.record import Record
from tfopt.report import scores, words
from tfopt.report.plain import plain


@dataclasses.dataclass(frozen=True)
class StageEntry(Record):
    """What one stage did.

    Everything is turned into plain JSON values on the way in; NaN and infinities become None.

    Args:
      name: the stage's class name.
      repr: the stage's repr, which rebuilds it.
      seconds: how long it took.
      metrics: `{"before": {name: number}, "after": {name: number}}`.
      changed: names of the layers it changed.
      skipped: `{"layer", "reason"}` for each layer it left alone.
      invariants: `{"invariant", "holds", "detail"}` for each promise checked after it.
      history: metric name to one number for each epoch.
      sparsity: "layer/kernel" to its fraction of zeros, in [0, 1].
      notes: sentences for the reader.
      sensitivity: what `AnalyzeSensitivity` found: "kind", "metric", "baseline" and "values" by layer and level.

    Raises:
      TypeError: for a value that has no JSON form.
      ValueError: for a row that lacks a key.

    >>> StageEntry("Train", "Train(epochs=1)", 2.5, history={"loss": [float("nan"), 0.5]}).history
    {'loss': [None, 0.5]}
    """

    name: str
    repr: str
    seconds: float
    metrics: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    changed: list[str] = dataclasses.field(default_factory=list)
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    invariants: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    history: dict[str, list[float | None]] = dataclasses.field(default_factory=dict)
    sparsity: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    sensitivity: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _make_plain(self)
        where = f"StageEntry {self.name!r}"
        unknown = sorted(set(self.metrics) - {"before", "after"})
        if unknown:
            raise ValueError(
                f"{where}: metrics has the keys {', '.join(unknown)}; it takes 'before' and 'after' only, "
                'as in {"before": {"accuracy": 0.97}, "after": {"accuracy": 0.98}}'
            )
        _require(self.skipped, ("layer", "reason"), f"{where}: skipped")
        _require(self.invariants, ("invariant", "holds"), f"{where}: invariants")


@dataclasses.dataclass(frozen=True, repr=False)
class Report(Record):
    """What a whole run did: its stages, the variants measured along the chain and the files it made.

    Args:
      recipe: the recipe's name.
      environment: what `describe_environment` returns.
      stages: one entry for each stage, in order.
      chain: one row for each variant measured, in order: "variant" (its name), and where measured
        "accuracy" and "sparsity" (fractions), "bytes", "gzip_bytes" and "zstd_bytes", "median_ms" and
        "p90_ms".
      artefacts: the files made: `{"tflite": {"path", "bytes", "gzip_bytes", "zstd_bytes", "ops", "float_ops",
        "flex_ops", "accuracy", "parity", "latency", "metrics"}}`; "metrics" holds what `Metrics.to_report`
        gives, of the model ("keras") and of the file ("tflite").

    Raises:
      TypeError: for a stage that is no `StageEntry`, and for a value that has no JSON form.
      ValueError: for a chain row without "variant".

    >>> report = Report("digits", {}).add(StageEntry("Train", "Train()", 2.0))
    >>> report
    <Report 'digits': 1 stage, nothing measured>
    >>> Report.from_dict(report.to_dict()) == report
    True
    """

    recipe: str
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    stages: tuple[StageEntry, ...] = ()
    chain: tuple[dict[str, Any], ...] = ()
    artefacts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for stage in self.stages:
            if not isinstance(stage, StageEntry):
                raise TypeError(f"a report's stages are StageEntry objects; received {stage!r}")
        stages = tuple(self.stages)
        _make_plain(self, leave=("stages",))
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "chain", tuple(self.chain))
        _require(self.chain, ("variant",), "Report: chain")

    def add(self, entry: StageEntry) -> "Report":
        """A new report with one more stage."""
        return dataclasses.replace(self, stages=(*self.stages, entry))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; `from_dict` gives back an equal report."""
        return {
            "recipe": self.recipe,
            "environment": copy.deepcopy(self.environment),
            "stages": [stage.to_dict() for stage in self.stages],
            "chain": copy.deepcopy(list(self.chain)),
            "artefacts": copy.deepcopy(self.artefacts),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        """The report that `to_dict` described.

        Raises:
          TypeError: for anything but a mapping.
          ValueError: for a key that is missing or unknown, as in a file that is corrupt or from elsewhere.
        """
        checked = _fields_of(cls, values)
        stages = checked.pop("stages", ())
        return cls(**checked, stages=tuple(StageEntry(**_fields_of(StageEntry, stage)) for stage in stages))

    def write(self, folder: files.Path) -> dict[str, pathlib.Path]:
        """Writes report.json, report.md and report.html, each atomically.

        Paths of artefacts inside the folder are written relative to it, others absolute. A relative path
        is taken from the folder if there is a file, else from the working directory.

        Returns:
          The paths of the three files, under "json", "md" and "html".
        """
        from tfopt.report import html, markdown

        folder = pathlib.Path(folder)
        located = dataclasses.replace(self, artefacts=_located(self.artefacts, folder.resolve()))
        document = json.dumps(located.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        return {
            "json": files.write_text(folder / "report.json", document + "\n"),
            "md": files.write_text(folder / "report.md", markdown.render(located)),
            "html": files.write_text(folder / "report.html", html.render(located)),
        }

    def __repr__(self) -> str:
        stages = f"{len(self.stages)} stage{'' if len(self.stages) == 1 else 's'}"
        measured = ", ".join(row["variant"] for row in self.chain) or "nothing measured"
        return f"<Report {self.recipe!r}: {stages}, {measured}>"

    def __str__(self) -> str:
        lines = [
            f"{self.recipe}: {words.summary(self.chain)}",
            *words.steps(self.chain),
            *scores.sentences(self.artefacts),
        ]
        return "\n".join([*lines, words.promises(self.stages)])

    def _repr_html_(self) -> str:
        from tfopt.report import html

        return html.fragment(self)


def _make_plain(record: Record, leave: tuple[str, ...] = ()) -> None:
    """Replaces the fields of a frozen dataclass by copies that hold plain JSON values only."""
    for name in dict(record):
        if name not in leave:
            where = f"{type(record).__name__}.{name}"
            object.__setattr__(record, name, plain(getattr(record, name), where))


def _require(rows: Iterable[Any], keys: tuple[str, ...], where: str) -> None:
    for row in rows:
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise ValueError(
                f"{where}: received the row {row!r} without {', '.join(map(repr, missing))}; "
                f"each row is a dict with {', '.join(map(repr, keys))}"
            )


def _fields_of(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as arguments of a dataclass, or an error that names what does not fit."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{cls.__name__} is read from a dict; received {type(values).__name__}: {values!r:.80}")
    fields = {each.name: each for each in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1) or [", ".join(fields)]
            raise ValueError(f"{cls.__name__} has no {key!r}; it has {near[0]}. Is this file a report of tfopt?")
    required = [
        name
        for name, each in fields.items()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(
            f"{cls.__name__} lacks {', '.join(map(repr, missing))}; "
            f"it was given {', '.join(values) or 'nothing'}. The report is damaged: delete it and run again"
        )
    return dict(values)


def _located(value: Any, folder: pathlib.Path) -> Any:
    """The artefacts with every "path" relative to the folder where it lies inside."""
    if not isinstance(value, dict):
        return value
    return {
        key: _relative(each, folder) if key == "path" and isinstance(each, str) else _located(each, folder)
        for key, each in value.items()
    }


def _relative(path: str, folder: pathlib.Path) -> str:
    beside = folder / path
    whole = beside if beside.exists() else pathlib.Path(path)
    # The file itself may be a link to elsewhere; it is the name in the folder that counts.
    whole = whole.parent.resolve() / whole.name
    return (whole.relative_to(folder) if whole.is_relative_to(folder) else whole).as_posix()
