"""Every Prometheus metric, once: a table, and the registry made from it.

Names carry the ecosystem's suffixes behind our prefix, so a board for another engine needs one replacement. Labels are bounded: a label value comes
from a fixed set, never from what a client sent.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
REQUEST_SECONDS = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One line of the table. `source` "front" is counted here; "engine" is read from the engine when somebody asks."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    source: Literal["front", "engine"] = "front"


METRICS: tuple[MetricRow, ...] = (
    MetricRow("request_success", "counter", "Answers that ended, by how: stop, length, cancelled, error.", ("model_name", "finished_reason")),
    MetricRow("prompt_tokens", "counter", "Prompt tokens of answered requests; once a prompt, however many choices it has.", ("model_name",)),
    MetricRow("generation_tokens", "counter", "Generated tokens.", ("model_name",)),
    MetricRow("vectors", "counter", "Vectors made of texts.", ("model_name",)),
    MetricRow("time_to_first_token_seconds", "histogram", "From the request to its first token.", ("model_name",), FIRST_TOKEN_SECONDS),
    MetricRow("inter_token_latency_seconds", "histogram", "Between two tokens of one answer.", ("model_name",), TOKEN_SECONDS),
    MetricRow("e2e_request_latency_seconds", "histogram", "From the request to the end of its answer.", ("model_name",), REQUEST_SECONDS),
    MetricRow("request_queue_time_seconds", "histogram", "Waiting in the engine before the first step.", ("model_name",), REQUEST_SECONDS),
    MetricRow("step_seconds", "histogram", "A step of the engine.", ("model_name",), STEP_SECONDS),
    MetricRow("iteration_tokens_total", "histogram", "Tokens of a step, of prompts and of answers.", ("model_name", "phase"), STEP_TOKENS),
    MetricRow("num_requests_running", "gauge", "Sequences that the engine is working on.", ("model_name",), source="engine"),
    MetricRow("num_requests_waiting", "gauge", "Sequences that wait for a place.", ("model_name",), source="engine"),
    MetricRow("kv_cache_usage_perc", "gauge", "Used share of the KV pages, 0 to 1.", ("model_name",), source="engine"),
    MetricRow("num_preemptions", "counter", "Sequences that gave their pages back and were computed again.", ("model_name",), source="engine"),
    MetricRow("prefix_cache_queries", "counter", "Prompt tokens that came to the engine.", ("model_name",), source="engine"),
    MetricRow(
        "prefix_cache_hits", "counter", "Those of them whose keys and values were there from an earlier request.", ("model_name",), source="engine"
    ),
    MetricRow("worker_restarts", "counter", "Times the engine's worker was started again.", ("model_name",), source="engine"),
    MetricRow("http_responses", "counter", "HTTP responses by route and status.", ("route", "status")),
)

PREFIX = "qwenbox_"


class Tally:
    """Values of one label set: how many in each bucket, and their sum. Any thread may add.

    It is added to with every token, which takes prometheus_client's histogram and counter four times as long.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float, count: int = 1) -> None:
        """So often this value."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += count
            self._sum += value * count

    def inc(self, amount: float = 1.0) -> None:
        """For a counter, which has no buckets."""
        with self._lock:
            self._sum += amount

    def read(self) -> tuple[list[int], float]:
        """Counts of the buckets, each with those before it, and the sum."""
        with self._lock:
            return list(accumulate(self._counts)), self._sum


class Tallies:
    """One row of the table, counted here."""

    def __init__(self, row: MetricRow) -> None:
        self._row = row
        self._children: dict[tuple[str, ...], Tally] = {}

    def labels(self, *values: str) -> Tally:
        return self._children.setdefault(values, Tally(self._row.buckets))

    def collect(self) -> Metric:
        row, bounds = self._row, [*map(floatToGoString, self._row.buckets), "+Inf"]
        children = [(values, *child.read()) for values, child in list(self._children.items())]
        if row.kind == "histogram":
            histogram = HistogramMetricFamily(PREFIX + row.name, row.help, labels=row.labels)
            for values, counts, total in children:
                histogram.add_metric(values, list(zip(bounds, counts, strict=True)), total)
            return histogram
        family = _family(row)
        for values, _, total in children:
            family.add_metric(values, total)
        return family


class Metrics:
    """The metrics of one service. `metrics["name"]` counts a "front" row of the table.

    `engines` says by model name how the values of the "engine" rows are read; rows that an engine leaves out are not exported.
    """

    def __init__(self) -> None:
        self.engines: dict[str, Callable[[], Mapping[str, float]]] = {}
        self.registry = CollectorRegistry()
        self._tallies = {row.name: Tallies(row) for row in METRICS if row.source == "front"}
        self.registry.register(_Rows(self._tallies, self.engines))

    def __getitem__(self, name: str) -> Tallies:
        return self._tallies[name]

    def render(self) -> bytes:
        """The text that `/metrics` answers."""
        return generate_latest(self.registry)


class _Rows(Collector):
    """The table as Prometheus wants it; the engines' numbers are read at the moment of the scrape."""

    def __init__(self, tallies: Mapping[str, Tallies], engines: Mapping[str, Callable[[], Mapping[str, float]]]) -> None:
        self._tallies = tallies
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        return [_family(row) for row in METRICS]  # only the names count

    def collect(self) -> Iterable[Metric]:
        values = {name: read() for name, read in list(self._engines.items())}
        for row in METRICS:
            if row.source == "front":
                yield self._tallies[row.name].collect()
            else:
                family = _family(row)
                for name, of_engine in values.items():
                    if row.name in of_engine:
                        family.add_metric([name], of_engine[row.name])
                yield family


def _family(row: MetricRow) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    return family(PREFIX + row.name, row.help, labels=row.labels)
