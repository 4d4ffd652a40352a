"""A scripted load moves each metric to the client's own count."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from qwenbox.errors import WorkerDiedError
from tests.fakes import Script

HELLO: Any = [{"role": "user", "content": "Hi"}]


def read(running: Any) -> dict[str, float]:
    text = httpx2.get(f"{running.url}/metrics", trust_env=False).text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line and not line.startswith("#")}


def test_a_scripted_load_moves_each_metric_to_the_clients_own_count(served):
    answers = []
    with served.client() as client:
        for index in range(3):
            answers.append(client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4 + index, n=2))
        answers.append(client.chat.completions.create(model="tiny", messages=HELLO))
        stopped = client.chat.completions.create(model="tiny", messages=HELLO, stop=["world"])
        for code in (404, 400):
            with pytest.raises(openai.APIStatusError):
                client.chat.completions.create(model="other" if code == 404 else "tiny", messages=HELLO, n=1 if code == 404 else 99)
        served.engine.script = Script("abc" * 900)
        served.engine.step_seconds = 0.002
        dropped = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        next(iter(dropped))
        dropped.close()
        served.engine.wait_for(lambda engine: engine.num_running == 0)
        failed = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        next(iter(failed))
        served.engine.fail(WorkerDiedError("it died"))
        with pytest.raises(openai.APIError):
            list(failed)
    shown = read(served)
    model = '{model_name="tiny"}'

    def ended(reason: str) -> float:
        return shown.get(f'qwenbox_request_success_total{{finished_reason="{reason}",model_name="tiny"}}', 0)

    choices = [choice for answer in [*answers, stopped] for choice in answer.choices]
    assert ended("length") == sum(choice.finish_reason == "length" for choice in choices) == 6
    assert ended("stop") == sum(choice.finish_reason == "stop" for choice in choices) == 2
    assert (ended("cancelled"), ended("error")) == (1, 1)
    assert shown[f"qwenbox_e2e_request_latency_seconds_count{model}"] == len(choices) + 2
    assert shown[f"qwenbox_time_to_first_token_seconds_count{model}"] == len(choices) + 2
    prompts = sum(answer.usage.prompt_tokens for answer in answers) + 3 * stopped.usage.prompt_tokens
    assert shown[f"qwenbox_prompt_tokens_total{model}"] == prompts
    counted = sum(answer.usage.completion_tokens for answer in [*answers, stopped])
    # The dropped and the failed stream gave tokens too, which no client counted.
    assert shown[f"qwenbox_generation_tokens_total{model}"] > counted
    gaps = shown[f"qwenbox_inter_token_latency_seconds_count{model}"]
    assert gaps == shown[f"qwenbox_generation_tokens_total{model}"] - len(choices) - 2
    responses = {status: shown[f'qwenbox_http_responses_total{{route="/v1/chat/completions",status="{status}"}}'] for status in (200, 400, 404)}
    assert responses == {200: len(answers) + 3, 400: 1, 404: 1}
    assert shown[f"qwenbox_num_requests_running{model}"] == 0


def test_steps_are_counted_by_seconds_and_tokens_of_prompts_and_answers(served):
    for step in ((0.03, 40, 2), (0.02, 0, 3), (0.3, 7, 0)):
        served.engine.note_step(*step)
    shown = read(served)
    assert shown['qwenbox_step_seconds_count{model_name="tiny"}'] == 3
    assert shown['qwenbox_step_seconds_sum{model_name="tiny"}'] == pytest.approx(0.35)
    for phase, steps, tokens in (("prefill", 2, 47), ("decode", 2, 5)):
        labels = f'{{model_name="tiny",phase="{phase}"}}'
        assert shown[f"qwenbox_iteration_tokens_total_count{labels}"] == steps
        assert shown[f"qwenbox_iteration_tokens_total_sum{labels}"] == tokens


def test_junk_from_clients_makes_no_new_series(served):
    with httpx2.Client(base_url=served.url, trust_env=False) as http:
        http.get("/metrics")
        before = len(read(served))
        for index in range(200):
            http.get(f"/junk-{index}")
            http.post("/v1/completions", json={"model": f"junk-{index}", "prompt": "x"})
            http.get(f"/v1/models/junk-{index}")
    assert len(read(served)) - before <= 10
