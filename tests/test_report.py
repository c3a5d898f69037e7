"""The report: its data, its sentences, its plots and its three files."""

import dataclasses
import functools
import html.parser
import http.server
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import xml.etree.ElementTree

import markdown_it
import numpy as np
import pytest
import rich.console

from tfopt.record import Record
from tfopt.report import (
    Report,
    StageEntry,
    describe_environment,
    markdown,
    plots,
    print_summary,
    units,
    words,
)
from tfopt.report import (
    html as page,
)
from tfopt.report.plain import plain

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {
    "versions": {"python": "3.11.7", "tensorflow": "2.21.0", "keras": "3.15.1", "ai-edge-litert": "2.3.0"},
    "cpu": "Intel(R) Xeon(R) CPU @ 2.80GHz",
    "threads": 2,
    "platform": "Linux-6.1.0-x86_64",
}
WEIRD = '<b>x</b> & "q" $a_1$ | `c` \n #0072b2 id="z 層 </script><script>alert(1)</script> http://a.b/c.png'


def digits() -> Report:
    """An int8 chain as of the digits recipe, with invented figures."""
    kernels = ["conv/kernel", "conv_1/kernel", "dense/kernel", "dense_1/kernel"]
    return Report(
        recipe="digits_int8",
        environment=ENVIRONMENT,
        stages=(
            StageEntry(
                "Train",
                "Train(epochs=6, optimizer='adam', learning_rate=0.001, jit_compile=False)",
                14.2,
                metrics={
                    "before": {"accuracy": 0.0972, "loss": 2.31},
                    "after": {"accuracy": 0.9833, "loss": 0.061},
                },
                changed=["conv", "conv_1", "dense", "dense_1"],
                history={
                    "loss": [1.31, 0.42, 0.21, 0.12, 0.085, 0.061],
                    "val_loss": [0.71, 0.33, 0.19, 0.14, 0.11, 0.096],
                    "accuracy": [0.61, 0.88, 0.94, 0.965, 0.976, 0.984],
                    "val_accuracy": [0.80, 0.91, 0.95, 0.962, 0.972, 0.979],
                },
            ),
            StageEntry(
                "Prune",
                "Prune(final_sparsity=0.8, begin_step=0, end_step=184, frequency=10, pattern='unstructured')",
                11.8,
                metrics={
                    "before": {"accuracy": 0.9833, "loss": 0.061},
                    "after": {"accuracy": 0.9806, "loss": 0.072},
                },
                changed=["conv_1", "dense"],
                skipped=[
                    {"layer": "conv", "reason": "first layer: 72 weights, too few to gain from pruning"},
                    {"layer": "batch_normalization", "reason": "no kernel"},
                ],
                invariants=[{"invariant": "Sparsity(0.8)", "holds": True, "detail": "0.8000 over 2 kernels"}],
                history={
                    "loss": [0.31, 0.19, 0.11, 0.072],
                    "val_loss": [0.26, 0.18, 0.13, 0.11],
                    "accuracy": [0.90, 0.94, 0.967, 0.979],
                    "val_accuracy": [0.92, 0.945, 0.963, 0.974],
                },
                sparsity=dict(zip(kernels, [0.0, 0.8, 0.8, 0.0], strict=True)),
                notes=["Two of four kernels hold 96 % of the weights."],
            ),
            StageEntry(
                "ExportTFLite",
                "ExportTFLite(quantization='int8', float_io=False)",
                3.4,
                metrics={"before": {"accuracy": 0.9806}, "after": {"accuracy": 0.9806}},
                invariants=[
                    {"invariant": "Sparsity(0.8)", "holds": True, "detail": "0.801 in the flatbuffer"}
                ],
            ),
        ),
        chain=(
            _row("Train (float32)", 0.9833, 48912, 44100, 0.0213, 0.0219, 0.0),
            _row("Prune (float32)", 0.9806, 48912, 13900, 0.0215, 0.0221, 0.8),
            _row("ExportTFLite (int8)", 0.9806, 15208, 5120, 0.0109, 0.0113, 0.801),
        ),
        artefacts={
            "tflite": {
                "path": "model.tflite",
                "bytes": 15208,
                "gzip_bytes": 5120,
                "ops": {"CONV_2D": 2, "FULLY_CONNECTED": 2, "MAX_POOL_2D": 1, "RESHAPE": 1},
                "float_ops": 0,
                "flex_ops": [],
                "accuracy": 0.9806,
                "parity": {
                    "argmax_agreement": 0.9972,
                    "max_lsb": 3,
                    "mean_lsb": 0.21,
                    "first_divergent": None,
                },
                "latency": {
                    "median_ms": 0.0109,
                    "p90_ms": 0.0113,
                    "runtime": "LiteRT 2.3.0",
                    "threads": 1,
                    "cpu": "Intel(R) Xeon(R) CPU @ 2.80GHz",
                },
            }
        },
    )


