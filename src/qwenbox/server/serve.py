"""The service on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn

from qwenbox.archive import Archive
from qwenbox.engine.slices import FRONT_SECONDS, ask_slice
from qwenbox.errors import UsageError
from qwenbox.llm import READY_POLL_SECONDS, LocalLLM
from qwenbox.server.app import create_app
from qwenbox.server.auth import ServiceKey, is_loopback, local_url, service_key
from qwenbox.server.choice import Choice
from qwenbox.server.forecast import Forecast
from qwenbox.server.middleware import LogLines, log
from qwenbox.server.ollama import PORT as OLLAMA_PORT
from qwenbox.server.protocol import Protocol
from qwenbox.server.shelf import Shelf, Source
from qwenbox.server.stock import Stock, read_aliases
from qwenbox.settings import Settings

KEEP_ALIVE_SECONDS = 75
WATCH_SECONDS = 0.5
TELL_SECONDS = 5.0
"""How often the log says how far the model is."""
FAILED_SECONDS = 2.0
"""How long a service whose model cannot be had still answers: /ready and the page, which ask every second, say why."""
DRAIN_SECONDS = 10
"""What running answers get to end when the service stops."""


class Service:
    """`llm`, and the other models of `source`, behind HTTP. The socket listens from the start on, so `url` is known before anything runs."""

    def __init__(
        self,
        llm: LocalLLM | None,
        settings: Settings,
        source: Source | None = None,
        choice: Choice | None = None,
        *,
        forecast: Forecast | None = None,
        next_port: bool = False,
    ) -> None:
        """Without `llm`, `choice` decides which of the source's models answers. `next_port`: where the port is taken, the next one is as good."""
        source = source or Stock(settings, None if llm is None else llm.metrics)
        aliases = read_aliases(settings.alias, "" if llm is None else llm.name)
        self.shelf = Shelf(source, llm, keep_alive=settings.keep_alive, max_waiting=max(settings.max_queue, 1), aliases=aliases)
        self.key: ServiceKey = service_key(settings)
        self._sockets = _listen_everywhere(settings, next_port)
        self.archive = Archive(settings.data_dir if settings.archive else None)
        self._host = settings.host
        self.port: int = self._sockets[0].getsockname()[1]
        tasks: set[asyncio.Task[None]] = set()
        config = uvicorn.Config(
            create_app(self.shelf, settings, self.archive, self.key, choice, forecast, tasks),
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        self._choice = choice
        self._server = _Server(config)
        self._server.server_state.tasks = tasks  # the server gives them DRAIN_SECONDS
        if choice is not None:
            self._server.started_up = lambda: choice.begin(self.shelf)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the service."""
        return local_url(self._host, self.port)

    @property
    def sign_in_url(self) -> str:
        """`url` with the key in the fragment, which browsers send to nobody."""
        return self.url + "/" if self.key.text is None else f"{self.url}/#key={self.key.text}"

    def run(self) -> int:
        """Serves until SIGINT or SIGTERM. Returns the exit code of the process."""
        try:
            self._server.run(sockets=self._sockets)
        finally:
            if self._choice is not None:
                self._choice.close()
            self.shelf.close()
            self.archive.close()
        return 130 if self._server.stopped_by == signal.SIGINT else 0

    def start(self) -> None:
        """Serves in a thread until `stop`."""
        self._thread = threading.Thread(target=self.run, name="qwenbox-http")
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(uvicorn.Server):
    """uvicorn's server, which would end the process by the signal that stopped it."""

    stopped_by: int | None = None
    started_up: Callable[[], None] = staticmethod(lambda: None)
    """Called on the event loop when the service answers."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.started_up()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        self.force_exit = self.should_exit  # the second signal does not wait
        self.should_exit = True
        self.stopped_by = self.stopped_by or number


def serve(settings: Settings, *, started: Callable[[Service], None] | None = None) -> int:
    """Runs the model of the settings as a service until a signal ends it; returns the exit code. Raises why the model cannot be had.

    The port answers while the model is fetched and loaded. `started` is called when it does: the command line prints what it likes.
    """
    set_up_logging(settings.log_level)
    ask_slice(FRONT_SECONDS)
    stock = Stock(settings)  # a wrong name is known before the port is open
    with stock.open(stock.default) as llm:
        forecast = Forecast(stock)
        service = Service(llm, settings, stock, forecast=forecast)
        forecast.begin()
        if started is not None:
            started(service)
        threading.Thread(target=_watch, args=(llm, service), name="qwenbox-watch", daemon=True).start()
        code = service.run()
        if (error := llm.engine.state().error) is not None:
            raise error
        return code


def begin(
    settings: Settings,
    *,
    stated: bool,
    next_port: bool,
    started: Callable[[Service], None],
    say: Callable[[str], None],
    ask: Callable[[str, Callable[[bool], None]], None],
) -> int:
    """Runs a service that chooses its model itself until a signal ends it; returns the exit code. The page answers from the first moment on.

    `stated`: the model of the settings is a choice that was made. `say` and `ask` are `Choice`'s.
    """
    set_up_logging(settings.log_level)
    ask_slice(FRONT_SECONDS)
    stock = Stock(settings, undecided=True)
    service = Service(None, settings, stock, Choice(stock, stated=stated, say=say, ask=ask), next_port=next_port)
    started(service)
    return service.run()


def _watch(llm: LocalLLM, service: Service) -> None:
    """Says how far the model is that the service began with, and ends the service when it never will be there."""
    began = told_at = time.monotonic()
    told = ""
    while (state := llm.engine.state()).name not in ("failed", "closed"):
        now = time.monotonic()
        if state.name != told or (state.name != "ready" and now - told_at >= TELL_SECONDS):
            fields = {"model": llm.name, "seconds": round(now - began, 1)}
            if state.name != "ready":
                fields["done"] = f"{state.progress:.0%}"
            if state.total_bytes is not None:
                fields["of"] = f"{state.total_bytes / 1e9:.2f}GB"
            if state.seconds_left is not None:
                fields["seconds_left"] = round(state.seconds_left)
            log.info(state.name, extra={"fields": fields})
            told, told_at = state.name, now
        time.sleep(min(WATCH_SECONDS, READY_POLL_SECONDS if state.name != "ready" else WATCH_SECONDS))
    if state.error is not None:
        log.error("%s", state.error.message)
        time.sleep(FAILED_SECONDS)
        service.stop()


def set_up_logging(level: str) -> None:
    """Lines on stderr; stdout is for answers."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogLines())
    for name, least in (("qwenbox", level.upper()), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(least)
        logger.propagate = False


def _listen_everywhere(settings: Settings, next_port: bool) -> list[socket.socket]:
    """The service's own address first."""
    own = _listen_somewhere(settings.host, settings.port, next_port)
    if not settings.ollama or own.getsockname()[1] == OLLAMA_PORT:
        return [own]
    try:
        way_out = "Ollama's clients look there: end what has it, Ollama itself perhaps, or start without --ollama."
        return [own, _listen("127.0.0.1", OLLAMA_PORT, way_out, "ollama")]
    except UsageError:
        own.close()
        raise


def _listen_somewhere(host: str, port: int, next_port: bool) -> socket.socket:
    """On the port; with `next_port`, where it is taken, on the next free one of the ten after it, else on any."""
    way_out = "Choose another one with --port."
    for candidate in range(port, min(port + 11, 65536)) if next_port else ():
        with contextlib.suppress(UsageError):
            return _listen(host, candidate, way_out, "port")
    return _listen(host, 0 if next_port else port, way_out, "port")


def _listen(host: str, port: int, way_out: str, param: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=host == "::")
    except OSError as error:
        place = "loopback" if is_loopback(host) else host
        raise UsageError(f"Port {port} on {place} cannot be used: {error.strerror}. {way_out}", param=param) from None
