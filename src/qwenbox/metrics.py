"""Every Prometheus metric, once: a table, and the registry made from it.

Names carry the ecosystem's suffixes behind our prefix, so a board for another engine needs one replacement. Labels are bounded: a label value comes
from a fixed set, never from what a client sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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
_KINDS: Mapping[str, type[Counter] | type[Gauge]] = {"counter": Counter, "gauge": Gauge}


class Metrics:
    """The metrics of one service. `metrics["name"]` is the prometheus object of a "front" row of the table.

    `engines` says by model name how the values of the "engine" rows are read; rows that an engine leaves out are not exported.
    """

    def __init__(self) -> None:
        self.engines: dict[str, Callable[[], Mapping[str, float]]] = {}
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        for row in METRICS:
            if row.source == "engine":
                continue
            if row.kind == "histogram":
                self._metrics[row.name] = Histogram(PREFIX + row.name, row.help, row.labels, buckets=row.buckets, registry=self.registry)
            else:
                self._metrics[row.name] = _KINDS[row.kind](PREFIX + row.name, row.help, row.labels, registry=self.registry)
        self.registry.register(_EngineRows(self.engines))

    def __getitem__(self, name: str) -> Any:
        return self._metrics[name]

    def render(self) -> bytes:
        """The text that `/metrics` answers."""
        return generate_latest(self.registry)


class _EngineRows(Collector):
    """Reads the engines' numbers at the moment of the scrape."""

    def __init__(self, engines: Mapping[str, Callable[[], Mapping[str, float]]]) -> None:
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        return [_family(row) for row in METRICS if row.source == "engine"]

    def collect(self) -> Iterable[Metric]:
        values = {name: read() for name, read in list(self._engines.items())}
        for row in METRICS:
            if row.source == "engine":
                family = _family(row)
                for name, of_engine in values.items():
                    if row.name in of_engine:
                        family.add_metric([name], of_engine[row.name])
                yield family


def _family(row: MetricRow) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    return family(PREFIX + row.name, row.help, labels=row.labels)