def _row(variant, accuracy, size, packed, median, p90, sparsity):
    return {
        "variant": variant,
        "accuracy": accuracy,
        "bytes": size,
        "gzip_bytes": packed,
        "median_ms": median,
        "p90_ms": p90,
        "sparsity": sparsity,
    }


def one_row() -> Report:
    whole = digits()
    return Report("float_only", ENVIRONMENT, whole.stages[:1], whole.chain[:1])


def unmeasured() -> Report:
    return Report("nothing", ENVIRONMENT, (StageEntry("Train", "Train(epochs=1)", 0.4),))


def weird() -> Report:
    entry = StageEntry(
        WEIRD,
        WEIRD,
        1.0,
        metrics={"before": {WEIRD: 1}, "after": {WEIRD: np.float32("inf")}},
        changed=[WEIRD],
        skipped=[{"layer": WEIRD, "reason": WEIRD}],
        invariants=[{"invariant": WEIRD, "holds": False, "detail": WEIRD}],
        history={"loss": [float("nan"), 1.0], "accuracy": [0.1, float("nan")]},
        sparsity={WEIRD: 0.5},
        notes=[WEIRD],
    )
    chain = [_row(WEIRD, 0.9, 10, 5, 1.0, 1.1, 0.0), _row(WEIRD + "2", 0.8, 5, 4, 1.0, 1.1, 0.5)]
    artefacts = {WEIRD: {"path": "javascript:alert(1)", "ops": {WEIRD: 1}}, "note": WEIRD}
    return Report(WEIRD, {"cpu": WEIRD, "versions": {WEIRD: WEIRD}}, (entry,), tuple(chain), artefacts)


def large() -> Report:
    names = [f"backbone/stage_{index // 10}/block_{index}/depthwise_conv" for index in range(200)]
    entry = StageEntry(
        "Prune",
        "Prune(final_sparsity=0.75)",
        95.0,
        changed=names,
        skipped=[{"layer": f"{name}_bn", "reason": "no kernel"} for name in names],
        invariants=[{"invariant": "Sparsity(0.75)", "holds": False, "detail": "0.71 in the last kernel"}],
        history={"loss": list(np.geomspace(3, 0.1, 100))},
        sparsity={f"{name}/kernel": 0.75 for name in names},
    )
    chain = tuple(
        _row(
            f"variant {index}",
            None if index == 3 else 0.9 - index / 500,
            10**7 // (index + 1),
            None,
            3.0 + index,
            None,
            None,
        )
        for index in range(8)
    )
    return Report("large", ENVIRONMENT, (entry,), chain)


SAMPLES = {each.__name__: each for each in (digits, one_row, unmeasured, weird, large)}


@functools.cache
def _html(name: str) -> str:
    return page.render(SAMPLES[name]())


@pytest.fixture(params=SAMPLES)
def sample(request) -> Report:
    return SAMPLES[request.param]()


# The data


def test_json_round_trip_is_exact(sample):
    text = json.dumps(sample.to_dict(), allow_nan=False)
    again = Report.from_dict(json.loads(text))
    assert again == sample
    assert again.to_dict() == sample.to_dict()


def test_design_schema_is_kept():
    values = digits().to_dict()
    assert list(values) == ["recipe", "environment", "stages", "chain", "artefacts"]
    assert {"versions", "cpu", "threads"} <= set(values["environment"])
    assert {"name", "repr", "seconds", "metrics", "changed", "skipped", "invariants"} <= set(
        values["stages"][0]
    )
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
    assert repr(digits()) == (
        "<Report 'digits_int8': 3 stages, Train (float32), Prune (float32), ExportTFLite (int8)>"
    )
    lines = str(digits()).splitlines()
    assert lines[0].startswith("digits_int8: From Train (float32) to ExportTFLite (int8): accuracy 98.33 %")
    assert len(lines) == 4
    assert str(unmeasured()) == "nothing: Nothing was measured.\nNo invariant was checked."


