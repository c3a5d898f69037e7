"""Any recipe with many settings: searches the `SPACES` that the recipe declares, with Optuna.

    python -m recipes.tune --recipe=digits_int8 --trials=20 --objectives=val_accuracy,gzip_bytes --set=prune_epochs=20

Kill it whenever you like and start it again. Workdir: search.html with all trials, one folder a trial in trials/.
"""

import ast
import functools
import importlib
import pathlib
import sys
from typing import Any

from absl import flags

from tfopt import tune
from tfopt.config import require, source

_FLAGS = flags.FlagValues()
_OWN: dict[str, Any] = {"flag_values": _FLAGS}
_RECIPE = flags.DEFINE_string("recipe", "digits_int8", "A recipe's name, or a file such as my_recipe.py.", **_OWN)
_OBJECTIVES = flags.DEFINE_list("objectives", ["val_accuracy"], "Names of numbers in the report.", **_OWN)
_TRIALS = flags.DEFINE_integer("trials", 20, "How many in all.", **_OWN)
_JOBS = flags.DEFINE_integer("jobs", 1, "How many at once, in processes of their own.", **_OWN)
_SET = flags.DEFINE_multi_string("set", [], "A parameter that stays the same, as in --set=epochs=3.", **_OWN)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results; by default runs/tune_<recipe>.", **_OWN)
_SEED = flags.DEFINE_integer("seed", 0, "What is tried follows from it.", **_OWN)


def main(arguments: list[str]) -> int:
    """Searches; returns the exit code."""
    if "--help" in arguments[1:]:
        print(f"{__doc__}\n{_FLAGS.main_module_help()}")
        return 0
    try:
        rest = _FLAGS(arguments)[1:]
        require(not rest, f"unexpected arguments: {' '.join(rest)}; flags are written --name=value")
        fixed = dict(map(_fixed, _SET.value))
    except (flags.Error, ValueError) as error:
        print(f"{error}\n(--help lists the flags)", file=sys.stderr)
        return 2
    try:
        recipe = _load(_RECIPE.value)
        spaces = getattr(recipe, "SPACES", {})
        require(bool(spaces), f"the recipe {_RECIPE.value!r} declares no SPACES: see recipes/digits_int8.py")
        found = tune.search(
            functools.partial(recipe.stages, **fixed),
            {name: space for name, space in spaces.items() if name not in fixed},
            _OBJECTIVES.value,
            _TRIALS.value,
            workdir=_WORKDIR.value or f"runs/tune_{recipe.__name__.rpartition('.')[2]}",
            jobs=_JOBS.value,
            seed=_SEED.value,
        )
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for trial in found.front:
        settings = ", ".join(f"{name}={source(value)}" for name, value in trial.parameters.items())
        values = ", ".join(f"{name} {value:.6g}" for name, value in trial.values.items())
        print(f"{values}: {settings}, {trial.folder}")
    print(f"report: {found.workdir / 'search.html'}")
    return 0


def _load(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(f"recipes.{name}")
    path = pathlib.Path(name).resolve()
    # Other processes find it there, too.
    sys.path.insert(0, str(path.parent))
    return importlib.import_module(path.stem)


def _fixed(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    require(bool(equals), f"--set is written --set=name=value, received {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


if __name__ == "__main__":
    sys.exit(main(sys.argv))
