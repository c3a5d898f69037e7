"""Recipes on the command line: flags from signatures, refusals, exit codes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import tfopt
from tfopt.launch import recipe_name, run_recipe

ROOT = pathlib.Path(__file__).parent.parent


def launch(stages, *arguments, workdir=None):
    """The exit code of a recipe."""
    where = [f"--workdir={workdir}"] if workdir else []
    with pytest.raises(SystemExit) as exit_info:
        run_recipe(stages, ["recipe", *arguments, *where])
    return exit_info.value.code


class Received(Exception):
    """Ends a recipe when its parameters are known."""


def parameters(*arguments):
    def stages(
        epochs: int = 3,
        rate: float = 0.5,
        augment: bool = False,
        name: str = "x",
        limit: int | None = None,
        note: str | None = None,
    ):
        raise Received(epochs, rate, augment, name, limit, note)

    with pytest.raises(Received) as received:
        run_recipe(stages, ["recipe", *arguments])
    return received.value.args


def test_flags_follow_the_signature():
    assert parameters() == (3, 0.5, False, "x", None, None)
    given = parameters("--epochs=7", "--rate=1e-3", "--augment", "--name=a b", "--limit=4", "--note=")
    assert given == (7, 1e-3, True, "a b", 4, "")
    assert parameters("--noaugment", "--epochs", "2")[:3] == (2, 0.5, False)
    assert parameters("--rate=2")[1] == 2.0
    assert parameters("--augment=true")[2] is True


def documented(epochs: int = 3, rate: float = 0.5, precision: str = "float32", data_dir: str | None = None):
    """The chain.

    Args:
      epochs: passes over the data.
      rate: how fast it learns: a number
        above 0.
      data_dir: folder of the sets.

    Returns:
      Nothing.
    """
    return []


def test_help_shows_each_parameter_with_default_and_text(capsys):
    assert launch(documented, "--help") == 0
    out = capsys.readouterr().out
    words = " ".join(out.split())
    assert words.startswith("Recipes on the command line: flags from signatures")
    assert "usage: recipe [--flag=value ...]" in words
    for each in (
        "--epochs=3 passes over the data.",
        "--rate=0.5 how fast it learns: a number above 0.",
        "--precision='float32'",
        "--data_dir=None folder of the sets.",
        "--seed=0 All randomness follows from it.",
        "--workdir='runs/test_launch' Folder for results",
        "--traceback=False",
    ):
        assert each in words
    assert "Nothing." not in out
    assert launch(documented, "--epochs=2", "-h") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epcohs=3"], r"Unknown command line flag 'epcohs'. Did you mean: epochs"),
        (["--data-dir=x"], r"Unknown command line flag 'data-dir'. Did you mean: data_dir"),
        (["3"], "unexpected arguments: 3; flags are written --name=value"),
        (["--epochs=3", "rate=2"], "unexpected arguments: rate=2"),
        (["--epochs=three"], "flag --epochs=three"),
        (["--rate=fast"], "flag --rate=fast"),
        (["--epochs=1.5"], "flag --epochs=1.5"),
        (["--epochs"], "Missing value for flag --epochs"),
    ],
)
def test_arguments_that_cannot_be_read_exit_with_2(arguments, message, capsys):
    assert launch(documented, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith("(--help lists the flags)\n")
    assert "Traceback" not in error


def test_parameters_that_cannot_be_flags_are_a_type_error():
    def bare(epochs: int):
        return []

    def structured(sizes: tuple[int, ...] = (1, 2)):
        return []

    def undecided(size: int | str = 1):
        return []

    def untyped(size=None):
        return []

    with pytest.raises(TypeError, match="test_launch: the parameter 'epochs' of stages.* needs a default"):
        run_recipe(bare, ["recipe"])
    for stages, name in ((structured, "sizes"), (undecided, "size"), (untyped, "size")):
        with pytest.raises(TypeError, match=f"'{name}' of stages.* must be an int, float, bool or str to be a flag"):
            run_recipe(stages, ["recipe"])


def test_types_are_read_off_defaults_too():
    def stages(epochs=3, rate=0.5):
        raise Received(epochs, rate)

    with pytest.raises(Received) as received:
        run_recipe(stages, ["recipe", "--epochs=4", "--rate=1"])
    assert received.value.args == (4, 1.0)


def wrong(sparsity: float = 0.5):
    return [tfopt.Prune(sparsity)]


def test_an_error_in_a_stage_is_told_without_a_traceback(tmp_path, capsys):
    assert launch(wrong, workdir=tmp_path / "a") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: there is no model yet: pass Work(model=...)")
    assert "in stage 1 of 1: Prune(final_sparsity=0.5)" in error
    assert error.endswith("(--traceback shows where)\n")
    assert "Traceback" not in error
    assert launch(wrong, "--sparsity=80", workdir=tmp_path / "b") == 1
    assert "final_sparsity must be a fraction in [0, 1), received 80.0; for 80 % write 0.8" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no model yet"):
        run_recipe(wrong, ["recipe", f"--workdir={tmp_path / 'c'}", "--traceback"])


def test_an_unwritable_workdir_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert launch(wrong, workdir=tmp_path / "file" / "run") == 1
    assert f"error: [Errno 20] cannot write to the workdir {tmp_path / 'file' / 'run'}" in capsys.readouterr().err


def test_a_recipe_may_have_a_workdir_and_a_seed_of_its_own(tmp_path, capsys):
    seen = []

    def stages(workdir: str = str(tmp_path / "mine"), seed: int = 5):
        """Its own.

        Args:
          workdir: here.
          seed: mine.
        """
        seen.append((workdir, seed))
        return [tfopt.Prune()]

    assert launch(stages) == 1
    assert (tmp_path / "mine" / "run.json").exists()
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["seed"] == 5
    assert launch(stages, "--seed=6", workdir=tmp_path / "other") == 1
    assert json.loads((tmp_path / "other" / "run.json").read_text())["seed"] == 6
    assert seen == [(str(tmp_path / "mine"), 5), (str(tmp_path / "other"), 6)]
    capsys.readouterr()
    launch(stages, "--help")
    words = " ".join(capsys.readouterr().out.split())
    assert "--seed=5 mine." in words
    assert words.count("--workdir=") == 1


def test_recipes_are_named_after_their_file():
    assert recipe_name(documented) == "test_launch"


def python(*arguments, cwd=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_recipes_are_listed():
    done = python("-m", "recipes")
    assert done.returncode == 0, done.stderr
    names = {path.stem for path in (ROOT / "recipes").glob("[!_]*.py")}
    assert {"digits_int8", "cifar10_resnet8"} <= names
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines() if line.startswith("python -m")]
    assert {line[2].removeprefix("recipes.") for line in lines} == names
    assert all(len(line[3]) > 20 for line in lines)


OWN_RECIPE = '''"""A model of my own to an int8 file."""

import keras
import tfopt


def tiny(shape, classes):
    layers = [keras.layers.Flatten(), keras.layers.Dense(classes, activation="softmax")]
    return keras.Sequential([keras.Input(shape), *layers])


def stages(data_dir: str = "", epochs: int = 3):
    return [
        tfopt.LoadTFDS("digits", data_dir),
        tfopt.Build(tiny),
        tfopt.Train(epochs, tfopt.Fit(0.02)),
        tfopt.ExportTFLite(),
        tfopt.Benchmark(runs=3, warmup=1),
    ]


if __name__ == "__main__":
    tfopt.run_recipe(stages)
'''


def test_a_users_own_recipe_runs_from_anywhere(tmp_path, digits_dir):
    (tmp_path / "my_recipe.py").write_text(OWN_RECIPE)
    done = python("my_recipe.py", "--epochs=1", f"--data_dir={digits_dir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "my_recipe"
    report = json.loads((run / "report.json").read_text())
    assert report["recipe"] == "my_recipe"
    assert [each["name"] for each in report["stages"]] == ["LoadTFDS", "Build", "Train", "ExportTFLite", "Benchmark"]
    assert "Train(epochs=1, fit=Fit(learning_rate=0.02))" in report["stages"][2]["repr"]
    assert "<html" in (run / "report.html").read_text()
    file = run / "04-ExportTFLite" / "model.tflite"
    assert file.stat().st_size == report["artefacts"]["tflite"]["bytes"]
    for each in ("my_recipe", "accuracy", "gzip bytes", "latency, ms", f"{file.stat().st_size:,}"):
        assert each in done.stdout
    assert f"tflite: {file}" in done.stdout
    assert f"report: {run / 'report.html'}" in done.stdout
