"""Recipes on the command line: flags are read off the signature of a recipe's `stages` function."""

import contextlib
import inspect
import pathlib
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import flags

from tfopt.chain import run
from tfopt.report import print_summary
from tfopt.stage import Stage, Work
from tfopt.workers.start import Start, facts_of, own_command, together
from tfopt.workers.supervise import LOST_PEER, supervise

Stages = Callable[..., Sequence[Stage]]

_DEFINE: Mapping[type, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}
ENGINES = ("tfopt", "tfmot")
# What a worker sees of the death of another one.
_LOSSES = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


def run_recipe(stages: Stages, argv: Sequence[str] | None = None) -> None:
    """Runs a recipe from the command line; the last line of every recipe module.

    Each parameter of `stages` becomes a flag: name, type and default from the signature, help from the "Args:"
    part of its docstring. `--workdir` and `--seed` come with every recipe, and flags that spread it over processes and
    hosts (tfopt/workers/README.md). Does not return: exits with 0, with 1 after an error, with 2 for flags that cannot
    be read or contradict each other, or with LOST_PEER.

    Args:
      stages: the recipe: parameters with defaults of type int, float, bool or str; returns a list of stages.
      argv: the program's name and its arguments; None: those of this process.

    Raises:
      TypeError: a parameter without a default, or of another type.
    """
    name = recipe_name(stages)
    values = flags.FlagValues()
    _define_flags(stages, values, name)
    arguments = list(sys.argv if argv is None else argv)
    program = arguments[0]
    if any(argument in ("--help", "-help", "-h", "--helpfull") for argument in arguments[1:]):
        print(_usage(stages, values, program))  # noqa: T201
        raise SystemExit(0)
    try:
        rest = values(arguments)
        if rest[1:]:
            raise flags.Error(f"unexpected arguments: {' '.join(rest[1:])}; flags are written --name=value")
        if values.engine not in ENGINES:
            raise flags.Error(f"--engine must be {' or '.join(ENGINES)}, received {values.engine!r}")
        start = Start(**{key: values[key].value for key in inspect.signature(Start).parameters})
    except (flags.Error, ValueError) as error:
        # absl's own message for an unknown flag names the nearest ones.
        print(f"{error}\n(--help lists the flags)", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from error
    raise SystemExit(_run(stages, name, values, start, argv))


def _run(stages: Stages, name: str, values: flags.FlagValues, start: Start, argv: Sequence[str] | None) -> int:
    parameters = {key: values[key].value for key in inspect.signature(stages).parameters}
    workers = None
    try:
        team = start.team()
        if team is not None:
            return supervise(own_command(argv), team, restarts=start.restarts)
        workers = start.own()
        with contextlib.ExitStack() as stack:
            if workers is not None:
                values.strategy = "multi_worker"
                facts = facts_of(name, stages, values.flag_values_dict())
                stack.enter_context(together(workers, facts, _LOSSES))
            work = run(
                _on_engine(stages(**parameters), values.engine),
                Work(workdir=values.workdir, seed=values.seed, strategy=values.strategy),
                recipe=name,
            )
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        if values.traceback:
            raise
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"error: {error}{notes}\n(--traceback shows where)", file=sys.stderr)  # noqa: T201
        return 1
    except _LOSSES as error:
        if workers is None or len(workers.addresses) == 1:
            raise
        print(f"another worker was lost: {error}", file=sys.stderr)  # noqa: T201
        return LOST_PEER
    if work.peers.is_chief:
        print_summary(work.report, folder=work.workdir)
    return 0


def _on_engine(stages: Sequence[Stage], engine: str) -> Sequence[Stage]:
    """The stages of a recipe with those of an engine in their places."""
    if engine == ENGINES[0]:
        return stages
    # Not before it is asked for: it needs tf_keras.
    from tfopt.tfmot import on_tfmot

    return on_tfmot(stages)


def recipe_name(stages: Stages) -> str:
    """The name of a recipe: that of the file it is in."""
    return pathlib.Path(inspect.getfile(stages)).stem


def _define_flags(stages: Stages, values: flags.FlagValues, name: str) -> None:
    fixed = [*inspect.signature(Start).parameters, "engine"]
    taken = [key for key in fixed if key in inspect.signature(stages).parameters]
    if taken:
        raise TypeError(f"{name}: the flag --{taken[0]} means the same in every recipe: rename the parameter")
    _add_flags(stages, values, name)
    _add_flags(Start, values, name)
    for key, default, text in (
        ("workdir", f"runs/{name}", "Folder for results; a run that was stopped continues there."),
        ("seed", 0, "All randomness follows from it."),
        ("engine", ENGINES[0], f"Who prunes, clusters and quantizes: {' or '.join(ENGINES)} (tfopt/tfmot/README.md)."),
        ("traceback", False, "Show the whole traceback of an error."),
    ):
        if key not in values:
            _DEFINE[type(default)](key, default, text, flag_values=values)


def _add_flags(function: Callable[..., Any], values: flags.FlagValues, name: str) -> None:
    """A flag for each parameter of a function or a dataclass."""
    helps = _argument_docs(function)
    types_by_name = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is parameter.empty:
            raise TypeError(f"{name}: the parameter {parameter.name!r} of stages(...) needs a default")
        kind = _plain_type(types_by_name.get(parameter.name, type(parameter.default)))
        if kind not in _DEFINE:
            raise TypeError(
                f"{name}: the parameter {parameter.name!r} of stages(...) must be an int, float, bool or str to be "
                f"a flag, it is {kind}"
            )
        text = helps.get(parameter.name, "")
        _DEFINE[kind](parameter.name, parameter.default, text, flag_values=values)


def _plain_type(hint: Any) -> Any:
    """The type in `T | None`, else the hint itself."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [each for each in typing.get_args(hint) if each is not types.NoneType]
        return inner[0] if len(inner) == 1 else hint
    return hint


def _argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """The "Args:" part of a docstring, by argument."""
    docs: dict[str, str] = {}
    lines = inspect.cleandoc(function.__doc__ or "").partition("Args:\n")[2].splitlines()
    name = ""
    for line in lines:
        if not line.startswith("  "):
            break
        head, colon, text = line.strip().partition(":")
        if line[2] != " " and colon:
            name = head
            docs[name] = text.strip()
        elif name:
            docs[name] += f" {line.strip()}"
    return docs


def _usage(stages: Stages, values: flags.FlagValues, program: str) -> str:
    module = inspect.getmodule(stages)
    about = inspect.cleandoc((module.__doc__ if module else None) or stages.__doc__ or "")
    lines = [about, "", f"usage: {program} [--flag=value ...]", ""]
    for key in values:
        flag = values[key]
        lines.append(f"  --{key}={flag.default!r}")
        lines += textwrap.wrap(flag.help, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
