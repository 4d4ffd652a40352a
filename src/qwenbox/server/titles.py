"""Titles of conversations, which a model makes when it has nothing else to do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from qwenbox.archive import Archive
from qwenbox.errors import QwenboxError
from qwenbox.llm import LocalLLM
from qwenbox.server.middleware import log
from qwenbox.server.shelf import Place, Shelf
from qwenbox.types import Message, RequestParams, ThinkingVote
from qwenbox.wire.openai_fields import MAX_PRIORITY

WAIT_SECONDS = 0.5
"""How often it is looked whether the model is idle."""
TICK_SECONDS = 0.05
MAX_WANTED = 64
"""Titles that wait; the oldest go without."""
WHOLE_LENGTH = 6000
"""Characters of a conversation that is put before the model as it is: its keys and values are there. Of a longer one it gets excerpts."""
EXCERPT_LENGTH = 400
TITLE_LENGTH = 80

_ASKED = {
    False: "Give this conversation a title of at most six words, in its own language. Answer with the title only, without quotation marks.",
    True: "给这段对话起一个标题，不超过十二个字。只回答标题，不要引号。",
}
_PARAMS = RequestParams(max_tokens=32, temperature=0.0, priority=MAX_PRIORITY, thinking=(ThinkingVote("title", "off"),))


class Titles:
    """Makes one at a time, behind all requests. As soon as anybody asks the model something, it drops what it has and begins again later."""

    def __init__(self, archive: Archive, shelf: Shelf, given: Callable[[str], None]) -> None:
        """`given` is told the id of a conversation that has got one."""
        self._archive = archive
        self._given = given
        self._shelf = shelf
        self._wanted: dict[str, tuple[Place, Sequence[Message]]] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, conversation: str, place: Place, messages: Sequence[Message]) -> None:
        """`messages` end with an answer by the model of `place`."""
        self._wanted.pop(conversation, None)
        self._wanted[conversation] = place, messages
        if len(self._wanted) > MAX_WANTED:
            del self._wanted[next(iter(self._wanted))]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._wanted:
            conversation, (place, messages) = next(reversed(self._wanted.items()))
            title: str | None = ""
            try:
                # A model is not loaded, nor kept, for a title.
                if place.llm is not None and not place.failed:
                    title = await self._make(place, messages)
                if title:
                    await self._archive.do(lambda store: store.give_title(conversation, title))  # noqa: B023
                    self._given(conversation)
            except QwenboxError as error:
                log.info("no title", extra={"fields": {"reason": error.message}})
            if title is None:
                await asyncio.sleep(WAIT_SECONDS)
            elif self._wanted.get(conversation, (None, ()))[1] is messages:
                del self._wanted[conversation]

    async def _make(self, place: Place, messages: Sequence[Message]) -> str | None:
        """None: the model is wanted."""
        with self._shelf.lease(place) as lease:
            if (llm := await lease.ready(0)) is None or _num_requests(llm):
                return None
            prompt = await asyncio.to_thread(llm.chat_prompt, _asked(messages), (), _PARAMS)
            text = ""
            async with aclosing(llm.reader([prompt], _PARAMS, TICK_SECONDS, TICK_SECONDS, chat=True).batches()) as batches:
                async for batch in batches:
                    for _, event in batch:
                        if event.kind == "error":
                            raise QwenboxError.from_wire(event.error or {})
                        text += event.text if event.kind == "content" else ""
                    if _num_requests(llm) > 1:
                        return None
        return tidy(text)


def _num_requests(llm: LocalLLM) -> int:
    stats = llm.engine.stats()
    return stats.running + stats.waiting


def _asked(messages: Sequence[Message]) -> list[Message]:
    chinese = any("\u4e00" <= letter <= "\u9fff" for letter in next((one.content for one in messages if one.role == "user"), ""))
    if sum(len(message.content) for message in messages) > WHOLE_LENGTH:
        messages = [replace(message, content=message.content[:EXCERPT_LENGTH]) for message in messages if message.role != "system"][:2]
    return [*messages, Message("user", _ASKED[chinese])]


def tidy(text: str) -> str:
    """The title that an answer is, without what models like to put around it; empty where it is none."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"^[\s#*>-]*((title|标题)\s*[:：])?", "", line, flags=re.IGNORECASE)
    line = line.strip().strip("*\"'`“”‘’「」《》").rstrip(".。").strip()
    return line if len(line) <= TITLE_LENGTH else ""
