"""Metrics with intervals in the report: their words, tables and the plot of the confusion."""

import re
import xml.etree.ElementTree

import numpy as np
import pytest

from tests.report_samples import Page, classified, crowded, digits, html_of, regressed
from tests.test_report_files import _printed, _rendered
from tfopt.report import markdown, scores
from tfopt.report.confusion import confusion_matrix

FOUND = classified().artefacts["tflite"]["metrics"]


def rows_of(page: str) -> list[list[str]]:
    """The cells of all rows of all tables."""
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in cells]


@pytest.mark.parametrize(
    ("name", "value", "low", "high", "expected"),
    [
        ("accuracy", 0.8412, 0.8291, 0.8523, "84.1 % (82.9 to 85.2)"),
        ("f1", 0.98765, 0.985, 0.9912, "98.77 % (98.50 to 99.12)"),
        ("mape", 1.5, 1.25, 2.0, "150.0 % (125.0 to 200.0)"),
        ("auc", 0.93456, 0.9, 0.96, "0.935 (0.900 to 0.960)"),
        ("pearson", -0.93456, -0.94, -0.935, "-0.9346 (-0.9400 to -0.9350)"),
        ("rmse", 1234.56, 1200.0, 1300.0, "1235 (1200 to 1300)"),
        ("mae", 0.000123456, 0.0001, 0.0002, "0.0001235 (0.0001 to 0.0002)"),
        ("accuracy", 1.0, None, None, "100.0 %"),
    ],
)
def test_a_metric_in_plain_words(name, value, low, high, expected):
    assert scores.figure(name, {"value": value, "low": low, "high": high, "reason": ""}) == expected


@pytest.mark.parametrize("render", [lambda report: html_of("classified"), lambda r: _rendered(markdown.render(r))])
def test_page_and_markdown_show_the_metrics_of_both(render):
    report = classified()
    shown = rows_of(render(report))
    heads = shown.index(["Metric", "Keras model", "File"])
    table = {name: cells for name, *cells in shown[heads + 1 : heads + 6]}
    assert list(table) == ["Accuracy", "Precision", "Recall", "F1", "AUC"]
    for key, column in (("keras", 0), ("tflite", 1)):
        accuracy = FOUND[key]["values"]["accuracy"]
        expected = f"{100 * accuracy['value']:.1f} % ({100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f})"
        assert table["Accuracy"][column] == expected
    text = " ".join(Page(render(report)).texts)
    for part in (
        "In brackets: the 95 % confidence interval, by 100 bootstrap resamples of the 60 test examples.",
        "Precision, recall, F1 and AUC are means over the classes, each of the same weight.",
        "File: 1 class has labels and is never decided for: precision counts as 0.",
        "cat for dog (3 of 20)",
    ):
        assert part in text, part
    assert "Keras model: Precision, recall" not in text


@pytest.mark.parametrize("render", [lambda report: html_of("classified"), lambda r: _rendered(markdown.render(r))])
def test_page_and_markdown_show_the_classes_with_their_names(render):
    text = render(classified())
    shown = rows_of(text)
    assert shown.count(["Class", "Labels", "Precision", "Recall", "F1"]) == 2
    assert shown.count(["cat", "20", "81.0 %", "85.0 %", "82.9 %"]) == 2
    page = Page(text)
    assert not {"script", "b"} & set(page.tags)
    assert sum("never decided for" in each and "<b>x</b>" in each for each in page.texts) == 1


def test_of_many_classes_the_worst_are_shown_and_the_others_told():
    found = crowded().artefacts["tflite"]["metrics"]["keras"]
    shown, told = scores.worst(found)
    assert len(shown) == 20
    f1 = [row["f1"] for row in found["classes"]]
    assert [row["f1"] for row in shown] == sorted(each for each in f1 if each is not None)[:20]
    assert told == (
        "The 20 classes with the lowest F1. The other 80 are left out, 2 of them without labels; report.json has all."
    )
    for text in (html_of("crowded"), _rendered(markdown.render(crowded()))):
        assert told in " ".join(Page(text).texts)
        assert sum(row[0].startswith("class ") for row in rows_of(text)) == 20
    assert scores.worst({"classes": found["classes"][:20]}) == (found["classes"][:20], "")


