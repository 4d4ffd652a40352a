"""Conversations over HTTP. An answer belongs to the service: it goes on when whoever asked for it closes the page, and others may look at it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwenbox.archive import Archive, Conversation, StoredMessage
from qwenbox.archive.conversation import State
from qwenbox.archive.export import as_json, as_markdown, file_name
from qwenbox.archive.imports import as_ours, conversations_in
from qwenbox.errors import EngineError, NotFoundError, QwenboxError, RequestError
from qwenbox.generation import EventBatch
from qwenbox.llm import LocalLLM
from qwenbox.server.attempts import Attempt
from qwenbox.server.middleware import log
from qwenbox.server.routes import Routes, Running, ignored_header, raise_error, read_body, read_bytes
from qwenbox.server.shelf import Lease, Place, Shelf
from qwenbox.server.stream import EventResponse, Write
from qwenbox.server.titles import Titles
from qwenbox.types import Event, Message, Usage
from qwenbox.wire import sse
from qwenbox.wire.dialects import Dialect
from qwenbox.wire.errors import read_json_value, validate
from qwenbox.wire.openai_chat import MAX_MESSAGES, ChatCall

SAVE_SECONDS = 1.0
"""How much of an answer a power cut may take."""
MAX_TITLE = 200
MAX_QUERY = 256
MAX_LISTED = 200
MAX_IMPORT_BYTES = 32 * 1024 * 1024
MAX_IMPORTED = 2000
"""Conversations of a file."""
MAX_REMEMBERED = 1000
"""Changes of which somebody can be told one by one."""
_REFUSED = ("messages", "n", "tools", "logprobs")
"""Fields of a chat completion that an answer which is stored cannot have: its messages are those of the conversation, and it is text."""

Id = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Text = Annotated[str, Field(min_length=1)]


class MessageRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    parent: Id | None = None
    content: Text


class GivenMessage(BaseModel):
    """A message that comes from elsewhere: an export, or what a browser kept."""

    model_config = ConfigDict(strict=True, extra="ignore")
    id: Annotated[str, Field(max_length=64)] | None = None
    parent: Annotated[str, Field(max_length=64)] | None = None
    role: Literal["user", "assistant"]
    content: str
    reasoning: str = ""
    seconds: Annotated[float, Field(ge=0)] | None = None
    why: dict[str, Any] | str | None = None
    state: Literal["stopped", "length", "loop", "empty", "interrupted", "error"] | None = None
    error: dict[str, Any] | None = None
    model: Annotated[str, Field(max_length=256)] | None = None
    usage: dict[str, Any] | None = None
    created: Annotated[float, Field(ge=0)] | None = None


class ConversationRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
    title: Annotated[str, Field(max_length=MAX_TITLE)] = ""
    messages: Annotated[list[GivenMessage], Field(max_length=MAX_MESSAGES)] = []
    leaf: Annotated[str, Field(max_length=64)] | None = None
    created: Annotated[float, Field(ge=0)] | None = None
    updated: Annotated[float, Field(ge=0)] | None = None


class ChangeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    title: Annotated[str, Field(min_length=1, max_length=MAX_TITLE)] | None = None
    leaf: Id | None = None


class AnswerRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    parent: Id
    system: str | None = None


class Answer:
    """An answer while it is written. Its task writes it; streams read what there is, at their own pace."""

    def __init__(self, message: StoredMessage, conversation: str, request_id: str, dialect: Dialect, call: ChatCall, archive: Archive) -> None:
        self.message = message
        self.conversation = conversation
        self.finished = False
        """Nothing more comes; it may still be on its way to the disk."""
        self.task: asyncio.Task[None] | None = None
        self._request_id = request_id
        self._dialect = dialect
        self._archive = archive
        self._writer = partial(dialect.writer, call, id=uuid.uuid4().hex, model=message.model, created=int(message.created))
        self._events: list[Event] = []
        self._last: Event | None = None
        self._error: QwenboxError | None = None
        self.state: State | None = "running"
        self._stored: dict[str, Any] | None = None
        self._stopped = False
        self._running: Running | None = None
        self._thinking = [0.0, 0.0]
        self._streams: list[_Stream] = []

    # --- writing ------------------------------------------------------------------------------------------------------

    async def write(self, lease: Lease, seconds: float, begin: Callable[[LocalLLM], Awaitable[Running]]) -> None:
        """Runs to the end of the answer, whatever that is; it is stored then. `seconds`: how long it may wait for its model."""
        saver = asyncio.create_task(self._save_now_and_then())
        interrupted = False
        try:
            await self._generate(lease, seconds, begin)
        except QwenboxError as error:
            self._error = error
        except asyncio.CancelledError:
            interrupted = not self._stopped  # else nothing ran yet that could be told to stop
        except Exception:
            log.exception("an answer failed", extra={"fields": {"request_id": self._request_id}})
            self._error = EngineError("The service failed; its log says why.", code="internal_error")
        finally:
            saver.cancel()
            self.finished = True
        await self._store(interrupted)
        self._change()

    async def _generate(self, lease: Lease, seconds: float, begin: Callable[[LocalLLM], Awaitable[Running]]) -> None:
        with lease:
            if (llm := await lease.ready(seconds)) is None:
                raise lease.waiting_error()
            self._running = await begin(llm)
            reader = self._running.reader
            self._change()
            reader.shortcut = self._absorb_all  # no task has to wake for a token but those of streams
            if self._stopped:
                reader.generation.cancel()
            async with aclosing(reader.batches()) as batches:
                async for batch in batches:
                    self._absorb(batch)
                    raise_error(batch)

    def _absorb_all(self, batch: EventBatch) -> bool:
        if any(event.kind == "error" for _, event in batch):
            return False
        self._absorb(batch)
        return True

    def _absorb(self, batch: EventBatch) -> None:
        new = []
        for _, event in batch:
            if event.kind == "finish":
                self._last = event
            elif event.kind != "error":
                new.append(event)
                if event.kind == "reasoning":
                    now = time.monotonic()
                    self._thinking = [self._thinking[0] or now, now]
        if new:
            self._events += new
            for stream in self._streams:
                stream.offer(new)

    def _change(self) -> None:
        for stream in self._streams:
            stream.changed.set()

    async def _save_now_and_then(self) -> None:
        saved = 0
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            if len(self._events) > saved:
                saved = len(self._events)
                content, reasoning = self._text("content"), self._text("reasoning")
                try:
                    there = await self._archive.do(lambda store: store.save_answer(self.message.id, content, reasoning))  # noqa: B023
                except QwenboxError:
                    continue  # the log says why; what counts is the end
                if not there:
                    self.cancel()

    async def _store(self, interrupted: bool) -> None:
        self.state = self._ended_as(interrupted)
        known: dict[str, Any] = {"state": self.state}
        if self._error is not None:
            known["error"] = {"message": self._error.message, "code": self._error.error_code}
        if self._thinking[0]:
            known["seconds"] = round(self._thinking[1] - self._thinking[0], 2)
        if (last := self._last) is not None:
            known["why"] = last.detail.get("thinking")
            if last.usage is not None:
                known["usage"] = _usage(last.usage, last.timings or {})
        content, reasoning = self._text("content"), self._text("reasoning")
        try:
            await self._archive.do(lambda store: store.end_answer(self.message.id, content, reasoning, **known))
        except QwenboxError as error:
            self._error = self._error or error
        self._stored = {"message": self.message.id, **{name: value for name, value in known.items() if value is not None}}

    def _ended_as(self, interrupted: bool) -> State | None:
        if self._error is not None:
            return "error"
        if interrupted:
            return "interrupted"
        last = self._last
        if last is None or last.finish_reason == "cancelled":
            return "stopped"
        if last.finish_reason == "length":
            return "loop" if last.detail.get("stop_detail") == "loop" else "length"
        return None if any(event.text for event in self._events) else "empty"

    @property
    def content(self) -> str:
        return self._text("content")

    def _text(self, kind: str) -> str:
        return "".join(event.text for event in self._events if event.kind == kind)

    # --- what people do with it ---------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Ends it; what there is is kept."""
        self._stopped = True
        if self._running is not None:
            self._running.reader.generation.cancel()
        elif self.task is not None:
            self.task.cancel()

    def answer_now(self) -> None:
        """Ends its thought."""
        if self._running is not None:
            self._running.reader.generation.answer_now()

    def failure(self, error: QwenboxError) -> list[dict[str, Any]]:
        """The last chunks of a stream that an error ends."""
        return self._writer().failure(error.to_wire(), self._request_id)

    def body(self) -> dict[str, Any]:
        """The message as it is now."""
        text = {"content": self._text("content"), "reasoning": self._text("reasoning"), "request_id": self._request_id}
        return self.message.body() | {name: value for name, value in text.items() if value or name == "content"}

    async def frames(self, write: Write) -> AsyncGenerator[bytes]:
        """Chunks of a chat completion, from the beginning: what came before somebody looked comes in one piece. Before and after it, chunks
        without a choice name the message: how it is cancelled, and how it ended, once it is on the disk. Raises the error that ended it."""
        frame, writer, seen, started = self._dialect.frame, self._writer(), 0, False
        empty = writer.start(0)[0]
        about = {"message": self.message.id, "parent": self.message.parent, "request_id": self._request_id}

        def take(events: Sequence[Event]) -> bool:
            nonlocal seen
            if not started or seen + len(events) != len(self._events):
                return False
            if not write(lambda: b"".join([frame(chunk) for event in events for chunk in writer.chunks(0, event)])):
                return False
            seen += len(events)
            return True

        stream = _Stream()
        self._streams.append(stream)
        try:
            yield frame(_beside(empty, about))
            while True:
                stream.changed.clear()
                stored, chunks = self._stored, []
                if not started and self._running is not None:
                    started, chunks = True, writer.start(self._running.prompt_tokens)
                events, seen = _joined(self._events[seen:]), len(self._events)
                chunks += [chunk for event in events for chunk in writer.chunks(0, event)]
                if chunks:
                    yield b"".join(map(frame, chunks))
                if stored is not None:
                    break
                if not await stream.wait(take):
                    yield b""
        finally:
            self._streams.remove(stream)
        last = [] if self._last is None else writer.chunks(0, self._last)
        yield b"".join(map(frame, [*last, _beside(empty, stored)]))
        if self._error is not None:
            raise self._error
        yield b"".join([*map(frame, writer.end()), self._dialect.done])


