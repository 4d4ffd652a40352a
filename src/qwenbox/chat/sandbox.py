"""Rendering of one Jinja template within bounds; also the program of the helper process that renders templates nobody has read.

`template.py` imports `Environment` for templates it knows. For any other it runs this file as a script: requests and answers are JSON
objects, each after its length as four big-endian bytes, on stdin and stdout. The script knows no other part of the package, gets no
environment, and limits its own memory and processor time before it reads the first template.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from datetime import datetime
from typing import IO, Any

FUEL = 2_000_000
"""Instructions one rendering may take, and since minijinja 3.1 bytes too: 1,000 messages take about 100,000, with 4 MB of text 400,000."""
MAX_FRAME = 64 * 1024 * 1024
MEMORY_BYTES = 512 * 1024 * 1024
CPU_SECONDS = 1


class TemplateError(Exception):
    """The template is wrong, or refused these messages, or ran out of fuel."""


class BrokenTemplateError(TemplateError):
    """The template does not compile."""


class Environment:
    """A compiled template, in the environment that transformers gives to chat templates. Rendering is bounded by `FUEL`."""

    def __init__(self, source: str) -> None:
        import minijinja  # here, so that the helper process can first say where it is

        self._error = minijinja.TemplateError
        self._environment = minijinja.Environment(
            filters={"tojson": _tojson},
            globals={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
            auto_escape_callback=lambda name: None,
            trim_blocks=True,
            lstrip_blocks=True,
            fuel=FUEL,
            debug=False,
        )
        try:
            self._environment.add_template("chat", source)
        except self._error as error:
            raise BrokenTemplateError(_reason(error)) from error

    def render(self, context: dict[str, Any]) -> str:
        try:
            text: str = self._environment.render_template("chat", **context)
        except (self._error, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise TemplateError(_reason(error)) from error
        return text


def _tojson(value: Any, indent: int | None = None) -> str:
    """As transformers has it: no HTML escapes, other scripts as they are, keys in their order."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:500] if lines else type(error).__name__


def read_frame(stream: IO[bytes]) -> bytes | None:
    """One length-prefixed frame, None at the end of the stream or where it is cut."""
    head = stream.read(4)
    size = int.from_bytes(head, "big")
    if len(head) < 4 or size > MAX_FRAME:
        return None
    body = stream.read(size)
    return body if len(body) == size else None


def write_frame(stream: IO[bytes], body: bytes) -> None:
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


def _serve() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    compiled: dict[str, Environment] = {}
    while (frame := read_frame(sys.stdin.buffer)) is not None:
        # The kernel counts from the start of the process, in whole seconds: grant every request its own.
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + CPU_SECONDS, resource.RLIM_INFINITY))
        request = json.loads(frame)
        try:
            source = request["source"]
            if source not in compiled:
                compiled = {source: Environment(source)}
            answer = {"text": compiled[source].render(request["context"])}
        except TemplateError as error:
            answer = {"broken" if isinstance(error, BrokenTemplateError) else "error": str(error)}
        write_frame(sys.stdout.buffer, json.dumps(answer).encode())


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    _serve()
