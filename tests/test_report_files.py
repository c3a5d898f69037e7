"""What the report writes: three files, a notebook's fragment and a table in the terminal."""

import html
import html.parser
import io
import json
import re

import markdown_it
import pytest
import rich.console

from tests.report_samples import SAMPLES, WEIRD, Page, digits, html_of, unmeasured, weird
from tfopt.report import Report, markdown, print_summary, words


@pytest.fixture(params=SAMPLES)
def sample(request) -> Report:
    return SAMPLES[request.param]()


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


@pytest.mark.parametrize("name", SAMPLES)
def test_page_is_well_formed_and_needs_nothing_from_outside(name):
    text = html_of(name)
    found = Page(text)
    assert not {"script", "img", "iframe", "object", "embed", "image", "base", "form"} & set(found.tags)
    references = [value for name, value in found.attributes if name in ("href", "src", "xlink:href", "srcset")]
    assert all(each.startswith(("data:,", "#", "./")) for each in references), references
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("digits", 4),
        ("one_row", 3),
        ("unmeasured", 0),
        ("weird", 4),
        ("large", 4),
        ("classified", 2),
        ("crowded", 1),
        ("regressed", 0),
    ],
)
def test_page_draws_what_was_measured(name, drawn):
    assert Page(html_of(name)).tags.count("svg") == drawn


def test_page_shows_names_as_they_are():
    texts = Page(html_of("weird")).texts
    assert WEIRD in texts
    assert sum(WEIRD in each for each in texts) >= 12


def test_page_tells_the_headline_the_reasons_and_the_verdicts():
    text = " ".join(Page(html_of("digits")).texts)
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
    assert "\u2717 broken" in " ".join(Page(html_of("large")).texts)


def test_notebook_fragment_is_summary_and_table():
    found = Page(digits()._repr_html_())
    assert found.tags.count("tr") == 4
    assert "html" not in found.tags
    assert words.summary(digits().chain) in "".join(found.texts)


def _rendered(text: str) -> str:
    return markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_markdown_tables_have_all_rows_and_columns():
    rendered = _rendered(markdown.render(digits()))
    tables = re.findall(r"<table>.*?</table>", rendered, re.DOTALL)
    assert tables[0].count("<tr>") == 4
    assert tables[0].count("<td>") == 3 * 10
    assert words.steps(digits().chain)[0] in html.unescape(rendered)
    assert "first layer: 72 weights, too few to gain from pruning" in rendered


def test_markdown_shows_names_as_they_are():
    rendered = _rendered(markdown.render(weird()))
    found = Page(rendered)
    assert not {"script", "b", "em", "a"} & set(found.tags)
    line = " ".join(WEIRD.split())
    assert found.texts.count(line) >= 3
    assert f"<h1>{html.escape(line, quote=True)}</h1>".replace("&#x27;", "'") in rendered
    row = re.search(r"<tr>\s*<td>.*?</tr>", rendered, re.DOTALL)[0]
    assert row.count("<td>") == 10


@pytest.mark.parametrize(
    "name", ["a`b", "``", "- x", "1. x", "# x", "a\\|b", "&lt;", "__init__", "~~x~~", "[x](y)", "= x"]
)
def test_markdown_escapes(name):
    assert Page(_rendered(markdown.text(name))).texts[0] == name
    assert name in "".join(Page(_rendered(f"| a |\n| --- |\n| {markdown.text(name)} |")).texts)
    assert name in "".join(Page(_rendered(f"| a |\n| --- |\n| {markdown.code(name)} |")).texts)


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
