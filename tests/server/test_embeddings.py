"""Vectors of texts over the real service, asked for by the unmodified `openai` client and as Ollama's do (which runs in tests/clients)."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from qwenbox.llm import LLM
from qwenbox.server.serve import Service
from qwenbox.settings import Settings
from tests.fakes import FakeEngine
from tests.server.conftest import Running
from tests.tiny import tiny_gguf

TEXTS = ["hello world", "The sum of its parts. " * 9, "猫は寝ている", "x"]


def served(llm: LLM, folder: Path) -> Service:
    return Service(llm, Settings(port=0, state_dir=folder, cache_dir=folder))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(tiny_gguf())
    with LLM(str(path), threads=1, context_length=256, num_pages=64) as llm:
        yield llm


@pytest.fixture(scope="module")
def url(tiny: LLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tiny, tmp_path_factory.mktemp("state")) as service:
        yield service.url


@pytest.fixture
def openais(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def http(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client


def vectors_of(answer: Any) -> np.ndarray:
    return np.array([one.embedding for one in sorted(answer.data, key=lambda one: one.index)], np.float32)


def test_openais_client_gets_unit_vectors_that_are_the_same_alone_in_company_in_either_form_and_from_tokens(openais, tiny):
    together = openais.embeddings.create(model="tiny", input=TEXTS)  # this client asks for base64 by itself
    vectors = vectors_of(together)
    assert vectors.shape == (len(TEXTS), 64)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=1e-6)
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_array_equal(vectors_of(openais.embeddings.create(model="tiny", input=text, encoding_format="float"))[0], vector)
    ids = [tiny.tokenizer.encode(text, control=False) for text in TEXTS]
    np.testing.assert_array_equal(vectors_of(openais.embeddings.create(model="tiny", input=ids)), vectors)
    np.testing.assert_array_equal(vectors_of(openais.embeddings.create(model="tiny", input=ids[0]))[0], vectors[0])
    assert together.usage.prompt_tokens == together.usage.total_tokens == sum(map(len, ids))
    assert together.model == "tiny" and together.qwenbox == {"pooling": "mean", "embedding_model": False}
    np.testing.assert_array_equal(tiny.embed(TEXTS), vectors)


def test_fewer_dimensions_are_the_first_ones_brought_to_length_one(openais, tiny):
    whole = tiny.embed(TEXTS)[:, :10].astype(np.float64)
    short = vectors_of(openais.embeddings.create(model="tiny", input=TEXTS, dimensions=10))
    np.testing.assert_allclose(short, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)


def test_ollamas_programs_get_the_same_vectors_and_older_ones_one(http, tiny):
    answer = http.post("/api/embed", json={"model": "tiny:latest", "input": TEXTS}).json()
    np.testing.assert_array_equal(np.array(answer["embeddings"], np.float32), tiny.embed(TEXTS))
    assert answer["prompt_eval_count"] == sum(len(tiny.tokenizer.encode(text)) for text in TEXTS)
    assert 0 <= answer["load_duration"] <= answer["total_duration"]
    short = http.post("/api/embed", json={"model": "tiny", "input": TEXTS[0], "dimensions": 5}).json()
    np.testing.assert_array_equal(np.array(short["embeddings"], np.float32), tiny.embed(TEXTS[:1], dimensions=5))
    older = http.post("/api/embeddings", json={"model": "tiny", "prompt": TEXTS[1]}).json()
    np.testing.assert_array_equal(np.array(older["embedding"], np.float32), tiny.embed(TEXTS[1:2])[0])
    assert http.post("/api/embed", json={"model": "tiny", "input": ""}).json()["embeddings"] == []  # only loads


def test_what_does_not_fit_the_window_is_cut_where_ollamas_programs_allow_it_and_that_is_said(http, openais, tiny):
    long = "x" * 300
    cut = http.post("/api/embed", json={"model": "tiny", "input": ["x", long], "options": {"num_ctx": 8}})
    assert cut.json()["qwenbox"]["truncated"] == [1]
    assert cut.headers["x-qwenbox-ignored"] == "options"
    assert cut.json()["prompt_eval_count"] == 257
    np.testing.assert_array_equal(np.array(cut.json()["embeddings"][1], np.float32), tiny.embed(["x" * 256])[0])
    refused = http.post("/api/embed", json={"model": "tiny", "input": long, "truncate": False})
    assert refused.status_code == 400 and "300 tokens" in refused.json()["error"] and "256" in refused.json()["error"]
    with pytest.raises(openai.BadRequestError, match="300 tokens") as told:
        openais.embeddings.create(model="tiny", input=["x", long])
    assert (told.value.code, told.value.param) == ("context_length_exceeded", "input")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["x", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [10**6]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": 5}, "input"),
        ({"input": "x", "dimensions": 65}, "dimensions"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_in_each_dialects_form(http, wrong, param):
    answer = http.post("/v1/embeddings", json={"model": "tiny"} | wrong)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].split(".")[0] == param
    if wrong.get("dimensions") == 65:
        assert "64" in http.post("/api/embed", json={"model": "tiny"} | wrong).json()["error"]


def test_a_model_that_was_made_for_vectors_says_how_and_is_asked_for_nothing_else(tmp_path):
    path = tmp_path / "embedder.gguf"
    path.write_bytes(tiny_gguf("embedder", pooling_type=3))
    with LLM(str(path), threads=1, context_length=256, num_pages=64) as llm, served(llm, tmp_path) as service:
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60)
        answer = client.embeddings.create(model="embedder", input="hello world")
        assert answer.qwenbox == {"pooling": "last", "embedding_model": True}
        ids = llm.tokenizer.encode("hello world<|endoftext|>")
        assert answer.usage.prompt_tokens == len(ids)
        np.testing.assert_array_equal(vectors_of(client.embeddings.create(model="embedder", input=ids)), vectors_of(answer))
        # A second text that begins alike finds the pages of the first, and has the same bits as without them.
        texts = ["y" * 100, "y" * 100 + "z"]
        np.testing.assert_array_equal(llm.embed(texts[1:]), llm.embed(texts)[1:])
        assert llm.engine.stats().cached_tokens >= 64
        with pytest.raises(openai.BadRequestError, match="gives no answers"):
            client.chat.completions.create(model="embedder", messages=[{"role": "user", "content": "Hi"}])
        shown = httpx2.post(f"{service.url}/api/show", json={"model": "embedder"}, trust_env=False, timeout=60).json()
        assert shown["capabilities"] == ["embedding"]
        client.close()


def test_many_texts_leave_half_of_the_places_to_others_and_are_counted(start: Callable[..., Running]) -> None:
    engine = FakeEngine(step_seconds=0.001)
    most = 0
    advance = engine._advance

    def counted(one: Any) -> Any:
        nonlocal most
        most = max(most, engine.num_running)
        return advance(one)

    engine._advance = counted  # type: ignore[method-assign]
    running = start(engine)
    with running.client() as client:
        answer = client.embeddings.create(model="tiny", input=[f"text {number}" for number in range(100)], encoding_format="base64")
        assert len(answer.data) == 100 and 1 < most <= 16
        assert answer.usage.prompt_tokens == sum(len(f"text {number}") for number in range(100))
        values = struct.unpack("<8f", base64.b64decode(str(answer.data[7].embedding)))
        assert sum(value * value for value in values) == pytest.approx(1, abs=1e-6)
        text = httpx2.get(f"{running.url}/metrics", trust_env=False).text
    assert 'qwenbox_vectors_total{model_name="tiny"} 100.0' in text
    assert 'qwenbox_request_success_total{finished_reason="stop",model_name="tiny"} 100.0' in text


def test_who_leaves_ends_what_runs_and_what_would_have_run(start: Callable[..., Running]) -> None:
    engine = FakeEngine()
    engine.pause()
    running = start(engine)
    with running.client(timeout=0.5) as client, pytest.raises(openai.APITimeoutError):
        client.embeddings.create(model="tiny", input=["x"] * 50)
    engine.wait_for(lambda engine: not engine.num_running)
    assert len(engine.plans) == 16
