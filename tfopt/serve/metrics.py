"""What Prometheus reads of a server."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tfopt.serve.repository import Key, Version

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one server.

    Args:
      versions: gives the models that are loaded, whose queues and workers are looked at when Prometheus asks.
    """

    def __init__(self, versions: Callable[[], Iterable[Version]]) -> None:
        self.registry = CollectorRegistry()
        self._versions = versions
        self.requests = Counter(
            "tfopt_requests", "Requests answered.", ("route", "method", "code"), registry=self.registry
        )
        self.seconds = Histogram(
            "tfopt_request_seconds",
            "From the head of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.inflight = Gauge("tfopt_requests_in_flight", "Requests being read or answered.", registry=self.registry)
        self._rows = Histogram(
            "tfopt_batch_examples",
            "Examples in a run of a model.",
            ("model", "version"),
            buckets=_ROWS,
            registry=self.registry,
        )
        self.registry.register(self)

    def observer(self, key: Key) -> Callable[[int], None]:
        """Counts the examples of each run of a version."""
        return self._rows.labels(key[0], str(key[1])).observe

    def collect(self) -> Iterator[Metric]:
        """Looks at the queues and workers."""
        labels = ("model", "version")
        queued = GaugeMetricFamily("tfopt_queue_requests", "Requests that wait for a worker.", labels=labels)
        alive = GaugeMetricFamily("tfopt_workers", "Workers that run.", labels=labels)
        restarts = CounterMetricFamily("tfopt_worker_restarts", "Workers that died and were replaced.", labels=labels)
        for each in self._versions():
            if each.pool is not None:
                key = (each.name, str(each.number))
                queued.add_metric(key, each.pool.queued)
                alive.add_metric(key, len(each.pool.alive))
                restarts.add_metric(key, each.pool.restarts)
        yield from (queued, alive, restarts)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
