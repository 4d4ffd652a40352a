"""The first minute of a service, for tests and measurements: it begins with nothing but what is in a folder; and a hub of tiny models that pose as
the sizes of Qwen3."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from qwenbox.hub import CATALOGUE
from qwenbox.hub.catalogue import Repository
from qwenbox.model.choice import Machine
from qwenbox.server.choice import Choice
from qwenbox.server.serve import Service
from qwenbox.server.stock import Stock
from qwenbox.settings import Settings
from tests.hub.fake_hub import Fake, serving
from tests.hub.test_disk import places
from tests.tiny import tiny_gguf

BEST = "qwen3-4b-q4_k_m"
MACHINE = Machine(24_000_000_000, 24e9)
"""Where `BEST` is best."""
FREE_BYTES = 600_000


class Minute:
    """A service that begins with nothing but what is in a folder."""

    def __init__(self, folder: Path, *, stated: bool = False, **more: Any) -> None:
        self.settings = places(folder)
        named = {name: getattr(self.settings, name) for name in ("cache_dir", "ollama_dir", "huggingface_dir", "modelscope_dir", "lmstudio_dir")}
        self.settings = Settings(**named | {"state_dir": folder / "state", "port": 0, "archive": False, "threads": 1, **more})
        self.said: list[str] = []
        self.asked: list[tuple[str, Callable[[bool], None]]] = []
        stock = Stock(self.settings, undecided=True)
        chooses = Choice(stock, stated=stated, say=self.said.append, ask=lambda text, answer: self.asked.append((text, answer)))
        self.service = Service(None, self.settings, stock, chooses)
        self.http = httpx2.Client(base_url=self.service.url, trust_env=False, timeout=60)

    def __enter__(self) -> Minute:
        self.service.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.service.stop()

    def choice(self) -> dict[str, Any]:
        return self.http.get("/choice").json()

    def until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while not condition(now := self.choice()):
            assert time.monotonic() < deadline, now
        return now

    def settled(self) -> dict[str, Any]:
        return self.until(lambda now: now["phase"] == "settled")

    def decide(self, **body: Any) -> httpx2.Response:
        return self.http.post("/choice", json=body)

    def answer(self) -> str:
        """The model that answers."""
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        response = self.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return str(response.json()["model"])

    @property
    def kept(self) -> dict[str, Any]:
        path = self.settings.state_dir / "settings.json"
        return json.loads(path.read_bytes()) if path.exists() else {}


@contextmanager
def catalogue_hub() -> Iterator[Fake]:
    """Every GGUF of the catalogue, tiny; the best one has a long name, which makes it larger than FREE_BYTES here."""
    more = {}
    for entry in CATALOGUE.values():
        if isinstance(entry.source, Repository) and entry.source.file is not None:
            more[entry.source.name] = {entry.source.file: tiny_gguf(entry.name + " " * (200_000 if entry.name == BEST else 0))}
    with serving(Fake(more=more)) as fake:
        yield fake