def test_what_is_not_defined_is_said_with_its_reason():
    said = "not defined: 1 of 50 targets are 0, and a share of 0 is not defined"
    for text in (html_of("regressed"), _rendered(markdown.render(regressed()))):
        assert ["MAPE", said] in rows_of(text)
    assert said in str(regressed())
    doubtful = {"value": 1.0, "low": 1.0, "high": 1.0, "reason": "all resamples give the same value"}
    metrics = {"keras": {"values": {"auc": doubtful}, "notes": [], "classes": [], "confusion": []}}
    assert scores.remarks(metrics) == ["AUC: all resamples give the same value."]


def test_the_file_and_the_terminal_tell_them_in_a_line():
    line = scores.sentences(classified().artefacts)[0]
    assert re.fullmatch(
        r"Keras model: accuracy 83\.3 % \(.*\), precision .*, recall .*, F1 .*, AUC 0\.\d+ \(.*\)\.", line
    )
    assert line in str(classified()).splitlines()
    assert line in _printed(classified())


def test_metrics_are_not_listed_again_among_the_facts_of_the_file():
    assert html_of("classified").count("resamples of the") == 1
    assert markdown.render(classified()).count("confusion") == 0
    assert "resamples" not in html_of("digits")


def test_a_report_without_metrics_is_as_before():
    assert scores.measured(digits().artefacts) == {}
    assert scores.sentences({"note": "text", "tflite": {"metrics": {}}}) == []


def _cells(svg: str, colour: str) -> list[tuple[float, float, float]]:
    """Left edge, upper edge and opacity of each square of a colour."""
    found = []
    for path, opacity in re.findall(rf'<path d="([^"]*)"[^>]*style="fill: var\(--{colour}[^"]*opacity: ([\d.]+)', svg):
        for square in re.findall(r"M ([^z]*)z", path):
            corners = [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.]+) (-?[\d.]+)", square)]
            found.append((min(x for x, _ in corners), min(y for _, y in corners), float(opacity)))
    return sorted(found)


def test_cells_of_the_confusion_lie_where_their_classes_are():
    svg = confusion_matrix([[90, 10, 0], [0, 50, 50], [1, 0, 99]], ["a", "b", "c"], "confusion")
    right, wrong = _cells(svg, "blue"), _cells(svg, "orange")
    assert len(right) == 3
    assert [y for _, y, _ in right] == sorted(y for _, y, _ in right)
    xs, ys = [x for x, _, _ in right], [y for _, y, _ in right]
    places = {
        (min(range(3), key=lambda i: abs(ys[i] - y)), min(range(3), key=lambda i: abs(xs[i] - x))): depth
        for x, y, depth in wrong
    }
    assert set(places) == {(0, 1), (1, 2), (2, 0)}
    # The larger the share of the row, the deeper.
    assert places[2, 0] < places[0, 1] < places[1, 2] < max(depth for _, _, depth in right)
    texts = ["".join(each.itertext()) for each in xml.etree.ElementTree.fromstring(svg).iter() if "text" in each.tag]
    assert {"90", "10", "50", "1", "99", "true", "decided", "a", "b", "c"} <= set(texts)
    assert "0" not in texts


@pytest.mark.parametrize("count", [2, 15, 16, 100])
def test_the_plot_stays_readable_whatever_the_number_of_classes(count):
    confusion = np.eye(count, dtype=int) * 5 + 1
    svg = confusion_matrix(confusion.tolist(), [f"class {number}" for number in range(count)], "confusion")
    assert len(_cells(svg, "blue")) + len(_cells(svg, "orange")) == count**2
    sizes = [float(each) for each in re.findall(r"font-size: ([\d.]+)px", svg)]
    assert min(sizes) >= 7
    told = re.findall(r">class \d+<", svg)
    assert len(told) == 2 * {2: 2, 15: 15, 16: 16, 100: 25}[count]
    assert svg.count(">6<") == (count if count <= 15 else 0)
    assert svg.count("<path") < 400
    assert len(svg) < 1_500_000
    assert svg == confusion_matrix(confusion.tolist(), [f"class {number}" for number in range(count)], "confusion")


def test_nothing_to_draw_gives_no_plot():
    assert confusion_matrix([], [], "confusion") == ""
