"""The workers of a SLURM step, from its environment variables."""

import itertools
import re
from collections.abc import Mapping

from tfopt.config import require


def slurm_workers(environ: Mapping[str, str]) -> tuple[tuple[str, ...], int] | None:
    """The addresses of the tasks of a step, and which one this is; None outside of steps with several tasks.

    In a batch script itself, SLURM sets the variables of the first task as well; only what `srun` starts is a task.

    >>> slurm_workers(
    ...     {"SLURM_STEP_NODELIST": "gpu[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_ID": "3"}
    ... )
    (('gpu1:10192', 'gpu2:10192'), 1)
    """
    hosts_text = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    in_step = "SLURM_STEP_NODELIST" in environ or "SLURM_STEP_ID" in environ
    if not hosts_text or not in_step or "SLURM_PROCID" not in environ:
        return None
    count = _number(environ, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS", 1)
    if count == 1:
        return None
    hosts = expand_hosts(hosts_text)
    per_node = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    tasks = expand_counts(per_node) if per_node else _shares(count, len(hosts))
    require(
        len(tasks) == len(hosts) and sum(tasks) == count,
        f"SLURM says {count} tasks, {per_node!r} for the hosts {hosts_text!r}, which does not fit together: give the "
        "addresses with --workers",
    )
    rank = _number(environ, "SLURM_PROCID")
    places = [(node, local) for node, number in enumerate(tasks) for local in range(number)]
    require(0 <= rank < count, f"SLURM_PROCID is {rank}, and there are {count} tasks")
    node = _number(environ, "SLURM_NODEID", places[rank][0])
    require(
        node == places[rank][0],
        f"SLURM put task {rank} on host {node}, not on host {places[rank][0]}: run srun with --distribution=block",
    )
    # Below the ports that systems give away by themselves, and other ones for the next jobs on the same hosts.
    base = 10_000 + 64 * (_number(environ, "SLURM_JOB_ID") % 312)
    return tuple(f"{hosts[node]}:{base + local}" for node, local in places), rank


def expand_hosts(text: str) -> list[str]:
    """The hosts in SLURM's short notation.

    >>> expand_hosts("gpu[01-03,7],login")
    ['gpu01', 'gpu02', 'gpu03', 'gpu7', 'login']
    >>> expand_hosts("r[1-2]n[8-9]-ib")
    ['r1n8-ib', 'r1n9-ib', 'r2n8-ib', 'r2n9-ib']
    """
    well_formed = re.fullmatch(r"([\w.-]|\[[\d,-]+\]|,(?!,|$))+", text) and text[0] != ","
    require(bool(well_formed), f"a list of hosts must be such as gpu[01-03,7],login; received {text!r}")
    hosts = []
    for each in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        # Odd places are what was in brackets.
        parts = re.split(r"\[(.*?)\]", each)
        choices = [_numbers(part, text) if place % 2 else [part] for place, part in enumerate(parts)]
        hosts += ["".join(chosen) for chosen in itertools.product(*choices)]
    return hosts


def _numbers(ranges: str, text: str) -> list[str]:
    """The numbers in "01-03,7", with their zeros in front."""
    numbers = []
    for each in ranges.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", each)
        first, last = (found[1], found[2] or found[1]) if found else ("1", "0")
        require(
            int(first) <= int(last),
            f"a list of hosts must have numbers or ranges in its brackets, not {each!r}; received {text!r}",
        )
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def expand_counts(text: str) -> list[int]:
    """The tasks of each host in SLURM's short notation.

    >>> expand_counts("2(x3),1")
    [2, 2, 2, 1]
    """
    counts = []
    for each in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", each)
        require(found is not None, f"tasks per host must be such as 2(x3),1; received {text!r}")
        assert found is not None
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _shares(tasks: int, hosts: int) -> list[int]:
    """Tasks for each host as SLURM's block distribution has them by default."""
    return [tasks // hosts + (host < tasks % hosts) for host in range(hosts)]


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environ.get(name)
    if value is None and default is not None:
        return default
    require(value is not None and value.isdigit(), f"{name} must be a whole number, received {value!r}")
    assert value is not None
    return int(value)