# The sentences


def _timed(median, p90=None, **others):
    return {"variant": "v", "median_ms": median, "p90_ms": p90, **others}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (_timed(1.0), _timed(0.949), "faster"),
        (_timed(1.0), _timed(0.951), "unchanged"),
        (_timed(1.0), _timed(1.049), "unchanged"),
        (_timed(1.0), _timed(1.051), "slower"),
        (_timed(1.0, 1.3), _timed(0.75, 0.8), "unchanged"),
        (_timed(1.0, 1.05), _timed(0.75, 1.1), "unchanged"),
        (_timed(1.0, 1.2), _timed(0.75, 0.8), "faster"),
        (_timed(None), _timed(1.0), ""),
        ({"variant": "v"}, _timed(1.0), ""),
    ],
)
def test_a_latency_change_counts_beyond_five_percent_and_the_spread(before, after, expected):
    assert words.latency_change(before, after) == expected


def test_steps_of_the_digits_chain():
    assert words.steps(digits().chain) == [
        "Prune (float32): 80 % of the weights are zero; the file did not get smaller (48,912 bytes), gzipped "
        "it shrank from 44,100 to 13,900 bytes (x0.32). Accuracy 98.33 % to 98.06 % (-0.27 points). Latency "
        "is unchanged (0.0215 ms, x1.01): no speed-up, LiteRT on this CPU does not skip zero weights.",
        "ExportTFLite (int8): the file shrank from 48,912 to 15,208 bytes (x0.31), gzipped it shrank from "
        "13,900 to 5,120 bytes (x0.37). Accuracy is unchanged (98.06 %). Latency "
        "0.0215 to 0.0109 ms (x0.51): faster.",
    ]


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ({"bytes": 100}, {"bytes": 198}, "the file grew from 100 to 198 bytes (x1.98)"),
        ({"gzip_bytes": 1000}, {"gzip_bytes": 995}, "gzipped it did not get smaller (995 bytes)"),
        ({}, {"bytes": 1}, "size was not measured"),
        (_timed(1.0), _timed(33.0), "Latency 1.00 to 33.0 ms (x33.0): no speed-up but slower."),
        (
            _timed(1.0, 1.5),
            _timed(0.9, 1.0, sparsity=0.8),
            "no speed-up, the difference is within the noise of 0.500 ms",
        ),
        (_timed(1.0), _timed(0.5, sparsity=0.8), "Latency 1.00 to 0.500 ms (x0.50): faster."),
        (_timed(1.0, sparsity=0.8), _timed(1.0, sparsity=0.8), "no speed-up, the difference is within 5 %."),
        ({"accuracy": 0.9}, {"accuracy": None}, "Accuracy was not measured."),
        ({"accuracy": None}, {"accuracy": 0.9}, "Accuracy is 90.00 %."),
    ],
)
def test_what_a_step_brought_is_told_as_it_is(before, after, part):
    assert part in words.step({"variant": "a", **before}, {"variant": "b", **after})


def test_zeros_that_were_there_before_are_not_told_again():
    assert "weights are zero" not in words.steps(digits().chain)[1]


def test_summary_of_one_row_compares_nothing():
    assert words.summary(one_row().chain) == (
        "One variant was measured, Train (float32): accuracy 98.33 %, 48,912 bytes, 44,100 bytes gzipped, "
        "latency 0.0213 ms. Nothing to compare it with."
    )
    assert words.steps(one_row().chain) == []
    assert "accuracy not measured, size not measured, latency not measured" in words.summary(
        [{"variant": "a"}]
    )


def test_a_broken_promise_is_named():
    assert words.promises(large().stages) == "1 of 1 invariant checks failed: Sparsity(0.75) after Prune."
    assert words.promises(digits().stages) == "All 2 invariant checks hold."


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Prune(final_sparsity=0.8)", 0.8),
        ("Prune(ConstantSparsity(target_sparsity=0.5))", 0.5),
        ("Train(epochs=3)", None),
        ("Prune(schedule=<object at 0x7f>)", None),
        ("Prune(final_sparsity=None)", None),
    ],
)
def test_target_sparsity_is_read_from_the_repr(expression, expected):
    assert words.target_sparsity(expression) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (units.percent(0.99999), "100.00 %"),
        (units.points(0.5, 0.499999), "+0.00 points"),
        (units.milliseconds(99.96), "100"),
        (units.milliseconds(9.999), "10.0"),
        (units.seconds(59.96), "1 min 0 s"),
        (units.ratio(0, 5), ""),
        (units.ratio(100, 6.25), "x0.062"),
        (units.value("threads", 2), "2"),
        (units.value("accuracy", 1), "100.00 %"),
        (units.value("learning_rate", 0.001), "0.001"),
        (units.value("flag", False), "no"),
        (units.value("ops", {"ADD": 2, "MUL": None}), "ADD: 2, MUL: \N{EM DASH}"),
    ],
)
def test_numbers_are_written_for_readers(written, expected):
    assert written == expected


