"""The rest of Ollama's API, beside /api/chat and /api/generate: what models there are, and how they come and go."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from qwenbox import __version__, hub
from qwenbox.chat.chat import ChatFormat
from qwenbox.errors import QwenboxError, RequestError
from qwenbox.hub import Entry, Phase
from qwenbox.hub.catalogue import Packages
from qwenbox.llm import can_infill, open_chat
from qwenbox.server.attempts import Attempt
from qwenbox.server.pages import Pages
from qwenbox.server.routes import first_found, read_body
from qwenbox.server.shelf import Place, Shelf
from qwenbox.server.stock import StoredModel
from qwenbox.server.stream import EventResponse, Write
from qwenbox.settings import Settings
from qwenbox.wire import ollama
from qwenbox.wire.errors import OLLAMA_PATH, error_body, validate

PORT = 11434
"""Where Ollama's clients look, on 127.0.0.1."""
API_VERSION = "0.13.0"
"""The version of Ollama whose API is spoken here. Clients compare it with the one that they need."""
RUNNING = "Ollama is running"
PROGRESS_SECONDS = 0.25
MAX_ALIASES = 256
_FOR_EVER = 100 * 365 * 86400.0
"""How far away the end of a model is shown that stays."""


class NamedModel(BaseModel):
    """What the routes about one model are asked; `name` is what older clients call it."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: Annotated[str, Field(max_length=512)] | None = None
    name: Annotated[str, Field(max_length=512)] | None = None
    stream: bool | None = None

    def named(self) -> str:
        if not (name := self.model or self.name):
            raise RequestError("model: the name of one is needed.", param="model")
        return name


class Copy(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    source: Annotated[str, Field(min_length=1, max_length=512)]
    destination: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]


@dataclass(frozen=True, slots=True)
class _About:
    """What can be said of a model without loading it."""

    details: Mapping[str, Any]
    info: Mapping[str, Any]
    window: int


class OllamaRoutes:
    """The handlers, over the models of a shelf and the cache of the settings."""

    def __init__(self, shelf: Shelf, settings: Settings, pages: Pages) -> None:
        self._shelf = shelf
        self._settings = settings
        self._pages = pages
        self._about: dict[Path, _About] = {}

    async def root(self, request: Request) -> Response:
        """The page; programs that look for Ollama on its port are told what they want to hear."""
        at_ollamas_port = (request.scope.get("server") or ("", 0))[1] == PORT
        if at_ollamas_port and "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(RUNNING)
        return await self._pages.serve(request)

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": API_VERSION, "qwenbox": __version__})

    async def tags(self, _: Request) -> Response:
        stored = {name: model for name, model in self._shelf.models().items() if model is not None}
        about = await asyncio.to_thread(lambda: {name: self._read(model) for name, model in stored.items()})
        names = {**{name: name for name in stored}, **{alias: name for alias, name in self._shelf.aliases.items() if name in stored}}
        return JSONResponse({"models": [self._row(shown, stored[name], about[name]) for shown, name in names.items()]})

    @staticmethod
    def _row(name: str, model: StoredModel, about: _About | None) -> dict[str, Any]:
        return {**_head(name, model), "modified_at": ollama.timestamp(model.created), **_details(about)}

    async def ps(self, _: Request) -> Response:
        stored, listed = self._shelf.models(), []
        for place in self._shelf.places:
            if (llm := place.llm) is None:
                continue
            model = stored.get(place.name)
            info = llm.engine.info()
            left = place.keep_alive if place.seconds_left is None else place.seconds_left
            row = _head(place.name, model) | _details(await asyncio.to_thread(self._read, model))
            size = self._shelf.held_bytes(place)
            row |= {"size": size, "size_vram": 0, "context_length": info.context_length if info else 0}
            listed.append(row | {"expires_at": ollama.timestamp(time.time() + (left if math.isfinite(left) else _FOR_EVER))})
        return JSONResponse({"models": listed})

    async def show(self, request: Request) -> Response:
        place = await self._place(request)
        model = self._shelf.models().get(place.name)
        about = await asyncio.to_thread(self._read, model)
        chat = await self._chat(place, model)
        window = self._window(place, about)
        body: dict[str, Any] = {
            "modelfile": f"FROM {ollama.tagged(place.name)}\n",
            **_details(about),
            "model_info": dict(about.info if about else {}),
        }
        if model is not None:
            body["modified_at"] = ollama.timestamp(model.created)
        # Continue reads the window from the parameters, and takes no empty line there.
        parameters = [f"num_ctx {window}"] if window else []
        if chat is not None:
            parameters += [f"{name} {value:g}" for name, value in _sampling(chat).items()]
            body |= {"template": _template(chat), "capabilities": _capabilities(chat)}
        return JSONResponse(body | {"parameters": "\n".join(parameters)})

    async def pull(self, request: Request) -> Response:
        """Fetches a model of the catalogue, line by line saying how far it is. A client that leaves ends it; the next pull goes on where it was."""
        asked = validate(NamedModel, await read_body(request))
        entry = first_found(ollama.model_names(asked.named()), hub.find)
        if asked.stream is False:
            async for _ in self._pulling(entry):
                pass
            return JSONResponse({"status": "success"})

        async def frames(_: Write) -> AsyncGenerator[bytes]:
            async for line in self._pulling(entry):
                yield ollama.frame(line)

        def failed(error: QwenboxError) -> bytes:
            return ollama.frame(error_body(error.to_wire(), OLLAMA_PATH))

        return EventResponse(frames, failed, {}, Attempt(0), media_type=ollama.MEDIA_TYPE)

    async def copy(self, request: Request) -> Response:
        """Gives a model another name until the service ends: nobody needs its bytes twice."""
        asked = validate(Copy, await read_body(request))
        place = first_found(ollama.model_names(asked.source), self._shelf.place)
        name = asked.destination.removesuffix(ollama.LATEST)
        if name in self._shelf.models():
            raise RequestError(f"destination: {name} is the name of a model already.", param="destination", status=409)
        if len(self._shelf.aliases) >= MAX_ALIASES:
            raise RequestError(f"There are {MAX_ALIASES} further names already; delete one first.", param="destination")
        self._shelf.aliases[name] = place.name
        return JSONResponse(
            {"status": "success", "qwenbox": f"until the service ends; started with --alias {name}={place.name} it has the name always"}
        )

    async def delete(self, request: Request) -> Response:
        """Removes a further name, or a model that was pulled into our cache, and no other."""
        names = ollama.model_names(validate(NamedModel, await read_body(request)).named())
        for name in names:
            if self._shelf.aliases.pop(name, None) is not None:
                return Response()
        place = first_found(names, self._shelf.place)
        model, entry = self._shelf.models().get(place.name), hub.CATALOGUE.get(place.name)
        path = None if entry is None else hub.pulled(entry, self._settings)
        if entry is None or path is None or (model is not None and model.path != path):
            where = "" if model is None else f" It is at {model.path}."
            raise RequestError(f"{place.name} was not pulled by qwenbox, so it is not deleted.{where}", param="model", code="not_ours")
        if place is self._shelf.default:
            raise RequestError(
                f"{place.name} is the model that this service was started with: start it with another one first.", param="model", status=409
            )
        await self._shelf.unload(place)
        await asyncio.to_thread(hub.remove, entry, self._settings)
        return Response()

    async def create(self, _: Request) -> Response:
        raise _unsupported(
            "This service builds no models out of a Modelfile. Send the system prompt and the options with each request; give a model another name "
            "with /api/copy; start the service with a .gguf file, or set models_dir to the folder that has it, to use it as it is."
        )

    async def push(self, _: Request) -> Response:
        raise _unsupported(
            "This service sends no models to a registry: the file is on its own machine, and /v1/models says under which name. Upload it with the "
            "tool of the hub that is to have it."
        )

    # --- models -----------------------------------------------------------------------------------------------------------

    async def _place(self, request: Request) -> Place:
        """The model that a request is about."""
        return first_found(ollama.model_names(validate(NamedModel, await read_body(request)).named()), self._shelf.place)

    def _window(self, place: Place, about: _About | None) -> int:
        """Tokens of prompt and answer together; 0 where nobody knows yet."""
        if place.llm is not None and place.llm.engine.info() is not None:
            return place.llm.context_length
        return 0 if about is None else min(about.window, self._settings.context_length or about.window)

    def _read(self, model: StoredModel | None) -> _About | None:
        """What the headers of a model's files say; None where there are none, or where they are no model."""
        if model is None or model.path is None:
            return None
        if model.path not in self._about:
            from qwenbox.model.load import model_facts  # not at the top: a service that nobody asks this never needs it

            try:
                facts = model_facts(model.path)
            except QwenboxError:
                return None
            config, family = facts.config, facts.config.architecture.replace("_", "")
            details = {
                "parent_model": "",
                "format": "safetensors" if model.path.is_dir() else "gguf",
                "family": family,
                "families": [family],
                "parameter_size": f"{facts.parameters / 1e9:.1f}B" if facts.parameters >= 1e9 else f"{facts.parameters / 1e6:.2f}M",
                "quantization_level": facts.kind.upper(),
            }
            info = {
                "general.architecture": family,
                "general.basename": model.path.name.removesuffix(".gguf"),
                "general.parameter_count": facts.parameters,
                f"{family}.context_length": config.context_length,
                f"{family}.embedding_length": config.hidden_size,
                f"{family}.block_count": config.num_layers,
                f"{family}.attention.head_count": config.num_heads,
                f"{family}.attention.head_count_kv": config.num_kv_heads,
            }
            self._about[model.path] = _About(details, info, config.context_length)
        return self._about[model.path]

    async def _chat(self, place: Place, model: StoredModel | None) -> ChatFormat | None:
        """A model's chat format: the one in use where it is loaded, else of its files. None where there are none, or where they are no model."""
        if place.llm is not None and place.llm.nature is not None:
            return place.llm.chat_format
        if model is None or model.path is None:
            return None
        try:
            chat = await asyncio.to_thread(open_chat, model.path)
        except QwenboxError:
            return None
        chat.close()  # what runs its template; what it says stays
        return chat

    async def _pulling(self, entry: Entry) -> AsyncGenerator[dict[str, Any]]:
        """Progress as Ollama tells it. Closing the iterator ends the pull."""
        now: tuple[Phase, int, int] = "fetching", 0, 0
        left = False

        def report(phase: Phase, done: int, total: int) -> None:
            nonlocal now
            if left:
                raise QwenboxError("The client has left.")
            now = phase, done, total

        digest = f"sha256:{entry.source.sha256}" if isinstance(entry.source, Packages) else entry.source.name
        yield {"status": "pulling manifest"}
        pull = asyncio.create_task(asyncio.to_thread(hub.pull, entry, self._settings, report))
        try:
            told = None
            while not pull.done():
                await asyncio.wait({pull}, timeout=PROGRESS_SECONDS)
                phase, done, total = now
                if total and now != told:
                    status = f"pulling {digest.removeprefix('sha256:')[:12]}" if phase == "fetching" else "verifying sha256 digest"
                    yield {"status": status, "digest": digest, "total": total, "completed": done}
                    told = now
            pull.result()
        finally:
            left = True
            pull.add_done_callback(lambda task: task.cancelled() or task.exception())
        yield {"status": "writing manifest"}
        yield {"status": "success"}


