"""A running service, asked by a command: where it is, which key it takes, and what its errors mean to a person."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from qwenbox.errors import QwenboxError, RequestError

Url = Annotated[
    str | None,
    typer.Option(help="Address of the service; otherwise that of the settings `host` and `port`, http://127.0.0.1:8080.", show_default=False),
]

START_SECONDS = 600.0
"""How long a service that we start, or a model that it loads, may take until it answers."""
END_SECONDS = 15.0


class Remote:
    """The service at `url`. A key is sent where the settings, or the file that a service on this machine made, have one."""

    def __init__(self, url: str | None) -> None:
        # Not at the top: the help of the whole command line imports this file.
        from qwenbox.server.auth import known_key, local_url
        from qwenbox.settings import load_settings

        settings = load_settings()
        self.url = (url or local_url(settings.host, settings.port)).rstrip("/")
        self.key = known_key(settings, urlsplit(self.url).hostname or "")
        self._headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    def answers(self) -> bool:
        """Whether anything does at the address."""
        import httpx2

        try:
            httpx2.get(f"{self.url}/health", timeout=5, trust_env=False)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.UnsupportedProtocol):
            return False
        return True

    def models(self) -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = self._ask("GET", "/v1/models")["data"]
        return data

    def loaded(self, model: str) -> dict[str, Any]:
        """The model when it answers, which it is loaded for; standard error hears how far it is."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self._ask("POST", f"/v1/models/{quote(model)}/load")
            except RequestError as error:
                if error.error_code != "model_loading" or time.monotonic() > deadline:
                    raise
                typer.echo(error.message, err=True)

    def threads(self) -> int:
        """Of the kernels of the model that it was started with, which is loaded."""
        return int(self._ask("GET", "/health")["threads"])

    def unload(self, model: str) -> dict[str, Any]:
        return self._ask("POST", f"/v1/models/{quote(model)}/unload")

    def count_tokens(self, text: str) -> int:
        return int(self._ask("POST", "/tokenize", {"prompt": text})["count"])

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        import httpx2

        try:
            response = httpx2.request(method, self.url + path, headers=self._headers, json=body, timeout=90, trust_env=False)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
            raise RequestError(f"{self.url} is not an address like http://127.0.0.1:8080.") from None
        except httpx2.HTTPError as error:
            raise QwenboxError(
                f"No service answers at {self.url} ({error}). Start one with `qwenbox serve`, or say with --url where it runs."
            ) from None
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.status_code == 401:
            raise RequestError(f"The service at {self.url} asks for a key: set QWENBOX_API_KEY_FILE to the file that holds it, or QWENBOX_API_KEY.")
        if isinstance(body, dict) and response.is_success:
            return body
        told = body.get("error") if isinstance(body, dict) else None
        if isinstance(told, dict) and isinstance(told.get("message"), str):
            raise RequestError(told["message"], code=told.get("code"))
        raise RequestError(f"What answers at {self.url} is no qwenbox: {response.status_code} for {path}.")


@contextmanager
def started_service(arguments: Sequence[str], remote: Remote) -> Iterator[None]:
    """`qwenbox serve` with these arguments, which is to answer at `remote`, until the block ends."""
    from qwenbox.settings import child_environment

    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "qwenbox", "serve", *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=child_environment(), start_new_session=True)
        with ended(process):
            deadline = time.monotonic() + START_SECONDS
            while not remote.answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    lines = log.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
                    raise QwenboxError(f"the service did not start: {lines[-1] if lines else 'it said nothing'}")
                time.sleep(0.2)
            yield


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process ends with the block."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
