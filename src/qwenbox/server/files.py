"""Files that people drop on the page: their text, and whether it fits."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwenbox.documents import MAX_DOCUMENT_BYTES, read_document
from qwenbox.server.routes import Routes, read_bytes

ANSWER_TOKENS = 1024
"""Tokens of the window, or a quarter of it, that are left for a question and its answer."""
MAX_READS = 4
"""Files that are held in memory at once; who sends another one waits."""


class Files:
    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._reads = asyncio.Semaphore(MAX_READS)

    async def text(self, request: Request) -> Response:
        """The text of the file that is the body; `name` and `model` come in the query. Counted in the model's tokens."""
        async with self._reads, self._routes.with_text(request.query_params.get("model")) as llm:
            data = await read_bytes(request, MAX_DOCUMENT_BYTES)
            document = await asyncio.to_thread(read_document, request.query_params.get("name", ""), data)
            num_tokens = len(await asyncio.to_thread(llm.tokenizer.encode, document.text, control=False))
            window = llm.context_length
        fits = num_tokens + min(ANSWER_TOKENS, window // 4) <= window
        return JSONResponse({**document._asdict(), "num_tokens": num_tokens, "window": window, "fits": fits})