# The plots


def _texts(svg: str) -> list[str]:
    return [
        "".join(each.itertext())
        for each in xml.etree.ElementTree.fromstring(svg).iter()
        if each.tag.endswith("text")
    ]


def _svgs(report: Report) -> list[str]:
    histories = [(stage.name, stage.history) for stage in report.stages]
    sparsity = {name: each for stage in report.stages for name, each in stage.sparsity.items()}
    return [
        plots.accuracy_by_size(report.chain),
        plots.accuracy_by_latency(report.chain),
        plots.training_curves(histories),
        plots.sparsity_by_layer(sparsity, 0.8),
    ]


def test_plots_are_the_same_each_time():
    first = _svgs(digits())
    assert all(svg.startswith("<svg") for svg in first)
    assert first == _svgs(digits())


def test_nothing_measured_gives_no_plots():
    assert _svgs(unmeasured()) == ["", "", "", ""]


def test_bars_are_as_long_as_the_sparsity():
    svg = plots.sparsity_by_layer({"a/kernel": 0.8, "b/kernel": 0.2, "c/kernel": 0.0}, 0.8)
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--blue', svg)
    edges = [[float(x) for x in re.findall(r"[ML] (\S+) \S+", path)] for path in paths]
    lengths = [max(each) - min(each) for each in edges]
    assert lengths[1] / lengths[0] == pytest.approx(0.25, rel=1e-3)
    assert lengths[2] == 0
    assert {"a/kernel", "b/kernel", "c/kernel", "80 %", "20 %", "0 %", "target 80 %"} <= set(_texts(svg))


