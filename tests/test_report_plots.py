"""The report's plots."""

import itertools
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from tests.report_samples import digits, html_of, large, unmeasured
from tfopt.report import Report, plots

ROOT = pathlib.Path(__file__).parents[1]


def _texts(svg: str) -> list[str]:
    return [
        "".join(each.itertext()) for each in xml.etree.ElementTree.fromstring(svg).iter() if each.tag.endswith("text")
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
    assert "Left out, without an accuracy: variant 3." in html_of("large")


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
    stub = "import sys, types; t = types.ModuleType('tfopt'); t.__path__ = ['tfopt']; sys.modules['tfopt'] = t;"
    done = subprocess.run([sys.executable, "-c", stub + script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
