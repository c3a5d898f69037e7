"""What an all-reduce costs, by bytes, latency and bandwidth, and a training step with it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tfopt.config import Config, require


@dataclasses.dataclass(frozen=True, repr=False)
class Network(Config):
    """What a message from one worker to another costs: latency + bytes / bandwidth.

    Args:
      latency: seconds that a message of no size takes, above 0.
      bandwidth: bytes a second, above 0.

    Raises:
      ValueError: for a value outside these ranges.

    >>> Network(latency=5e-05, bandwidth=1e9)
    Network(latency=5e-05, bandwidth=1000000000.0)
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        for name in ("latency", "bandwidth"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be a finite number above 0, received {value!r}")


@dataclasses.dataclass(frozen=True, repr=False)
class Point(Config):
    """An all-reduce that was timed.

    Args:
      size: bytes that each worker has, at least 0.
      workers: how many, at least 2.
      seconds: that it took, above 0.

    Raises:
      ValueError: for a value outside these ranges.
    """

    size: float
    workers: int
    seconds: float

    def __post_init__(self) -> None:
        require(self.size >= 0, f"size must be at least 0 bytes, received {self.size!r}")
        require(self.workers >= 2, f"workers must be at least 2 to speak to each other, received {self.workers!r}")
        require(0 < self.seconds < math.inf, f"seconds must be a finite number above 0, received {self.seconds!r}")


def ring_all_reduce(size: float, workers: int, network: Network) -> float:
    """Seconds of an all-reduce in a ring: 2 (n - 1) messages one after the other, each with an n-th of the bytes.

    Args:
      size: bytes that each worker has, at least 0.
      workers: n, at least 1; one has nothing to send.
      network: between neighbours; where they differ, of the slowest.

    Source: Thakur, Rabenseifner and Gropp, Optimization of Collective Communication Operations in MPICH, 2005,
    section 4.5, without the time of the sums; Patarasuk and Yuan, 2009, doi:10.1016/j.jpdc.2008.09.002.

    >>> round(ring_all_reduce(4e6, 4, Network(latency=1e-3, bandwidth=1e9)), 6)
    0.012
    """
    require(size >= 0, f"size must be at least 0 bytes, received {size!r}")
    require(workers >= 1, f"workers must be at least 1, received {workers!r}")
    return 2 * (workers - 1) * (network.latency + size / (workers * network.bandwidth))


def hierarchical_all_reduce(size: float, workers: int, per_host: int, inside: Network, between: Network) -> float:
    """Seconds of an all-reduce by hosts: a sum inside each host, a ring of one worker a host, and a broadcast inside.

    Sum and broadcast go along binomial trees: log2(per_host) messages one after the other, each with all bytes.

    Args:
      size: bytes that each worker has, at least 0.
      workers: all, a multiple of `per_host`.
      per_host: workers on a host, at least 1.
      inside: between workers of a host.
      between: between hosts.

    Source: Jia et al., 2018, arXiv:1807.11205, section 4.3, for the three phases; Thakur, Rabenseifner and Gropp,
    2005, for the trees.

    >>> slow, fast = Network(latency=1e-3, bandwidth=1e9), Network(latency=1e-6, bandwidth=1e10)
    >>> ring_all_reduce(1e5, 64, slow) / hierarchical_all_reduce(1e5, 64, 8, fast, slow)
    8.8...
    """
    require(per_host >= 1, f"per_host must be at least 1, received {per_host!r}")
    require(
        workers >= per_host and workers % per_host == 0,
        f"workers must be a multiple of per_host={per_host}, received {workers!r}",
    )
    levels = math.ceil(math.log2(per_host))
    return 2 * levels * (inside.latency + size / inside.bandwidth) + ring_all_reduce(size, workers // per_host, between)


def fit_network(points: Sequence[Point]) -> tuple[Network, tuple[float, ...]]:
    """The network with which `ring_all_reduce` comes nearest to what was timed.

    Least squares of the relative errors, so that small messages, which show the latency, count as much as large ones.

    Args:
      points: all-reduces of at least two sizes.

    Returns:
      The network, and of each point how far the model is off: model / timed - 1, positive where it says too much.

    Raises:
      ValueError: the points do not tell latency from bandwidth, or contradict that both are above 0.

    >>> timed = Network(latency=1e-4, bandwidth=1e9)
    >>> network, errors = fit_network([Point(size, 2, ring_all_reduce(size, 2, timed)) for size in (1e3, 1e6)])
    >>> f"{network.latency:.6f} {network.bandwidth:.0f} {max(map(abs, errors)):.4f}"
    '0.000100 1000000000 0.0000'
    """
    from scipy.optimize import nnls

    require(
        len({point.size / point.workers for point in points}) >= 2,
        f"a network is fitted to messages of at least two sizes, received {list(points)!r}",
    )
    # The model is linear in the latency and in the seconds of a byte.
    terms = [2 * (point.workers - 1) * np.array([1, point.size / point.workers]) / point.seconds for point in points]
    # Bytes are many: columns of one length, or rounding would decide.
    lengths = np.linalg.norm(terms, axis=0)
    solution, _ = nnls(np.array(terms) / lengths, np.ones(len(points)))
    latency, of_a_byte = solution / lengths
    for name, found, size in (("latency", latency, "smaller"), ("bandwidth", of_a_byte, "larger")):
        require(
            found > 0,
            f"the times fit no {name} above 0: time {size} messages too, on a machine that does nothing else; received "
            f"{list(points)!r}",
        )
    network = Network(float(latency), float(1 / of_a_byte))
    errors = [ring_all_reduce(point.size, point.workers, network) / point.seconds - 1 for point in points]
    return network, tuple(errors)


def step_time(
    compute: float, workers: int, communication: float, cores: int | None = None, fixed: float = 0.0
) -> float:
    """Seconds of a training step whose batch is shared by workers; nothing is sent while they compute.

    Each worker computes for fixed + (compute - fixed) / workers. With fewer cores than workers, ceil(workers / cores)
    of them take turns at the busiest core.

    Args:
      compute: seconds that one worker takes for the whole batch, at least 0.
      workers: at least 1.
      communication: seconds, at least 0.
      cores: that all workers have together, at least 1; None: each has its own.
      fixed: the part of `compute` that a smaller share of the batch does not shorten, in [0, compute].

    >>> step_time(0.8, workers=4, communication=0.1), step_time(0.8, workers=4, communication=0.1, cores=2)
    (0.3..., 0.5)
    """
    require(workers >= 1, f"workers must be at least 1, received {workers!r}")
    require(cores is None or cores >= 1, f"cores must be at least 1 or None, received {cores!r}")
    require(communication >= 0, f"communication must be at least 0 seconds, received {communication!r}")
    require(0 <= fixed <= compute, f"fixed must be in [0, compute={compute!r}], received {fixed!r}")
    turns = math.ceil(workers / cores) if cores else 1
    return turns * (fixed + (compute - fixed) / workers) + communication
