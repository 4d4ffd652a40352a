"""Bare `qwenbox`: a model is chosen, served, and its page opened."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from .serve import announce

if TYPE_CHECKING:
    from qwenbox.server.serve import Service

Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; otherwise 8080, or the next free one.", show_default=False)]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser where there is one.")]


def start(port: int | None, browser: bool) -> int:
    """Serves until a signal ends it; returns the exit code."""
    from qwenbox.server.serve import begin
    from qwenbox.settings import is_stated, load_settings

    settings = load_settings({"port": port})

    def started(service: Service) -> None:
        if settings.port not in (0, service.port):
            typer.echo(f"Port {settings.port} is taken; this is the next free one.")
        announce(service)
        if browser and sys.stdout.isatty():
            threading.Thread(target=_open_browser, args=(service.sign_in_url,), daemon=True).start()

    return begin(
        settings,
        stated=is_stated("model", settings.state_dir),
        next_port=port is None and not is_stated("port", settings.state_dir),
        started=started,
        say=_say,
        ask=_ask,
    )


def _open_browser(url: str) -> None:
    """In a window, where this machine has one: a browser that runs in the terminal would take it."""
    import webbrowser

    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return
    if isinstance(found, webbrowser.BackgroundBrowser) or not isinstance(found, webbrowser.GenericBrowser):
        found.open(url)


def _say(text: str) -> None:
    print(text, flush=True)


def _ask(question: str, answer: Callable[[bool], None]) -> None:
    """Where somebody sits at the terminal. The page asks as well, and its answer counts if it comes first."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return

    def wait() -> None:
        print(question, end="", flush=True)
        line = sys.stdin.readline()
        if line:
            answer(line.strip().lower() in ("y", "yes"))

    threading.Thread(target=wait, daemon=True).start()
