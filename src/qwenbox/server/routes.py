"""The routes: JSON in, a call of the model, JSON or a stream out."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
import uuid
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwenbox import __version__
from qwenbox.archive import Archive
from qwenbox.errors import NotFoundError, PayloadTooLargeError, QwenboxError, RequestError
from qwenbox.generation import AsyncReader, EventBatch
from qwenbox.llm import LocalLLM, Prompt, unit_vector
from qwenbox.server.attempts import Attempts, retry_count
from qwenbox.server.shelf import Place, Shelf
from qwenbox.server.stock import StoredModel
from qwenbox.server.stream import EventResponse, Write, until_disconnect
from qwenbox.types import Event, RequestParams
from qwenbox.wire import anthropic_messages, openai_chat, sse
from qwenbox.wire.background import as_background, background_job
from qwenbox.wire.dialects import MESSAGES, Call, Dialect, Writer
from qwenbox.wire.embeddings import EmbeddingCall, EmbeddingDialect, EmbeddingWriter
from qwenbox.wire.errors import error_headers, read_json, validate
from qwenbox.wire.ollama import OllamaWriter
from qwenbox.wire.openai_completions import CompletionCall
from qwenbox.wire.thinking_fields import thinking_votes

if TYPE_CHECKING:
    from qwenbox.server.choice import Choice
    from qwenbox.server.forecast import Forecast

MAX_BODY_BYTES = 8 * 1024 * 1024
BODY_SECONDS = 60.0
READY_SECONDS = 60.0
"""How long a request that does not stream waits for its model to be loaded; one that streams waits as long as a request may take."""
CLIENT_SECONDS = 600.0
"""How long OpenAI's and Anthropic's clients wait for an answer."""
FIRST_SECONDS = 1.0
"""How long a stream's head waits for its first event, so that an error which comes at once is a status and not an event."""
MAX_IDS = 1_000_000
Found = TypeVar("Found")
_FIELD_NAME = r"[A-Za-z0-9_.-]{1,64}"


class UnderWay(Protocol):
    """An answer that may be told to end, or to come to its point."""

    @property
    def finished(self) -> bool: ...
    def cancel(self) -> None: ...
    def answer_now(self) -> None: ...


class Running(NamedTuple):
    reader: AsyncReader
    prompt_tokens: int


class TokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    model: str | None = None
    prompt: str | None = None
    messages: list[openai_chat.ChatMessage] | None = Field(None, min_length=1, max_length=openai_chat.MAX_MESSAGES)
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    model: str | None = None
    tokens: list[int] = Field(max_length=MAX_IDS)


