"""The table of metrics, and what `/metrics` shows of it."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from qwenbox.metrics import METRICS, PREFIX, Metrics


def test_every_row_of_the_table_is_shown():
    engine = {row.name: 1.0 for row in METRICS if row.source == "engine"}
    metrics = Metrics()
    metrics.engines["a"] = lambda: engine
    for row in METRICS:
        if row.source == "front":
            child = metrics[row.name].labels(*("x" for _ in row.labels))
            child.observe(1) if row.kind == "histogram" else child.inc()
    shown = set(re.findall(r"^# TYPE (\S+) ", metrics.render().decode(), re.MULTILINE))
    for row in METRICS:
        assert PREFIX + row.name + ("_total" if row.kind == "counter" else "") in shown


def test_values_of_the_engine_are_those_of_the_moment():
    values = {"num_requests_running": 0.0}
    metrics = Metrics()
    metrics.engines |= {"a": lambda: values, "b": lambda: {"num_requests_running": 1.0}}
    values["num_requests_running"] = 3.0
    assert metrics.registry.get_sample_value("qwenbox_num_requests_running", {"model_name": "a"}) == 3.0
    assert metrics.registry.get_sample_value("qwenbox_num_requests_running", {"model_name": "b"}) == 1.0
    assert metrics.registry.get_sample_value("qwenbox_num_requests_waiting", {"model_name": "a"}) is None
    del metrics.engines["a"]
    assert metrics.registry.get_sample_value("qwenbox_num_requests_running", {"model_name": "a"}) is None


def test_what_is_counted_reads_as_prometheus_client_writes_it():
    rows = {row.name: row for row in METRICS}
    steps, tokens = rows["step_seconds"], rows["generation_tokens"]
    ours = Metrics()
    theirs = CollectorRegistry()
    histogram = Histogram(PREFIX + steps.name, steps.help, steps.labels, buckets=steps.buckets, registry=theirs).labels("a")
    counter = Counter(PREFIX + tokens.name, tokens.help, tokens.labels, registry=theirs).labels("a")
    for value in (0.0, 0.001, 0.0011, 0.04, 0.04, 5.0, 7.0):
        ours["step_seconds"].labels("a").observe(value)
        histogram.observe(value)
    ours["step_seconds"].labels("a").observe(0.25, 2)
    histogram.observe(0.25)
    histogram.observe(0.25)
    ours["generation_tokens"].labels("a").inc(3)
    ours["generation_tokens"].labels("a").inc()
    counter.inc(4)

    def samples(text: bytes) -> set[str]:
        return {line for line in text.decode().splitlines() if re.match(r"qwenbox_(step_seconds|generation_tokens)_(bucket|sum|count|total)", line)}

    assert samples(ours.render()) == samples(generate_latest(theirs))


def test_two_services_in_a_process_do_not_share_their_counts():
    first, second = Metrics(), Metrics()
    first["prompt_tokens"].labels("a").inc(5)
    assert second.registry.get_sample_value("qwenbox_prompt_tokens_total", {"model_name": "a"}) is None
