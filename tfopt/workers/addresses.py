"""`Workers`: the addresses of all workers of a training and which of them this process is."""

import dataclasses
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence

from tfopt.config import Config, require
from tfopt.workers.slurm import slurm_workers


@dataclasses.dataclass(frozen=True, repr=False)
class Workers(Config):
    """The workers of a training, as one of them sees them.

    Args:
      addresses: "host:port" of each worker, all different; the first one is the chief.
      index: which of them this process is, from 0.

    Raises:
      ValueError: there is none, two are the same, one is malformed, or the index is none of theirs.

    >>> Workers(("a:1", "b:2"), 1).config()
    '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'
    """

    addresses: tuple[str, ...]
    index: int

    def __post_init__(self) -> None:
        require(len(self.addresses) > 0, "there are no workers: give at least one address, such as host:5000")
        for address in self.addresses:
            split_address(address)
        known: dict[str, int] = {}
        for index, address in enumerate(self.addresses):
            other = known.setdefault(address.lower(), index)
            require(
                other == index,
                f"the workers {other} and {index} have the same address {address}: give each a port of its own",
            )
        require(
            isinstance(self.index, int) and 0 <= self.index < len(self.addresses),
            f"the index of a worker must be from 0 to {len(self.addresses) - 1}, since there are "
            f"{len(self.addresses)} ({', '.join(self.addresses)}); received {self.index!r}",
        )

    @property
    def chief(self) -> bool:
        """Whether this is the worker that writes backups and reports."""
        return self.index == 0

    @property
    def address(self) -> str:
        """That of this worker."""
        return self.addresses[self.index]

    def name(self, index: int) -> str:
        """What messages call a worker.

        >>> Workers(("a:1", "b:2"), 0).name(1)
        'worker 1 (b:2)'
        """
        return f"worker {index} ({self.addresses[index]})"

    def config(self) -> str:
        """The text of TF_CONFIG, from which TensorFlow learns the same."""
        return json.dumps(
            {"cluster": {"worker": list(self.addresses)}, "task": {"type": "worker", "index": self.index}}
        )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of an address.

    >>> split_address("gpu1:5000"), split_address("[::1]:5000")
    (('gpu1', 5000), ('::1', 5000))
    >>> split_address("gpu1")
    Traceback (most recent call last):
    ValueError: the address of a worker must be host:port, such as gpu1:5000; received 'gpu1'
    """
    found = (
        re.fullmatch(r"([^\s:/\[\],]+|\[[0-9a-fA-F:.%\w]+\]):(\d{1,5})", address) if isinstance(address, str) else None
    )
    require(
        found is not None and 0 < int(found[2]) < 65536,
        f"the address of a worker must be host:port, such as gpu1:5000; received {address!r}",
    )
    assert found is not None
    return found[1].strip("[]"), int(found[2])


def find_workers(
    workers: str | Sequence[str] | None = None,
    index: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Workers | None:
    """Who the workers are: from the argument, else from TF_CONFIG, else from SLURM; None where nothing says so.

    Args:
      workers: "host:port" of each, as a sequence or separated by commas.
      index: which of them this process is; None: the one whose host this is.
      environ: the environment.

    Raises:
      ValueError: what was found cannot be right, or does not tell which worker this is.

    >>> find_workers("a:1,b:2", 0, {})
    Workers(addresses=('a:1', 'b:2'), index=0)
    """
    if workers:
        addresses = tuple(map(str.strip, workers.split(",")) if isinstance(workers, str) else workers)
        # Checks the addresses before a host is looked for.
        Workers(addresses, 0)
        return Workers(addresses, _own_index(addresses) if index is None else index)
    require(index is None, f"a worker_index ({index}) needs workers: give the addresses of all of them")
    text = environ.get("TF_CONFIG", "").strip()
    if text:
        return _from_tf_config(text)
    found = slurm_workers(environ)
    return Workers(*found) if found else None


def _from_tf_config(text: str) -> Workers:
    example = '{"cluster": {"worker": ["a:5000", "b:5000"]}, "task": {"type": "worker", "index": 0}}'

    def check(condition: bool, problem: str) -> None:
        require(condition, f"TF_CONFIG {problem}: received {text!r}, expected such as {example}; or unset it")

    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"TF_CONFIG is not JSON ({error}): received {text!r}, expected such as {example}") from error
    check(isinstance(config, dict), "is no JSON object")
    cluster, task = config.get("cluster"), config.get("task")
    check(isinstance(cluster, dict) and bool(cluster), 'has no "cluster" with the addresses of the workers')
    check(isinstance(task, dict), 'has no "task" with "type" and "index"')
    others = sorted(set(cluster) - {"chief", "worker"})
    check(
        not others,
        f"names {', '.join(others)}; only workers that compute the same step (worker, and one chief) are supported, "
        "no parameter servers and no evaluators",
    )
    for kind, addresses in cluster.items():
        valid = isinstance(addresses, list) and all(isinstance(each, str) for each in addresses)
        check(valid, f'must have a list of addresses as "{kind}"')
    chiefs = cluster.get("chief", [])
    check(len(chiefs) <= 1, f"has {len(chiefs)} chiefs, not one")
    kind, index = task.get("type"), task.get("index")
    check(kind in cluster, f'has a "task" of type {kind!r}, which the cluster does not have')
    # Some systems write numbers as text.
    index = int(index) if isinstance(index, str) and index.isdigit() else index
    count = len(cluster[kind])
    check(
        isinstance(index, int) and not isinstance(index, bool) and 0 <= index < count,
        f'has a "task" of index {index!r}, and {count} of type {kind!r}',
    )
    return Workers((*chiefs, *cluster.get("worker", [])), index + (len(chiefs) if kind == "worker" else 0))


def _own_index(addresses: Sequence[str]) -> int:
    """Which of the addresses is on this host."""
    own = [index for index, address in enumerate(addresses) if _is_own(split_address(address)[0])]
    name = socket.gethostname()
    if not own:
        raise ValueError(
            f"none of the workers ({', '.join(addresses)}) is this host ({name}): say which one it is with "
            f"--worker_index=0 to {len(addresses) - 1}, or write its address as the others reach it"
        )
    if len(own) > 1:
        raise ValueError(
            f"several of the workers ({', '.join(addresses[index] for index in own)}) are this host ({name}): say "
            f"which one this process is with --worker_index={' or '.join(map(str, own))}"
        )
    return own[0]


def _is_own(host: str) -> bool:
    """Whether a host's name or address is one of this machine: only to its own can a socket be bound."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        # A name that nobody here knows is not the own one.
        return False
    for family, kind, protocol, _, where in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(where)
            except OSError:
                continue
            return True
    return False