def _unsupported(message: str) -> RequestError:
    return RequestError(message, status=501, code="unsupported")


def _head(name: str, model: StoredModel | None) -> dict[str, Any]:
    """The digest names the files as they are, not their bytes: nobody reads gigabytes for a list."""
    size, created = (model.size_bytes, model.created) if model else (0, 0)
    digest = hashlib.sha256(f"{name}\n{size}\n{created}".encode()).hexdigest()
    return {"name": ollama.tagged(name), "model": ollama.tagged(name), "size": size, "digest": digest}


def _details(about: _About | None) -> dict[str, Any]:
    return {"details": dict(about.details) if about else {}}


def _template(chat: ChatFormat) -> str:
    # Continue knows by the name of Ollama's variable that it may ask for what stands between two texts.
    head = "{#- /api/generate fills in what stands between .Prompt and .Suffix -#}\n" if can_infill(chat.tokenizer) else ""
    return head + chat.template.source


def _capabilities(chat: ChatFormat) -> list[str]:
    if chat.vectors.stated:
        return ["embedding"]
    there = {"tools": "tools" in chat.template.source, "insert": can_infill(chat.tokenizer), "thinking": chat.nature != "never"}
    return ["completion", *(name for name, can in there.items() if can)]


def _sampling(chat: ChatFormat) -> dict[str, float]:
    own = chat.defaults
    return {"temperature": own.temperature, "top_k": own.top_k, "top_p": own.top_p, "min_p": own.min_p, "repeat_penalty": own.repetition_penalty}
