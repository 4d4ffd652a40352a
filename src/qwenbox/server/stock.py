"""What a service can serve: the model that it was started with, the models of the catalogue that are in the cache, and those of other programs on the
disk; how they are opened."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qwenbox.chat.chat import ChatFormat
from qwenbox.engine.client import EngineOptions, Report, WorkerEngine
from qwenbox.errors import NotFoundError, QwenboxError, UsageError
from qwenbox.hub import CATALOGUE, find, installed, local, pull, pulled
from qwenbox.llm import LocalLLM, default_thinking, model_name, open_chat
from qwenbox.metrics import Metrics
from qwenbox.server.others import Others
from qwenbox.settings import Settings
from qwenbox.types import PAGE_TOKENS

if TYPE_CHECKING:
    from qwenbox.model.load import MemoryNeed


log = logging.getLogger("qwenbox.server")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on the disk; `created` in Unix seconds."""

    size_bytes: int
    created: int
    path: Path | None = None
    """Its file or directory."""


class Held(NamedTuple):
    """Bytes of a loaded model: promised to it for weights and pages, and those of them that it has touched."""

    promised: int
    resident: int


class Outline(NamedTuple):
    """Of a model on the disk, from the headers of its files: the least memory that it takes, bytes that a token reads, tokens of its window."""

    need_bytes: int
    touched_bytes: int
    window: int