def test_points_lie_in_the_order_of_their_sizes():
    svg = plots.accuracy_by_size(digits().chain)
    places = [
        (float(x), float(y))
        for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\(--blue', svg)
    ]
    train, prune, int8 = places[:3]
    assert train[0] == prune[0] > int8[0]
    assert train[1] < prune[1] == int8[1]


def test_points_are_labelled_and_labels_do_not_cover_one_another():
    svg = plots.accuracy_by_latency(digits().chain)
    assert {row["variant"] for row in digits().chain} <= set(_texts(svg))
    same = tuple({**digits().chain[0], "variant": f"variant {index}"} for index in range(3))
    drawn = plots.accuracy_by_latency(same)
    places = [(float(x), float(y)) for x, y in re.findall(r'x="(\S+)" y="(\S+)"[^>]*>variant', drawn)]
    assert len(places) == 3
    apart = [max(abs(a[0] - b[0]) / 30, abs(a[1] - b[1]) / 6) for a, b in itertools.combinations(places, 2)]
    assert min(apart) > 1


def test_rows_without_accuracy_are_left_out_of_plots_and_named_on_the_page():
    assert "variant 3" not in _texts(plots.accuracy_by_size(large().chain))
    assert "Left out, without an accuracy: variant 3." in _html("large")


def test_training_curves_name_the_stages():
    texts = _texts(_svgs(digits())[2])
    assert {"Train", "Prune", "loss", "val_loss", "accuracy", "val_accuracy", "epoch"} <= set(texts)


def test_strange_names_are_drawn_as_they_are():
    name = "<b> & $x_1$ #0072b2 url(#a) 層"
    assert name in _texts(plots.sparsity_by_layer({name: 0.5}))


def test_plots_leave_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    _svgs(digits())
    assert dict(matplotlib.rcParams) == before


def test_report_is_light_to_import_and_needs_no_pyplot():
    script = (
        "import sys, tfopt.report as r; r.describe_environment();"
        "heavy = {'matplotlib', 'rich', 'tensorflow', 'keras', 'ai_edge_litert'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "from tfopt.report import plots; assert plots.sparsity_by_layer({'a': 0.5});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    # `import tfopt` itself may import TensorFlow; the report must not.
    stub = (
        "import sys, types; t = types.ModuleType('tfopt'); t.__path__ = ['tfopt']; sys.modules['tfopt'] = t;"
    )
    done = subprocess.run([sys.executable, "-c", stub + script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# The three files


def test_write_gives_three_files_that_can_be_read_back(sample, tmp_path):
    paths = sample.write(tmp_path / "deep" / "run")
    assert {name: path.name for name, path in paths.items()} == {
        "json": "report.json",
        "md": "report.md",
        "html": "report.html",
    }
    assert sorted(each.name for each in (tmp_path / "deep" / "run").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]

    def refuse(constant):
        raise ValueError(constant)

    values = json.loads(paths["json"].read_text(encoding="utf-8"), parse_constant=refuse)
    assert Report.from_dict(values).stages == sample.stages
    assert Report.from_dict(values).chain == sample.chain


def _path_written(path, folder) -> str:
    report = Report("r", {}, artefacts={"tflite": {"path": path}})
    values = json.loads(report.write(folder)["json"].read_text(encoding="utf-8"))
    Report.from_dict(values).write(folder)
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == values
    return values["artefacts"]["tflite"]["path"]


def test_paths_inside_the_folder_are_relative_to_it(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "m.tflite").write_bytes(b"x")
    (tmp_path / "other.tflite").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert _path_written(folder / "export" / "m.tflite", folder) == "export/m.tflite"
    assert _path_written("run/export/m.tflite", folder) == "export/m.tflite"
    assert _path_written("export/m.tflite", folder) == "export/m.tflite"
    assert _path_written("other.tflite", folder) == str(tmp_path / "other.tflite")
    assert 'href="./export/m.tflite"' in (
        Report("r", {}, artefacts={"t": {"path": "run/export/m.tflite"}}).write(folder)["html"].read_text()
    )


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match="run"):
        digits().write(tmp_path / "run")


class _Page(html.parser.HTMLParser):
    """Elements, texts and links of a page; fails on elements that are not closed in order."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("name", SAMPLES)
def test_page_is_well_formed_and_needs_nothing_from_outside(name):
    text = _html(name)
    found = _Page(text)
    assert not {"script", "img", "iframe", "object", "embed", "image", "base", "form"} & set(found.tags)
    references = [
        value for name, value in found.attributes if name in ("href", "src", "xlink:href", "srcset")
    ]
    assert all(each.startswith(("data:,", "#", "./")) for each in references), references
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("name", "drawn"), [("digits", 4), ("one_row", 3), ("unmeasured", 0), ("weird", 4), ("large", 4)]
)
def test_page_draws_what_was_measured(name, drawn):
    assert _Page(_html(name)).tags.count("svg") == drawn


def test_page_shows_names_as_they_are():
    texts = _Page(_html("weird")).texts
    assert WEIRD in texts
    assert sum(WEIRD in each for each in texts) >= 12


def test_page_tells_the_headline_the_reasons_and_the_verdicts():
    text = " ".join(_Page(_html("digits")).texts)
    for part in (
        "98.06 %",
        "-0.27 points from 98.33 %",
        "x0.31 from 48,912",
        "first layer: 72 weights, too few to gain from pruning",
        "\u2713 holds  Sparsity(0.8) (0.801 in the flatbuffer)",
        "LiteRT 2.3.0, 1 thread, Intel(R) Xeon(R) CPU @ 2.80GHz",
        "FULLY_CONNECTED",
        "argmax agreement 99.72 %",
        "3.11.7",
        *words.steps(digits().chain),
    ):
        assert part in text, part
    assert "\u2717 broken" in " ".join(_Page(_html("large")).texts)


def test_notebook_fragment_is_summary_and_table():
    found = _Page(digits()._repr_html_())
    assert found.tags.count("tr") == 4
    assert "html" not in found.tags
    assert words.summary(digits().chain) in "".join(found.texts)


def _rendered(text: str) -> str:
    return markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_markdown_tables_have_all_rows_and_columns():
    rendered = _rendered(markdown.render(digits()))
    tables = re.findall(r"<table>.*?</table>", rendered, re.DOTALL)
    assert tables[0].count("<tr>") == 4
    assert tables[0].count("<td>") == 3 * 9
    assert words.steps(digits().chain)[0] in html.unescape(rendered)
    assert "first layer: 72 weights, too few to gain from pruning" in rendered


def test_markdown_shows_names_as_they_are():
    rendered = _rendered(markdown.render(weird()))
    found = _Page(rendered)
    assert not {"script", "b", "em", "a"} & set(found.tags)
    line = " ".join(WEIRD.split())
    assert found.texts.count(line) >= 3
    assert f"<h1>{html.escape(line, quote=True)}</h1>".replace("&#x27;", "'") in rendered
    row = re.search(r"<tr>\s*<td>.*?</tr>", rendered, re.DOTALL)[0]
    assert row.count("<td>") == 9


@pytest.mark.parametrize(
    "name", ["a`b", "``", "- x", "1. x", "# x", "a\\|b", "&lt;", "__init__", "~~x~~", "[x](y)", "= x"]
)
def test_markdown_escapes(name):
    assert _Page(_rendered(markdown.text(name))).texts[0] == name
    assert name in "".join(_Page(_rendered(f"| a |\n| --- |\n| {markdown.text(name)} |")).texts)
    assert name in "".join(_Page(_rendered(f"| a |\n| --- |\n| {markdown.code(name)} |")).texts)


# The terminal and the machine


def _printed(report: Report, width: int = 100, **options) -> str:
    stream = io.StringIO()
    print_summary(report, rich.console.Console(file=stream, width=width), **options)
    return stream.getvalue()


def test_terminal_shows_the_chain_and_whole_paths(tmp_path):
    folder = tmp_path / ("long" * 20)
    digits().write(folder)
    (folder / "model.tflite").write_bytes(b"x")
    printed = _printed(digits(), folder=folder)
    for cell in ("ExportTFLite (int8)", "98.06 %", "15,208", "5,120", "0.0109"):
        assert cell in printed
    assert f"tflite: {folder / 'model.tflite'}\n" in printed
    assert f"report: {folder / 'report.html'}\n" in printed


def test_terminal_takes_names_literally_and_says_when_nothing_was_measured():
    chain = ({"variant": "[red]x[/red]"},)
    assert "[red]x[/red]" in _printed(Report("[bold]", {}, (), chain))
    assert _printed(unmeasured()) == "nothing: nothing was measured.\n"


def test_environment_names_versions_cpu_and_threads():
    found = describe_environment()
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) == {"python", "tfopt", "tensorflow", "keras", "ai-edge-litert", "numpy"}
    assert 1 <= found["threads"] <= os.cpu_count()
    assert found["cpu"].strip()
    assert plain(found) == found


# The browser


CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--dump-dom",
]


def _browse(site: pathlib.Path, scratch: pathlib.Path) -> tuple[str, list[str], str]:
    """The document as Chromium shows report.html, the paths it asked the server for, and its network log."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *arguments):
            asked.append(self.path)

        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        log = scratch / "net.json"
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        command += [f"http://127.0.0.1:{server.server_port}/report.html"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        server.shutdown()
    return shown, asked, log.read_text(encoding="utf-8")


needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no chromium here: apt-get install chromium")


@needs_chromium
@pytest.mark.parametrize(("name", "articles"), [("digits", 4), ("weird", 3)])
def test_browser_shows_the_page_and_asks_for_nothing_else(name, articles, tmp_path):
    report = SAMPLES[name]()
    report.write(tmp_path / "site")
    shown, asked, log = _browse(tmp_path / "site", tmp_path)
    assert asked == ["/report.html"]
    assert '"http://a.b' not in log
    found = _Page(shown)
    assert not {"script", "img"} & set(found.tags)
    assert (found.tags.count("svg"), found.tags.count("article")) == (4, articles)
    assert report.recipe in found.texts
    assert words.summary(report.chain) in found.texts


@needs_chromium
def test_browser_would_load_nothing_even_if_the_page_asked(tmp_path):
    path = digits().write(tmp_path / "site")["html"]
    foreign = (
        '<img src="/same.png"><img src="http://a.b/other.png"><script>document.title = "ran"</script></main>'
    )
    path.write_text(path.read_text(encoding="utf-8").replace("</main>", foreign), encoding="utf-8")
    shown, asked, _ = _browse(tmp_path / "site", tmp_path)
    assert asked == ["/report.html"]
    assert "<title>digits_int8 | tfopt report</title>" in shown