class _Stream:
    """Somebody who reads an answer. While its task sleeps and has seen everything, new text is written past it; where that fails, it is woken."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._take: Callable[[Sequence[Event]], bool] | None = None

    async def wait(self, take: Callable[[Sequence[Event]], bool]) -> bool:
        """Until something has to be looked at; False after a silence."""
        self._take = take
        try:
            async with asyncio.timeout(sse.KEEP_ALIVE_SECONDS):
                await self.changed.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._take = None

    def offer(self, events: Sequence[Event]) -> None:
        if self._take is not None:
            # What it raises is raised again by its own task, and not here, where an answer is written and others read.
            with suppress(Exception):
                if self._take(events):
                    return
        self.changed.set()


class Conversations:
    """The handlers. `dialect` is that of chat completions: answers speak it."""

    def __init__(
        self, archive: Archive, shelf: Shelf, routes: Routes, dialect: Dialect, *, request_timeout: float, tasks: set[asyncio.Task[None]]
    ) -> None:
        """`tasks`: those that get some time to end when the service stops."""
        self._archive = archive
        self._shelf = shelf
        self._routes = routes
        self._dialect = dialect
        self._request_timeout = request_timeout
        self._tasks = tasks
        self._answers: dict[str, Answer] = {}
        """Under way, by conversation."""
        self._beginning: set[str] = set()
        """Conversations whose answer is on its way to the disk before it begins."""
        # A service that was started again goes on with larger numbers: what somebody knows of the one before is not taken for its own.
        self._news: deque[tuple[int, str]] = deque([(int(time.time() * 1000), "")], MAX_REMEMBERED)
        """Numbers of changes, each with its conversation."""
        self._titles = Titles(archive, shelf, self._tell)
        self._import = asyncio.Semaphore(1)

    # --- conversations ------------------------------------------------------------------------------------------------

    async def list(self, request: Request) -> Response:
        given = request.query_params
        query, limit, before = given.get("query", ""), given.get("limit", "50"), given.get("before")
        if len(query) > MAX_QUERY:
            raise RequestError(f"query: at most {MAX_QUERY} characters.", param="query")
        if not limit.isdecimal() or not 1 <= int(limit[:9]) <= MAX_LISTED:
            raise RequestError(f"limit: a number from 1 to {MAX_LISTED}.", param="limit")
        found, more = await self._archive.do(lambda store: store.list(query, int(limit), before))
        listed = [summary.body() | ({"running": True} if summary.id in self._answers else {}) for summary in found]
        return JSONResponse({"conversations": listed, "more": more})

    async def create(self, request: Request) -> Response:
        """Empty, or with messages: an export is taken back, and so is what a browser kept."""
        made = await self._create(validate(ConversationRequest, await read_body(request)))
        return JSONResponse(made.body(), 201)

    async def take(self, request: Request) -> Response:
        """The conversations of a file, of ours or of another program. What cannot be taken is named with the reason, and keeps nothing else out."""
        async with self._import:
            data = await read_bytes(request, MAX_IMPORT_BYTES)
            given = conversations_in(await asyncio.to_thread(read_json_value, data))
            if len(given) > MAX_IMPORTED:
                raise RequestError(f"The file has {len(given)} conversations; up to {MAX_IMPORTED} are taken at once.", code="too_many_conversations")
            taken, refused = 0, []
            for one in given:
                try:
                    await self._create(await asyncio.to_thread(_imported, one))
                    taken += 1
                except RequestError as error:
                    title = one.get("title") if isinstance(one, dict) else None
                    why = {"reason": error.message, "code": error.error_code, "param": error.param}
                    refused.append({"title": title[:MAX_TITLE] if isinstance(title, str) else None, **why})
        return JSONResponse({"taken": taken, "refused": refused})

    async def _create(self, asked: ConversationRequest) -> Conversation:
        messages, before = [], None
        for number, given in enumerate(asked.messages):
            parent = given.parent if given.id is not None else before
            before = given.id if given.id is not None else f"#{number}"
            known = given.model_dump(exclude={"id", "parent", "created"})
            messages.append(StoredMessage(id=before, parent=parent, created=given.created or time.time(), **known))
        title = asked.title.strip()
        made = await self._archive.do(lambda store: store.create(title, messages, asked.leaf, asked.created, asked.updated))
        self._tell(made.id)
        return made

    async def news(self, request: Request) -> Response:
        """What has changed since `after`, a number that an earlier answer gave: ids, or None where that is not known any more."""
        after = request.query_params.get("after", "")
        if after and not after.isdecimal():
            raise RequestError("after: a number that an earlier answer gave.", param="after")
        known = bool(after) and self._news[0][0] <= int(after[:20]) <= self._news[-1][0]
        changed = list(dict.fromkeys(id for number, id in self._news if number > int(after[:20]))) if known else None
        return JSONResponse({"at": self._news[-1][0], "changed": changed})

    def _tell(self, id: str) -> None:
        self._news.append((self._news[-1][0] + 1, id))

    async def get(self, request: Request) -> Response:
        conversation = await self._read(request)
        body, answer = conversation.body(), self._answers.get(conversation.id)
        for message in body["messages"]:
            if answer is not None and message["id"] == answer.message.id:
                message |= answer.body()
            elif message.get("state") == "running":  # its service is gone
                message["state"] = "interrupted"
        return JSONResponse(body)

    async def change(self, request: Request) -> Response:
        asked, id = validate(ChangeRequest, await read_body(request)), request.path_params["id"]
        title = None if asked.title is None else " ".join(asked.title.split())
        if title == "":
            raise RequestError("title: it is empty.", param="title")
        await self._archive.do(lambda store: store.update(id, title, asked.leaf))
        self._tell(id)
        return JSONResponse({"id": id})

    async def delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        if (answer := self._answers.get(id)) is not None and answer.task is not None:
            answer.cancel()
            await asyncio.wait([answer.task])
        await self._archive.delete(id)
        self._tell(id)
        return JSONResponse({"id": id, "deleted": True})

    async def export(self, request: Request) -> Response:
        form = request.query_params.get("format", "json")
        if form not in ("json", "markdown"):
            raise RequestError("format: json or markdown.", param="format")
        conversation = await self._read(request)
        name = file_name(conversation, ".json" if form == "json" else ".md")
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
        if form == "json":
            return JSONResponse(as_json(conversation), headers=headers)
        return Response(as_markdown(conversation), media_type="text/markdown; charset=utf-8", headers=headers)

    # --- messages -----------------------------------------------------------------------------------------------------

    async def add_message(self, request: Request) -> Response:
        """A question. When this answers, it is on the disk."""
        asked, id = validate(MessageRequest, await read_body(request)), request.path_params["id"]
        message = await self._archive.do(lambda store: store.add_message(id, asked.parent, "user", asked.content))
        self._tell(id)
        return JSONResponse(message.body(), 201)

    async def answer(self, request: Request) -> Response:
        """Begins an answer to a question, and streams it."""
        body = await read_body(request)
        for name in _REFUSED:
            if body.get(name) is not None:
                raise RequestError(f"{name}: an answer of a conversation has no such field.", param=name)
        asked = validate(AnswerRequest, body)
        conversation = await self._read(request)
        history = _history(conversation, asked.parent, asked.system)
        wanted = {name: value for name, value in body.items() if name not in ("parent", "system")}
        options = body.get("stream_options")
        options = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        wanted |= {"messages": history, "stream": True, "stream_options": options}
        call = self._dialect.read_request(self._routes.checked(self._dialect, wanted))
        place, ignored = self._routes.place_of(self._dialect, call)
        if conversation.id in self._answers or conversation.id in self._beginning:
            raise RequestError("This conversation is being answered; end that answer first.", status=409, code="answer_under_way")
        self._beginning.add(conversation.id)
        try:
            message = await self._archive.do(lambda store: store.add_message(conversation.id, asked.parent, "assistant", "", place.name))
        finally:
            self._beginning.remove(conversation.id)
        request_id = request.scope["state"]["request_id"]
        answer = Answer(message, conversation.id, request_id, self._dialect, call, self._archive)
        begin = partial(self._routes.begin, request, call, {})
        self._answers[conversation.id] = self._routes.under_way[request_id] = answer
        answer.task = asyncio.create_task(answer.write(self._shelf.lease(place, call.keep_alive), self._request_timeout, begin))
        self._tell(conversation.id)
        self._tasks.add(answer.task)
        answer.task.add_done_callback(self._tasks.discard)
        answer.task.add_done_callback(partial(self._ended, answer, place if conversation.titled_by == "words" else None, call.messages))
        return self._stream(answer, ignored_header(ignored))

    async def attach(self, request: Request) -> Response:
        """The stream of the answer that is under way, from its beginning."""
        if (answer := self._answers.get(request.path_params["id"])) is None:
            raise NotFoundError("No answer is under way in this conversation.", code="no_answer_under_way")
        return self._stream(answer, {})

    def _stream(self, answer: Answer, headers: Mapping[str, str]) -> Response:
        def failed(error: QwenboxError) -> bytes:
            return b"".join(map(self._dialect.frame, answer.failure(error)))

        return EventResponse(answer.frames, failed, headers, Attempt(0), self._dialect.keep_alive)

    def _ended(self, answer: Answer, place: Place | None, asked: Sequence[Message], _: asyncio.Task[None]) -> None:
        del self._answers[answer.conversation]
        self._tell(answer.conversation)
        if place is not None and answer.content and answer.state not in ("interrupted", "error"):
            self._titles.ask(answer.conversation, place, (*asked, Message("assistant", answer.content)))

    async def _read(self, request: Request) -> Conversation:
        id: str = request.path_params["id"]
        return await self._archive.do(lambda store: store.get(id))


def _imported(given: Any) -> ConversationRequest:
    """Raises RequestError."""
    return validate(ConversationRequest, as_ours(given))


def _history(conversation: Conversation, parent: str, system: str | None) -> list[dict[str, str]]:
    """The messages of a chat completion that answers the question `parent`. Answers that have no text are left out."""
    branch = conversation.branch(parent)
    if not branch or branch[-1].role != "user":
        raise RequestError("parent: the conversation has no such question.", param="parent")
    messages = [{"role": message.role, "content": message.content} for message in branch if message.content]
    return [{"role": "system", "content": system}, *messages] if system else messages


def _usage(usage: Usage, timings: Mapping[str, float]) -> dict[str, float]:
    known = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    seconds = timings.get("decode", 0.0)
    return known | ({"tokens_per_second": round((usage.completion_tokens - 1) / seconds, 2)} if seconds > 0 and usage.completion_tokens > 1 else {})


def _beside(chunk: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """A chunk that says something of the message and nothing of its text."""
    return {**chunk, "choices": [], "qwenbox": about}


def _joined(events: list[Event]) -> list[Event]:
    """Neighbours of one kind as one event: there is one where the stream keeps up."""
    joined: list[Event] = []
    for event in events:
        if joined and joined[-1].kind == event.kind:
            joined[-1] = replace(event, text=joined[-1].text + event.text, ids=joined[-1].ids + event.ids)
        else:
            joined.append(event)
    return joined
