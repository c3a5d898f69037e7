"""The Markdown files: their Python runs, their commands exist, their links lead somewhere.

The ```python blocks of README.md and of tfopt/**/README.md run in order, those of one file in one module, in a
folder of their own. They find three names there, as a reader has a model and data of their own:

- `model`: a small convolutional classifier, compiled and trained for a few steps;
- `data`: the `tfopt.Data` that it was trained on;
- `ds`: their training batches, a `tf.data.Dataset` of (x, y).

What else a block needs, an HTML comment before it prepares, which is not shown on the page:

    <!-- setup: model.save("old.keras") -->
"""

import importlib
import itertools
import json
import pathlib
import re
import shlex
import sys
import types
import urllib.parse

import absl.flags
import keras
import markdown_it
import pytest

import tfopt
from tests.conftest import small_model

ROOT = pathlib.Path(__file__).parent.parent
MARKDOWN = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "notebooks/*.md", "recipes/**/*.md", "tfopt/**/*.md")
    for path in ROOT.glob(pattern)
)
NOTEBOOKS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("notebooks/*.ipynb"))
SHELLS = ("sh", "bash", "shell", "console")
# Folders of the cards whose code takes seconds; "": the README.
QUICK = ("", "augment", "compat", "data", "load", "measure", "prune", "quantize", "tabular", "tflite", "train")


def tokens_of(text):
    return markdown_it.MarkdownIt("commonmark").enable("table").parse(text)


def python_blocks(text):
    """(first line, source) of each setup comment and each ```python block, in order."""
    for token in tokens_of(text):
        if token.type == "fence" and token.info.split()[:1] == ["python"]:
            yield token.map[0] + 1, token.content
        elif token.type == "html_block" and (found := re.match(r"<!--\s*setup:(.*?)-->", token.content, re.S)):
            yield token.map[0], found[1].strip()


def commands(text):
    """The command lines in shell blocks, indented blocks and code spans, each split into words."""
    spans = [child for token in tokens_of(text) for child in token.children or [] if child.type == "code_inline"]
    blocks = [
        token
        for token in tokens_of(text)
        if token.type == "code_block" or (token.type == "fence" and token.info in SHELLS)
    ]
    for token in [*blocks, *spans]:
        for line in token.content.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|\|?|;", line.removeprefix("$ ")):
                # Other code spans are no commands, and need not have matching quotes.
                if re.search(r"\bmake |-m recipes", command):
                    yield shlex.split(command, comments=True)


def wrong_commands(text, flags_of):
    """What the commands of a document name that does not exist."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for words in commands(text):
        if words[:1] == ["make"]:
            for word in words[1:]:
                if "=" not in word and word not in targets:
                    yield f"the Makefile has no target {word!r}"
        elif "-m" in words and (module := words[words.index("-m") + 1]).startswith("recipes."):
            name = module.removeprefix("recipes.")
            if not (ROOT / "recipes" / f"{name.replace('.', '/')}.py").is_file():
                yield f"there is no recipe {name!r}"
                continue
            for word in words[words.index("-m") + 2 :]:
                flag = word.partition("=")[0]
                if flag not in flags_of(name):
                    yield f"the recipe {name!r} has no flag {flag!r}"


def links(text):
    """The targets of links and pictures, in Markdown and in HTML."""
    for token in tokens_of(text):
        if token.type == "html_block":
            yield from re.findall(r"""(?:href|src)=["']([^"']+)""", token.content)
        for child in token.children or []:
            if child.type in ("link_open", "image"):
                yield child.attrGet("href") or child.attrGet("src")
            elif child.type == "html_inline":
                yield from re.findall(r"""(?:href|src)=["']([^"']+)""", child.content)


def anchors(text):
    """The anchors that GitHub gives to the headings."""
    tokens = tokens_of(text)
    headings = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(text, folder):
    """The relative links that lead to no file, or to no heading of a Markdown file."""
    for link in links(text):
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        path = folder / urllib.parse.unquote(parts.path)
        document = text if not parts.path else path.read_text() if path.suffix == ".md" and path.is_file() else None
        if not path.exists() or (parts.fragment and document is not None and parts.fragment not in anchors(document)):
            yield link


@pytest.fixture(scope="module")
def trained(data):
    keras.utils.set_random_seed(0)
    model = small_model()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    model.fit(data.train, epochs=3, shuffle=False, verbose=0)
    return model


@pytest.fixture
def flags_of(capsys):
    """Gives the flags of a recipe, as its --help lists them, or of a benchmark."""

    def flags(name):
        module = importlib.import_module(f"recipes.{name}")
        if not hasattr(module, "stages"):
            # A benchmark defines its flags itself, or imports those that it shares with another.
            own = [each for each in vars(module).values() if isinstance(each, absl.flags.FlagHolder)]
            return {"--help", *(f"--{holder.name}" for holder in own)}
        capsys.readouterr()
        with pytest.raises(SystemExit, match="^0$"):
            tfopt.run_recipe(module.stages, [name, "--help"])
        return {"--help", *re.findall(r"^  (--\w+)=", capsys.readouterr().out, re.M)}

    return flags


def test_recipes_and_benchmarks_share_one_process(monkeypatch):
    # One of them asks tf.keras for Keras 2.
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    paths = [path for path in (ROOT / "recipes").rglob("*.py") if not path.name.startswith("_")]
    assert len(paths) > 15
    # absl refuses a flag that two modules define.
    for path in paths:
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def run_blocks(text, name, names, monkeypatch):
    """Runs the Python of a document as a module with some names in it; errors tell the document's lines."""
    module = types.ModuleType(re.sub(r"\W", "_", name))
    vars(module).update(names)
    # Dataclasses look their module up.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, source in python_blocks(text):
        exec(compile("\n" * line + source, name, "exec"), vars(module))
    return module


# Keras 3.15 says so in every fit on a dataset without shuffle=False.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (pathlib.Path(name).parent.name not in QUICK))
        for name in MARKDOWN
        if name.endswith(("README.md", "PIPELINES.md", "STRATEGIES.md"))
    ],
)
def test_python_runs(name, trained, data, digits_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(digits_dir))
    model = small_model()
    model.set_weights(trained.get_weights())
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    names = {"model": model, "data": data, "ds": data.train}
    run_blocks((ROOT / name).read_text(encoding="utf-8"), name, names, monkeypatch)


