"""The report: its data, from plain values to JSON and back."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

from tests.report_samples import (
    SAMPLES,
    digits,
    unmeasured,
)
from tfopt.record import Record
from tfopt.report import (
    Report,
    StageEntry,
    describe_environment,
)
from tfopt.report.plain import plain


@pytest.fixture(params=SAMPLES)
def sample(request) -> Report:
    return SAMPLES[request.param]()


def test_json_round_trip_is_exact(sample):
    text = json.dumps(sample.to_dict(), allow_nan=False)
    again = Report.from_dict(json.loads(text))
    assert again == sample
    assert again.to_dict() == sample.to_dict()


def test_design_schema_is_kept():
    values = digits().to_dict()
    assert list(values) == ["recipe", "environment", "stages", "chain", "artefacts"]
    assert {"versions", "cpu", "threads"} <= set(values["environment"])
    assert {"name", "repr", "seconds", "metrics", "changed", "skipped", "invariants"} <= set(values["stages"][0])
    assert set(values["stages"][1]["skipped"][0]) == {"layer", "reason"}


def test_add_leaves_the_old_report_alone():
    before = unmeasured()
    after = before.add(StageEntry("Prune", "Prune()", 1.0))
    assert [stage.name for stage in before.stages] == ["Train"]
    assert [stage.name for stage in after.stages] == ["Train", "Prune"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.recipe = "other"


def test_a_report_shares_nothing_with_what_it_was_made_of():
    row = {"variant": "Train", "bytes": 5}
    report = Report("r", {}, (), (row,))
    row["bytes"] = 6
    report.to_dict()["chain"][0]["bytes"] = 7
    assert report.chain[0]["bytes"] == 5


@dataclasses.dataclass(frozen=True)
class _Parity(Record):
    max_lsb: np.int32


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (float("nan"), None),
        (np.float64("-inf"), None),
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.array(7), 7),
        ((1, (2,)), [1, [2]]),
        (_Parity(np.int32(2)), {"max_lsb": 2}),
        (np.str_("a"), "a"),
        ("\udcff", "\\udcff"),
    ],
)
def test_measured_values_become_plain_json(value, expected):
    found = plain({"x": value})["x"]
    assert found == expected
    assert type(found) is type(expected)
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


def test_bfloat16_becomes_a_number():
    import ml_dtypes

    assert plain(ml_dtypes.bfloat16(1.5)) == 1.5


ENTRY = {"name": "Train", "repr": "Train()", "seconds": 1.0}
BAD = [
    (lambda: StageEntry(**ENTRY, metrics={"x": {}}), ValueError, "metrics has the keys x"),
    (
        lambda: StageEntry(**ENTRY, metrics={"after": {"x": {1, 2}}}),
        TypeError,
        r"StageEntry.metrics\['after'\]\['x'\]",
    ),
    (lambda: StageEntry(**ENTRY, history={1: [0.5]}), TypeError, "the key 1 of type int.*write '1'"),
    (lambda: StageEntry(**ENTRY, skipped=[{"layer": "a"}]), ValueError, "without 'reason'"),
    (lambda: StageEntry(**ENTRY, invariants=[{"invariant": "a"}]), ValueError, "without 'holds'"),
    (lambda: Report("r", {}, ({"name": "Train"},)), TypeError, "StageEntry objects; received"),
    (lambda: Report("r", {}, (), ({"bytes": 1},)), ValueError, "chain: received the row.*without 'variant'"),
    (lambda: Report("r", {}, artefacts={"tflite": object()}), TypeError, "no JSON form.*convert it first"),
    (lambda: Report.from_dict([]), TypeError, "read from a dict; received list"),
    (lambda: Report.from_dict({}), ValueError, "lacks 'recipe'; it was given nothing.*run again"),
    (lambda: Report.from_dict({"recipe": "r", "chian": []}), ValueError, "no 'chian'; it has chain"),
    (
        lambda: Report.from_dict({"recipe": "r", "stages": [{"name": "T"}]}),
        ValueError,
        "lacks 'repr', 'seconds'",
    ),
    (lambda: Report.from_dict({"recipe": "r", "stages": ["T"]}), TypeError, "StageEntry is read from a dict"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_repr_and_str_are_short():
    assert repr(digits()) == ("<Report 'digits_int8': 3 stages, Train (float32), Prune (float32), ExportTFLite (int8)>")
    lines = str(digits()).splitlines()
    assert lines[0].startswith("digits_int8: From Train (float32) to ExportTFLite (int8): accuracy 98.33 %")
    assert len(lines) == 4
    assert str(unmeasured()) == "nothing: Nothing was measured.\nNo invariant was checked."


def test_environment_names_versions_cpu_and_threads():
    found = describe_environment()
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) == {"python", "tfopt", "tensorflow", "keras", "ai-edge-litert", "numpy"}
    assert 1 <= found["threads"] <= os.cpu_count()
    assert found["cpu"].strip()
    assert plain(found) == found
