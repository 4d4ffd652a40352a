"""The service as one ASGI app: the table of routes, and what stands before them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qwenbox.archive import Archive
from qwenbox.errors import NotFoundError, QwenboxError, RequestError
from qwenbox.server.auth import ServiceKey, is_loopback, service_key
from qwenbox.server.choice import Choice
from qwenbox.server.conversations import Conversations
from qwenbox.server.files import Files
from qwenbox.server.forecast import Forecast
from qwenbox.server.middleware import Auth, Guard, RequestLog, error_response
from qwenbox.server.ollama import OllamaRoutes
from qwenbox.server.pages import Pages
from qwenbox.server.routes import Routes
from qwenbox.server.shelf import Shelf
from qwenbox.server.stream import ClientGone, RefusedBody
from qwenbox.settings import Settings
from qwenbox.wire.dialects import CHAT, DIALECTS
from qwenbox.wire.embeddings import EMBEDDINGS
from qwenbox.wire.openai_chat import REASONING_FIELDS, ChatWriter

PUBLIC = ("/health", "/healthz", "/ready", "/readyz")
"""Paths that need no key, beside those of the page."""


def create_app(
    shelf: Shelf,
    settings: Settings,
    archive: Archive,
    key: ServiceKey | None = None,
    choice: Choice | None = None,
    forecast: Forecast | None = None,
    tasks: set[asyncio.Task[None]] | None = None,
) -> Starlette:
    """The service over the models of `shelf` and the conversations of `archive`. `key` is `service_key(settings)` where the caller has it already.

    `choice` is there where the service itself chooses its model, `forecast` where it was told one. `tasks` hold those that get some time to end when
    the service stops.
    """
    routes, pages = Routes(shelf, archive, request_timeout=settings.request_timeout, strict=settings.strict), Pages()
    ollama = OllamaRoutes(shelf, settings, pages)
    routes.choice, routes.forecast = choice, forecast
    shown = REASONING_FIELDS if settings.reasoning_field == "both" else (settings.reasoning_field,)
    dialects = {**DIALECTS, "/v1/chat/completions": CHAT._replace(writer=partial(ChatWriter, reasoning_fields=shown))}
    conversations = Conversations(
        archive, shelf, routes, dialects["/v1/chat/completions"], request_timeout=settings.request_timeout, tasks=set() if tasks is None else tasks
    )
    table = [
        *(Route(path, routes.answer(dialect), methods=["POST"]) for path, dialect in dialects.items()),
        *(Route(path, routes.embed(dialect), methods=["POST"]) for path, dialect in EMBEDDINGS.items()),
        Route("/v1/messages/count_tokens", routes.count_tokens, methods=["POST"]),
        Route("/v1/requests/{request_id}/cancel", routes.cancel, methods=["POST"]),
        Route("/v1/requests/{request_id}/answer", routes.answer_now, methods=["POST"]),
        Route("/v1/models", routes.models),
        Route("/v1/models/{model:path}/load", routes.load, methods=["POST"]),
        Route("/v1/models/{model:path}/unload", routes.unload, methods=["POST"]),
        Route("/v1/models/{model:path}", routes.model),
        Route("/conversations", conversations.list),
        Route("/conversations", conversations.create, methods=["POST"]),
        Route("/conversations/import", conversations.take, methods=["POST"]),
        Route("/conversations/news", conversations.news),
        Route("/conversations/{id}", conversations.get),
        Route("/conversations/{id}", conversations.change, methods=["PATCH"]),
        Route("/conversations/{id}", conversations.delete, methods=["DELETE"]),
        Route("/conversations/{id}/export", conversations.export),
        Route("/conversations/{id}/messages", conversations.add_message, methods=["POST"]),
        Route("/conversations/{id}/answer", conversations.answer, methods=["POST"]),
        Route("/conversations/{id}/answer", conversations.attach),
        Route("/files/text", Files(routes).text, methods=["POST"]),
        Route("/tokenize", routes.tokenize, methods=["POST"]),
        Route("/tokenizer_info", routes.tokenizer_info),
        Route("/detokenize", routes.detokenize, methods=["POST"]),
        Route("/health", routes.health),
        Route("/healthz", routes.health),
        Route("/ready", routes.ready),
        Route("/readyz", routes.ready),
        Route("/version", routes.version),
        *([] if choice is None else [Route("/choice", choice.get), Route("/choice", choice.post, methods=["POST"])]),
        Route("/metrics", routes.metrics),
        Route("/api/tags", ollama.tags),
        Route("/api/ps", ollama.ps),
        Route("/api/show", ollama.show, methods=["POST"]),
        Route("/api/pull", ollama.pull, methods=["POST"]),
        Route("/api/delete", ollama.delete, methods=["DELETE"]),
        Route("/api/copy", ollama.copy, methods=["POST"]),
        Route("/api/create", ollama.create, methods=["POST"]),
        Route("/api/blobs/{digest}", ollama.create, methods=["HEAD", "POST"]),
        Route("/api/push", ollama.push, methods=["POST"]),
        Route("/api/version", ollama.version),
        Route("/", ollama.root),
        *(Route(path, pages.serve) for path in pages.paths if path != "/"),
    ]
    known = {route.path for route in table}

    def route_of(path: str) -> str:
        """The route's path: a label from a fixed set, whatever clients ask for."""
        if path in known:
            return path
        if path.startswith("/v1/requests/"):
            return f"/v1/requests/{{request_id}}/{'answer' if path.endswith('/answer') else 'cancel'}"
        if path.startswith("/conversations/"):
            what = path.rsplit("/", 1)[-1]
            return "/conversations/{id}" + (f"/{what}" if what in ("export", "messages", "answer") else "")
        if path.startswith("/api/blobs/"):
            return "/api/blobs/{digest}"
        return "/v1/models/{model}" if path.startswith("/v1/models/") else "other"

    # On loopback no key is asked for, so only the names of this machine are answered to.
    hosts = {"localhost", "127.0.0.1", "[::1]", settings.host.lower()} if is_loopback(settings.host) else None
    app = Starlette(
        routes=table,
        middleware=[
            Middleware(RequestLog, shelf.metrics, route_of),
            Middleware(Guard, hosts),
            Middleware(Auth, key or service_key(settings), frozenset(PUBLIC) | frozenset(pages.paths)),
        ],
        exception_handlers={QwenboxError: _refused, HTTPException: _not_routed, ClientGone: _gone},
    )
    app.router.redirect_slashes = False
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, QwenboxError)
    response = error_response(error, request.scope)
    # Starlette calls whatever a handler returns; the rest of these bodies is not wanted.
    return cast(Response, RefusedBody(response)) if error.http_status in (408, 413, 415) else response


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        response = error_response(RequestError(f"This path knows {allowed} only.", status=405, code="method_not_allowed"), request.scope)
        response.headers["allow"] = allowed
        return response
    return error_response(NotFoundError("There is nothing at this path.", code="not_found"), request.scope)


async def _gone(_: Request, __: Exception) -> Response:
    """For the log and the metrics: nobody reads it."""
    return Response(status_code=499)