@pytest.mark.parametrize("name", MARKDOWN)
def test_commands_exist(name, flags_of):
    assert list(wrong_commands((ROOT / name).read_text(encoding="utf-8"), flags_of)) == []


@pytest.mark.parametrize("name", [*MARKDOWN, *NOTEBOOKS])
def test_links_lead_somewhere(name):
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    assert list(broken_links(text, path.parent)) == []


# The checks themselves


def test_blocks_run_in_order_with_their_setup_and_errors_tell_the_line(monkeypatch):
    text = "# t\n\n<!-- setup: a = given + 1 -->\n\n```python\nb = a + 1\n```\n\n```python\n\nc = b / 0\n```\n"
    assert [line for line, _ in python_blocks(text)] == [2, 5, 9]
    assert run_blocks(text[: text.index("c =")] + "```", "a.md", {"given": 1}, monkeypatch).b == 3
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks(text, "a.md", {"given": 1}, monkeypatch)
    assert (str(caught.traceback[-1].path), caught.traceback[-1].lineno + 1) == ("a.md", 11)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("make demo  # two minutes", []),
        ("make demo ARGS=--epochs=1 && make test", []),
        (".venv/bin/python -m recipes.digits_int8 --sparsity=0.9 --workdir=/tmp/x --seed=1", []),
        ("python -m recipes.digits_int8 --help", []),
        ("python -m recipes", []),
        ("make dmeo", ["the Makefile has no target 'dmeo'"]),
        ("cd x && make test tests", ["the Makefile has no target 'tests'"]),
        ("$ python -m recipes.digits_int4", ["there is no recipe 'digits_int4'"]),
        ("python -m recipes.digits_int8 --spars=1", ["the recipe 'digits_int8' has no flag '--spars'"]),
        ("python -m recipes.digits_int8 \\\n  --x=1", ["the recipe 'digits_int8' has no flag '--x'"]),
    ],
)
def test_commands_that_do_not_exist_are_found(line, wrong, flags_of):
    assert list(wrong_commands(f"```sh\n{line}\n```", flags_of)) == wrong
    indented = line.replace("\n", "\n    ")
    assert list(wrong_commands(f"text\n\n    {indented}\n", flags_of)) == wrong
    if "\n" not in line:
        assert list(wrong_commands(f"Type `{line}`.", flags_of)) == wrong


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "b.md").write_text("# A `b`, c!\n")
    good = "[1](b.md) [2](b.md#a-b-c) [3](https://a.b/c) [4](#here) ![5](b.md)\n\n# Here\n"
    assert list(broken_links(good, tmp_path)) == []
    bad = '[1](c.md) [2](b.md#d) [3](#there) ![4](p.png) <img src="q.png">\n\n<a href="r.md">x</a>\n'
    assert list(broken_links(bad, tmp_path)) == ["c.md", "b.md#d", "#there", "p.png", "q.png", "r.md"]