class Routes:
    """The handlers, over the models of a shelf."""

    def __init__(self, shelf: Shelf, archive: Archive, *, request_timeout: float, strict: bool) -> None:
        """`strict`: a field that no table knows is refused."""
        self._shelf = shelf
        self._archive = archive
        self._request_timeout = request_timeout
        self._strict = strict
        self.under_way: weakref.WeakValueDictionary[str, UnderWay] = weakref.WeakValueDictionary()
        """By the id of the HTTP request."""
        self.choice: Choice | None = None
        """Where the service itself chooses its model."""
        self.forecast: Forecast | None = None
        """Where it was told one."""
        self._attempts = Attempts()

    # --- generation ---------------------------------------------------------------------------------------------------

    def answer(self, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
        """The route on which a dialect is spoken."""
        return partial(self._answer, dialect)

    async def _answer(self, dialect: Dialect, request: Request) -> Response:
        body = await read_bytes(request)
        call = dialect.read_request(self.checked(dialect, read_json(body)))
        place, ignored = self.place_of(dialect, call)
        request_id = request.scope["state"]["request_id"]
        writer = dialect.writer(call, id=uuid.uuid4().hex, model=place.name, created=int(time.time()))
        headers = ignored_header(ignored)
        if isinstance(writer, OllamaWriter) and isinstance(call, openai_chat.ChatCall) and not call.messages:
            return JSONResponse(writer.nothing(await self._load_or_unload(place, call.keep_alive)), headers=headers)
        begin = partial(self.begin, request, call, headers)
        if call.stream:

            def failed(error: QwenboxError) -> bytes:
                return b"".join(map(dialect.frame, writer.failure(error.to_wire(), request_id)))

            frames = partial(self._frames, dialect, place, call.keep_alive, begin, writer)
            return EventResponse(frames, failed, headers, await self._attempts.begin(request, body), dialect.keep_alive, dialect.media_type)
        events: EventBatch = []
        async with self._answering(request, body, place, call.keep_alive) as llm:
            reader, prompt_tokens = await begin(llm)
            writer.start(prompt_tokens)
            async with aclosing(reader.batches()) as batches:
                async for batch in batches:
                    events += batch
                    raise_error(batch)
        return JSONResponse(writer.completion(events), headers=headers)

    def embed(self, dialect: EmbeddingDialect) -> Callable[[Request], Awaitable[Response]]:
        """The route on which vectors are asked for in a dialect."""
        return partial(self._embed, dialect)

    async def _embed(self, dialect: EmbeddingDialect, request: Request) -> Response:
        body = await read_bytes(request)
        call = dialect.read_request(self.checked(dialect, read_json(body)))
        place, ignored = self.place_of(dialect, call)
        writer = EmbeddingWriter(dialect, call, place.name)
        headers = ignored_header(ignored)
        if not call.inputs:
            await self._load_or_unload(place, call.keep_alive)
            return Response(writer.body(), headers=headers, media_type="application/json")
        async with self._answering(request, body, place, call.keep_alive) as llm:
            writer.start()
            llm.check_dimensions(call.dimensions)
            prompts, cut = await asyncio.to_thread(_vector_prompts, llm, call)
            reader = llm.vector_reader(prompts, replace(call.params, attempt=retry_count(request)))
            async with aclosing(reader.batches()) as batches:
                async for batch in batches:
                    raise_error(batch)
                    for index, event in batch:
                        writer.add(index, unit_vector(event, call.dimensions), event.usage)
            made = await asyncio.to_thread(writer.body, llm.vectors, cut)
        return Response(made, headers=headers, media_type="application/json")

    @asynccontextmanager
    async def _answering(self, request: Request, body: bytes, place: Place, keep_alive: float | None) -> AsyncGenerator[LocalLLM]:
        """The model of an answer that does not stream. The block ends early when its client goes, or asks again."""
        attempt = await self._attempts.begin(request, body)
        try:
            async with until_disconnect(request.receive, attempt), self._held(place, keep_alive) as llm:
                yield llm
        finally:
            attempt.end()

    @asynccontextmanager
    async def _held(self, place: Place, keep_alive: float | None = None) -> AsyncGenerator[LocalLLM]:
        """A model, loaded if it is not there, that stays for the block. Raises what a client is told whose model takes too long to load."""
        with self._shelf.lease(place, keep_alive) as lease:
            if (llm := await lease.ready(READY_SECONDS)) is None:
                raise lease.waiting_error()
            yield llm

    async def _load_or_unload(self, place: Place, keep_alive: float | None) -> Literal["load", "unload"]:
        """What a request of Ollama's dialect wants that says nothing."""
        if keep_alive == 0:
            await self._shelf.unload(place)
            return "unload"
        async with self._held(place, keep_alive):
            return "load"

    async def _frames(
        self,
        dialect: Dialect,
        place: Place,
        keep_alive: float | None,
        begin: Callable[[LocalLLM], Awaitable[Running]],
        writer: Writer,
        write: Write,
    ) -> AsyncGenerator[bytes]:
        """The stream as bytes, one item a batch of events, empty ones for silence; what comes between two items goes out by `write`, where it can.

        Raises the error that ends the stream.
        """
        frame = dialect.frame
        deadline = time.monotonic() + self._request_timeout
        patience = FIRST_SECONDS

        def render(batch: EventBatch) -> bytes:
            return b"".join([frame(chunk) for index, event in batch if event.kind != "error" for chunk in writer.chunks(index, event)])

        def shortcut(batch: EventBatch) -> bool:
            return all(event.kind != "error" for _, event in batch) and write(partial(render, batch))

        with self._shelf.lease(place, keep_alive) as lease:
            while (llm := await lease.ready(min(deadline - time.monotonic(), patience))) is None:
                if time.monotonic() > deadline:
                    raise lease.waiting_error()
                yield b""
                patience = sse.KEEP_ALIVE_SECONDS
            reader, prompt_tokens = await begin(llm)
            head = b"".join(map(frame, writer.start(prompt_tokens)))
            async with aclosing(reader.batches()) as batches:
                async for batch in batches:
                    if frames := render(batch):
                        yield head + frames
                        head = b""
                        reader.shortcut = shortcut
                    raise_error(batch)
                    if not frames:
                        yield b""
        if last := b"".join([*map(frame, writer.end()), dialect.done]):
            yield last

    async def begin(self, request: Request, call: Any, headers: dict[str, str], llm: LocalLLM) -> Running:
        """The request, running. Whoever gets the reader reads it to the end or closes its batches. `headers` get what was decided of thinking."""
        # Off the loop: a long prompt takes a while to encode, and an unknown template runs in a process of its own.
        params = replace(call.params, attempt=retry_count(request), wait_seconds=None if call.stream else self._wait_seconds(request))
        chat = not isinstance(call, CompletionCall)
        if chat:
            if (job := background_job(call.messages)) is not None:
                params = as_background(params, job)
            prompts = [await asyncio.to_thread(llm.chat_prompt, call.messages, call.tools, params)]
        else:
            prompts = await asyncio.to_thread(_plain_prompts, llm, call)
            if call.suffix is not None:
                params = replace(params, stop_ids=params.stop_ids + llm.infill_stop_ids())
        if (thinking := prompts[0].thinking) is not None and thinking.stated:
            headers["x-qwenbox-thinking"] = thinking.header()
        reader = llm.reader(prompts, params, FIRST_SECONDS, sse.KEEP_ALIVE_SECONDS, chat=chat)
        self.under_way[request.scope["state"]["request_id"]] = reader.generation
        return Running(reader, sum(len(prompt.ids) for prompt in prompts))

    def _wait_seconds(self, request: Request) -> float:
        """How long the client waits for a whole answer: Stainless' clients say it, for others it is what theirs wait."""
        said = request.headers.get("x-stainless-read-timeout", "") or request.headers.get("x-stainless-timeout", "")
        return min(float(said) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", said) else CLIENT_SECONDS, self._request_timeout)

    def checked(self, dialect: Dialect | EmbeddingDialect, body: dict[str, Any]) -> dict[str, Any]:
        unknown = [name for name, value in body.items() if name not in dialect.fields and value is not None]
        if self._strict and unknown:
            name = unknown[0] if re.fullmatch(_FIELD_NAME, unknown[0]) else "the body"
            raise RequestError(f"{name}: there is no such field, and this service is strict.", param=name, code="unknown_parameter")
        return body

    def place_of(self, dialect: Dialect | EmbeddingDialect, call: Call | EmbeddingCall) -> tuple[Place, tuple[str, ...]]:
        """The model that answers a call, and what of the call has no effect."""
        try:
            return first_found(dialect.names(call.model or ""), self._shelf.place), call.ignored
        except NotFoundError:
            if dialect.foreign_models is None or not (call.model or "").startswith(dialect.foreign_models):
                raise
            return self._shelf.default, ("model", *call.ignored)

    async def cancel(self, request: Request) -> Response:
        """Ends an answer that is under way: its stream, or its waiting client, gets what there is."""
        request_id, generation = self._under_way(request)
        generation.cancel()
        return JSONResponse({"id": request_id, "cancelled": True})

    async def answer_now(self, request: Request) -> Response:
        """Ends the thinking of an answer that is under way: what it has to say follows."""
        request_id, generation = self._under_way(request)
        generation.answer_now()
        return JSONResponse({"id": request_id, "answering": True})

    def _under_way(self, request: Request) -> tuple[str, UnderWay]:
        request_id = request.path_params["request_id"]
        generation = self.under_way.get(request_id)
        if generation is None or generation.finished:
            raise NotFoundError(f"No answer is under way for the request {request_id[:64]!r}: it is over, or its x-request-id is another.")
        return request_id, generation

    # --- tokens -----------------------------------------------------------------------------------------------------------

    async def tokenize(self, request: Request) -> Response:
        asked = validate(TokenizeRequest, await read_body(request))
        if (asked.prompt is None) == (asked.messages is None):
            raise RequestError("prompt: exactly one of `prompt` and `messages` is needed.", param="prompt")
        async with self.with_text(asked.model) as llm:
            if asked.messages is not None:
                messages = [message.message() for message in asked.messages]
                params = RequestParams(thinking=thinking_votes({"chat_template_kwargs": asked.chat_template_kwargs}))
                ids, _ = await asyncio.to_thread(llm.chat_ids, messages, (), params)
            else:
                ids = await asyncio.to_thread(llm.encode_prompt, asked.prompt or "")
            info = llm.engine.info()
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": info and info.context_length})

    async def count_tokens(self, request: Request) -> Response:
        """Anthropic's count of a prompt's tokens."""
        call = anthropic_messages.read_prompt(self.checked(MESSAGES, await read_body(request)))
        place, ignored = self.place_of(MESSAGES, call)
        async with self.with_text(place.name) as llm:
            ids, _ = await asyncio.to_thread(llm.chat_ids, call.messages, call.tools, call.params)
        return JSONResponse({"input_tokens": len(ids)}, headers=ignored_header(ignored))

    async def tokenizer_info(self, request: Request) -> Response:
        """What lm-evaluation-harness asks before it has texts encoded here."""
        async with self.with_text(request.query_params.get("model")) as llm:
            tokenizer, template = llm.tokenizer, llm.chat_format.template.source
        names = {id: name for name, id in tokenizer.control_tokens.items()}
        end_of_text = names[tokenizer.eos_ids[-1]] if tokenizer.eos_ids else None
        body = {"tokenizer_class": "Qwen2Tokenizer", "vocab_size": tokenizer.vocab_limit, "chat_template": template}
        eos = {"eos_token": end_of_text, "eos_token_id": tokenizer.eos_ids[-1] if tokenizer.eos_ids else None}
        return JSONResponse(body | eos | {"bos_token": None, "pad_token": end_of_text, "model_max_length": None})

    async def detokenize(self, request: Request) -> Response:
        asked = validate(DetokenizeRequest, await read_body(request))
        async with self.with_text(asked.model) as llm:
            return JSONResponse({"prompt": await asyncio.to_thread(llm.tokenizer.decode, asked.tokens)})

    @asynccontextmanager
    async def with_text(self, name: str | None) -> AsyncGenerator[LocalLLM]:
        """A model whose tokenizer is wanted. The default need not answer yet: it may be a long way off, and says so at once."""
        place = self._shelf.place(name)
        with self._shelf.lease(place) as lease:
            if (llm := await (lease.opened if place is self._shelf.default else lease.ready)(READY_SECONDS)) is None:
                raise lease.waiting_error()
            yield llm

    # --- what there is ------------------------------------------------------------------------------------------------

    async def models(self, _: Request) -> Response:
        stored = self._shelf.models()
        return JSONResponse({"object": "list", "data": [self._model(name, model) for name, model in stored.items()]})

    async def model(self, request: Request) -> Response:
        return self._model_response(self._named(request))

    async def load(self, request: Request) -> Response:
        """Loads a model before somebody asks for it."""
        place = self._named(request)
        async with self._held(place):
            pass
        return self._model_response(place)

    async def unload(self, request: Request) -> Response:
        """Gives a model's memory back when its answers have ended."""
        place = self._named(request)
        await self._shelf.unload(place)
        return self._model_response(place)

    async def health(self, _: Request) -> Response:
        failed = self._archive.error
        kept: dict[str, Any] = {"on_disk": self._archive.path is not None} | ({"error": {"message": failed.message}} if failed else {})
        return JSONResponse({"status": "ok" if failed is None else "degraded", **self._state(), "conversations": kept})

    async def ready(self, _: Request) -> Response:
        body, llm = self._state(), self._shelf.default.llm
        # A model that was unloaded is loaded by the next request: it can be asked.
        if body["state"] in ("ready", "unloaded"):
            return JSONResponse(body)
        return JSONResponse(body, 503, {"retry-after": "1"} if llm is None else error_headers(llm.loading_error()))

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def metrics(self, _: Request) -> Response:
        return Response(self._shelf.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    def _state(self) -> dict[str, Any]:
        """How far the default model is, and what runs it once it is there."""
        place = self._shelf.default
        body: dict[str, Any] = {"state": self._shelf.state(place), "model": place.name}
        if self.choice is not None:
            body |= {"choice": self.choice.phase, **self.choice.prediction()}
        elif self.forecast is not None:
            body |= self.forecast.prediction()
        if place.llm is None:
            return body
        state, info = place.llm.engine.state(), place.llm.engine.info()
        body["progress"] = state.progress
        if state.total_bytes is not None:
            body |= {"bytes": state.done_bytes, "total_bytes": state.total_bytes}
        if state.seconds_left is not None:
            body["seconds_left"] = round(state.seconds_left, 1)
        if state.error is not None:
            body["error"] = state.error.problem._asdict()
        if info is not None:
            body |= {"isa": info.isa, "threads": info.threads}
        return body

    def _named(self, request: Request) -> Place:
        return self._shelf.place(request.path_params["model"] or "/")

    def _model_response(self, place: Place) -> Response:
        return JSONResponse(self._model(place.name, self._shelf.models().get(place.name)))

    def _model(self, name: str, stored: StoredModel | None) -> dict[str, Any]:
        """OpenAI's and Anthropic's object of a model in one, with what we know beside under `qwenbox`."""
        shelf, place = self._shelf, self._shelf.known(name)
        llm = place and place.llm
        info = llm and llm.engine.info()
        created = llm.created if llm else stored.created if stored else 0
        more: dict[str, Any] = {
            "state": "unloaded",
            "loaded": llm is not None,
            "default": place is shelf.default,
            "aliases": [alias for alias, model in shelf.aliases.items() if model == name],
            "size_bytes": stored and stored.size_bytes,
        }
        if place is not None:
            more |= {"state": shelf.state(place), "requests_running": 0, "requests_waiting": shelf.num_waiting(place)}
        if place is not None and llm:
            state, stats, left = llm.engine.state(), llm.engine.stats(), place.seconds_left
            more["progress"] = state.progress
            more["thinking"] = llm.nature
            if (speed := llm.write_speed) is not None:
                more["speed"] = {"write": round(speed, 1), "measured": True}
            more["memory_bytes"] = shelf.held_bytes(place)
            more["requests_running"] = stats.running
            more["requests_waiting"] += stats.waiting
            more["keep_alive"] = place.keep_alive if math.isfinite(place.keep_alive) else -1
            more["unloads_in"] = None if left is None else round(left, 1)
            if state.error is not None:
                more["error"] = state.error.problem._asdict()
        length = llm.context_length if llm and info else None
        if llm is None and stored is not None and (outline := shelf.outline(name)) is not None:
            length, more["need_bytes"] = outline.window, outline.need_bytes
            if (predicted := shelf.predicted_speed(outline.touched_bytes)) is not None:
                more["speed"] = {"write": round(predicted, 1), "measured": False}
        anthropics = {"type": "model", "display_name": name, "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created))}
        openais = {"id": name, "object": "model", "created": created, "owned_by": "qwenbox", "max_model_len": length}
        return openais | anthropics | {"qwenbox": more}


def first_found(names: Sequence[str], find: Callable[[str], Found]) -> Found:
    """What is found by one of the names, the likeliest first. Raises the NotFoundError of the first."""
    for name in names:
        with contextlib.suppress(NotFoundError):
            return find(name)
    return find(names[0])


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request."""
    return read_json(await read_bytes(request))


async def read_bytes(request: Request, most: int = MAX_BODY_BYTES) -> bytes:
    """The body of a request. What is too large is refused before it is read, or as soon as it is."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError("Compressed bodies are not read.", status=415)
    too_large = PayloadTooLargeError(f"The body is larger than {most} bytes.")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise RequestError(f"The body took longer than {BODY_SECONDS:g} seconds.", status=408) from None
    return bytes(body)


def _plain_prompts(llm: LocalLLM, call: CompletionCall) -> list[Prompt]:
    if call.suffix is None:
        return [llm.text_prompt(llm.encode_prompt(prompt), call.params) for prompt in call.prompts]
    return [llm.text_prompt(llm.encode_infill(prompt, call.suffix), call.params) for prompt in call.prompts]


def _vector_prompts(llm: LocalLLM, call: EmbeddingCall) -> tuple[list[list[int]], tuple[int, ...]]:
    """The ids of each input, and the numbers of those that were cut."""
    prompts = [llm.vector_ids(text, truncate=call.truncate) for text in call.inputs]
    return [ids for ids, _ in prompts], tuple(index for index, (_, cut) in enumerate(prompts) if cut)


def raise_error(batch: Sequence[tuple[int, Event]]) -> None:
    for _, event in batch:
        if event.kind == "error":
            raise QwenboxError.from_wire(event.error or {})


def ignored_header(names: tuple[str, ...]) -> dict[str, str]:
    """Tells a client which of its fields did nothing; names that a header cannot hold, and more than 32, are left out."""
    shown = [name for name in names if re.fullmatch(_FIELD_NAME, name)][:32]
    return {"x-qwenbox-ignored": ", ".join(shown)} if shown else {}