class Stock:
    """The models that `settings` give. All of them are opened with the same settings, and share `metrics`."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None, *, undecided: bool = False) -> None:
        """Raises NotFoundError where the model of the settings has a name that no model has.

        `undecided`: the model of the settings means nothing; somebody will set `default`. A model whose whole window does not fit into memory
        then has a smaller one.
        """
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.others = Others(settings)
        self.given: dict[str, Path] = {}
        """Files and directories that somebody named, by the name of their model."""
        self._outlines: dict[str, Outline | None] = {}
        self._looker = ThreadPoolExecutor(1, "qwenbox-outlines")
        self._shrinks = undecided
        self.default = "" if undecided else self.name_of(settings.model)
        if not undecided and self.others.found:
            threading.Thread(target=self.others.judge, name="qwenbox-judge", daemon=True).start()

    def name_of(self, model: str) -> str:
        """The name under which the model is served: a path is remembered for it. Raises NotFoundError for what is neither path nor known name."""
        if (path := local(model)) is not None:
            self.given[model_name(model)] = path
            return model_name(model)
        return model if self.others.path(model) is not None else find(model).name

    def models(self) -> Mapping[str, StoredModel]:
        """What can be opened now without a network, by name."""
        paths = {**self.given, **{name: path for name, path in installed(self.settings).items() if name not in self.given}}
        paths |= {name: path for name, path in self.others.paths().items() if name not in paths}
        return {name: _stored(path) for name, path in paths.items()}

    def need(self, name: str) -> MemoryNeed:
        """The least memory that the model takes. Reads the headers of its files; raises what loading it would."""
        # Here and not at the top: a service of one model never asks.
        from qwenbox.model.load import memory_need

        settings, path = self.settings, self._known_path(name)
        if path is None:
            return self._need_of_entry(name)
        kv_bytes = None if settings.kv_gb is None else int(settings.kv_gb * 1e9)
        return memory_need(path, **settings.forms, context_length=self._context_length(name, path), kv_bytes=kv_bytes)

    def _need_of_entry(self, name: str) -> MemoryNeed:
        """Of a model that is not here yet."""
        from qwenbox.model.choice import entry_need
        from qwenbox.model.load import MemoryNeed, program_need

        entry = find(name)
        return MemoryNeed(0, 0, program_need()) if entry.shape is None else entry_need(entry, **self.settings.forms)

    def outline(self, name: str) -> Outline | None:
        """None while it is being looked up, and for a model that cannot be loaded. Does not wait."""
        if name not in self._outlines:
            self._outlines[name] = None
            self._looker.submit(self._look, name)
        return self._outlines[name]

    def _look(self, name: str) -> None:
        from qwenbox.model.load import context_window, stored_costs

        with contextlib.suppress(QwenboxError, OSError):
            if (path := self._known_path(name)) is not None:
                need, costs = self.need(name), stored_costs(path, **self.settings.forms)
                self._outlines[name] = Outline(need.total, costs.touched_bytes, self._context_length(name, path) or context_window(path))

    def free(self) -> int:
        from qwenbox.model.load import available_memory

        return available_memory()

    def held(self, llm: LocalLLM) -> Held:
        info = llm.engine.info()
        promised = (
            (llm.engine.state().total_bytes or 0)
            if info is None
            else info.weights_bytes + info.num_pages * PAGE_TOKENS * int(info.costs.get("kv_bytes", 0))
        )
        pid = llm.engine.pid if isinstance(llm.engine, WorkerEngine) else None
        return Held(promised, 0 if pid is None else resident_bytes(pid))

    def open(self, name: str, memory_bytes: int | None = None) -> LocalLLM:
        """The model, which is then found and loaded in a process of its own; the default one is fetched if it is not here."""
        chat: Future[ChatFormat] = Future()

        def find_model(report: Report) -> EngineOptions:
            path = self._known_path(name) or pull(find(name), self.settings, report)
            report("loading", 0, 0)
            chat.set_result(open_chat(path))
            where = {"model": str(path), "tokens": chat.result().tokenizer.table(), "memory_bytes": memory_bytes}
            return replace(EngineOptions.from_settings(self.settings, **where), context_length=self._context_length(name, path))

        settings = self.settings
        return LocalLLM(
            WorkerEngine(find_model),
            chat,
            name,
            metrics=self.metrics,
            request_timeout=settings.request_timeout,
            thinking=default_thinking(settings),
            loop_guard=settings.loop_guard,
        )

    def _context_length(self, name: str, path: Path) -> int | None:
        """That of the settings, which are made for the default model: another one whose window is smaller has its window."""
        asked = self.settings.context_length
        if asked is None and self._shrinks and self.settings.kv_gb is None:
            return self._room(path)
        if asked is None or name == self.default:
            return asked
        from qwenbox.model.load import context_window

        window = context_window(path)
        if window < asked:
            log.warning(
                "the window of the model is smaller than the context_length of the service", extra={"fields": {"model": name, "window": window}}
            )
        return min(asked, window)

    def _room(self, path: Path) -> int:
        """Tokens of the model's window for which there is memory, but no less than a chosen model has to have."""
        from qwenbox.model.choice import CONTEXT, MEMORY_SHARE
        from qwenbox.model.load import available_memory, context_window, memory_need

        window = context_window(path)
        whole = memory_need(path, **self.settings.forms)
        left = int(MEMORY_SHARE * available_memory()) - whole.weights - whole.program
        return min(window, max(CONTEXT, window * left // whole.kv))

    def _known_path(self, name: str) -> Path | None:
        """None for the default where it has yet to be fetched. Raises NotFoundError for others that are not here."""
        path = self.path(name)
        if path is None and name != self.default:
            raise NotFoundError(f"{name} is not in the cache any more; `qwenbox pull {name}` fetches it.", code="model_not_found")
        return path

    def path(self, name: str) -> Path | None:
        """Where a model is that is on the disk. Raises NotFoundError for a name that no model has."""
        if name in self.given:
            return self.given[name]
        if name in CATALOGUE or self.others.path(name) is None:
            return pulled(find(name), self.settings)
        return self.others.path(name)


def read_aliases(pairs: Iterable[str], default: str) -> dict[str, str]:
    """Model by further name, of NAME=MODEL texts. UsageError for a name that hides a model, and for a model that nobody knows."""
    names = {default, *CATALOGUE}
    aliases = {}
    for pair in pairs:
        alias, equals, model = (part.strip() for part in pair.partition("="))
        if not (alias and equals and model):
            raise UsageError(f"alias: {pair!r} is not NAME=MODEL", param="alias")
        if alias in names:
            raise UsageError(f"alias: {alias} is the name of a model already", param="alias")
        if model not in names:
            raise UsageError(f"alias: there is no model {model!r}; there are {', '.join(sorted(names))}", param="alias")
        aliases[alias] = model
    return aliases


def resident_bytes(pid: int) -> int:
    """What a process has in memory; 0 where there is none."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _stored(path: Path) -> StoredModel:
    try:
        stats = [file.stat() for file in (path.iterdir() if path.is_dir() else (path,))]
    except OSError:
        return StoredModel(0, 0, path)
    return StoredModel(sum(stat.st_size for stat in stats), int(max((stat.st_mtime for stat in stats), default=0)), path)
