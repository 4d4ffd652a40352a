"""Workers that share the processors: the real program and supervisor over the fake model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwenbox.engine import supervisor
from qwenbox.engine.client import EngineOptions, WorkerEngine, open_turns
from tests.engine.fake_worker import POISON, TORPOR
from tests.engine.fakes import Receiver, eventually, plan
from tests.engine.test_worker import LAUNCH

HARMLESS = {POISON: -1000.0, TORPOR: -1000.0}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., WorkerEngine]]:
    """Engines of one service."""
    monkeypatch.setattr(supervisor, "_LAUNCH", LAUNCH)
    turns = open_turns()
    engines: list[WorkerEngine] = []

    def start(kind: str = "alone", beat_seconds: float = 30.0) -> WorkerEngine:
        engines.append(WorkerEngine(EngineOptions(model=str(tmp_path / kind), max_sequences=2), beat_seconds=beat_seconds, turns=turns))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
    os.close(turns)


def ready(*engines: WorkerEngine) -> None:
    eventually(lambda: all(engine.state().name == "ready" for engine in engines))


def test_workers_of_one_service_never_step_at_the_same_time_and_each_gets_its_turn(start):
    engines = [start() for _ in range(3)]
    ready(*engines)
    receivers = [Receiver() for _ in engines]
    for engine, receiver in zip(engines, receivers, strict=True):
        engine.submit(plan("a", [1, 2, 3], 100, logit_bias=HARMLESS), receiver)
    answers = [receiver.wait() for receiver in receivers]
    assert [answer.reason for answer in answers] == ["length"] * 3, "a step that finds somebody else fails"
    assert all(answer.same_as(answers[0]) for answer in answers)
    assert [engine.stats().steps for engine in engines] == [100] * 3


def test_a_worker_that_was_stopped_in_its_step_is_killed_and_who_waits_for_it_is_not(start):
    stopped, waiting = start("fast", 4.0), start("fast", 2.0)
    ready(stopped, waiting)
    torpid, patient = Receiver(), Receiver()
    stopped.submit(plan("t", [TORPOR], 4), torpid)
    eventually(lambda: Path(f"/proc/{stopped.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    waiting.submit(plan("a", [1, 2, 3], 8, logit_bias=HARMLESS), patient)
    assert patient.wait().reason == "length"
    assert torpid.wait().reason == "error"
    eventually(lambda: stopped.stats().restarts == 1)
    assert waiting.stats().restarts == 0


def test_a_worker_that_dies_in_its_step_frees_its_turn(start):
    dying, other = start("fast"), start("fast")
    ready(dying, other)
    dead, alive = Receiver(), Receiver()
    dying.submit(plan("p", [POISON], 4), dead)
    assert dead.wait().reason == "error"
    other.submit(plan("a", [1, 2, 3], 8, logit_bias=HARMLESS), alive)
    assert alive.wait().reason == "length"


def test_a_worker_that_steps_again_and_again_lets_others_in(start):
    busy, late = start(), start()
    ready(busy, late)
    long, short = Receiver(), Receiver()
    busy.submit(plan("long", [1, 2, 3], 1000, logit_bias=HARMLESS), long)
    eventually(lambda: busy.stats().steps > 10)
    before = busy.stats().steps
    late.submit(plan("short", [1, 2, 3], 20, logit_bias=HARMLESS), short)
    assert short.wait().reason == "length"
    assert busy.stats().steps - before < 60
    busy.cancel("long")
    assert long.wait().reason == "cancelled"
