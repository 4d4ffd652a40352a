"""Text out of a file, by a child process that may take little and reach nothing."""

from __future__ import annotations

import json
import threading
import unicodedata
from pathlib import Path
from typing import NamedTuple

import pypdf

from qwenbox.confinement import run
from qwenbox.documents import extract
from qwenbox.errors import EngineError, OverloadedError, PayloadTooLargeError, RequestError

MAX_DOCUMENT_BYTES = 50 * 1024 * 1024
MAX_NAME = 120
MAX_ANSWER_BYTES = 13 * extract.MAX_CHARACTERS
"""The longest text as JSON, in which no character takes more than two of `\\u0000`, and what stands around it."""
DEADLINE_SECONDS = 90.0
"""For one document, by the clock on the wall."""
MAX_CHILDREN = 2
MAX_WAIT_SECONDS = 30.0

_children = threading.BoundedSemaphore(MAX_CHILDREN)


class Document(NamedTuple):
    name: str
    kind: str
    """text, pdf or docx: what the bytes are, whatever the name says."""
    text: str


def read_document(name: str, data: bytes) -> Document:
    """The whole text of a file; blocks. Nothing is cut: RequestError, with `file` as `param`, for what cannot be read whole, with the reason.

    The `code` of the error is file_empty, _locked, _damaged, _pictures, _long, _hard or _unknown.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise PayloadTooLargeError(f"The file has {len(data)} bytes; up to {MAX_DOCUMENT_BYTES} are read.", param="file")
    shown = clean_name(name)
    if not _children.acquire(timeout=MAX_WAIT_SECONDS):
        raise OverloadedError("Other files are being read; send this one again in a moment.", retry_after=5)
    try:
        answer = _ask_child(data)
    finally:
        _children.release()
    if "error" in answer:
        raise RequestError(f"{shown}: {answer['error']}", param="file", code=f"file_{answer['code']}")
    return Document(shown, answer["kind"], answer["text"])


def clean_name(name: str) -> str:
    """The last part of a path, without characters that nobody sees or that turn the line around."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    kept = "".join(char for char in last if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
    return kept.strip()[:MAX_NAME] or "file"


def _ask_child(data: bytes) -> dict[str, str]:
    try:
        done = run(
            Path(extract.__file__), data, folders=[str(Path(pypdf.__file__).parent.parent)], seconds=DEADLINE_SECONDS, max_output=MAX_ANSWER_BYTES
        )
    except OSError as error:
        raise EngineError(f"The process that reads files does not start: {error}.") from error
    if done.ended == "time":
        return {"error": f"it takes longer than {DEADLINE_SECONDS:g} seconds to read.", "code": "hard"}
    if done.status < 0 or done.ended == "output":  # it was ended by the system
        return {"error": "it takes too much time or memory to read.", "code": "hard"}
    if done.status > 0:
        raise EngineError("The process that reads files failed.", code="reader_failed")
    answer: dict[str, str] = json.loads(done.output)
    return answer
