"""A model hub and a package index on loopback that can misbehave: the server side of the tests of qwenbox.hub."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "Qwen/Tiny"
WAIT_SECONDS = 300.0


@dataclass
class Fake:
    """What is served and how. `files` are those of the repository; `pages` are of the package index, by path."""

    files: dict[str, bytes] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    listing: list[dict[str, Any]] | bytes | None = None
    """Instead of the true one, in the Hugging Face form."""
    served: dict[str, bytes] = field(default_factory=dict)
    """Bodies that differ from what the listing announces."""
    cut_after: int | None = None
    """Bytes of a body after which the connection is closed."""
    stall_after: int | None = None
    """Bytes of all bodies together after which `stalled` is set and nothing more comes until `released`."""
    repository: str = REPOSITORY
    more: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Further repositories."""
    refused: frozenset[str] = frozenset()
    """Repositories whose terms somebody has to agree to."""
    status: int | None = None
    ignore_range: bool = False
    content_range: str | None = None
    content_encoding: str | None = None
    redirect: str | None = None
    """Prefix that the addresses of files are redirected to."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def go_on(self, stall_after: int | None) -> None:
        """Ends a stall, whose connection is closed; the next one is after so many bytes."""
        self.stall_after = stall_after
        self.stalled.clear()
        self.released.set()
        self.released.clear()

    def fetched(self, name: str) -> int:
        return sum(name in path for path, _ in self.requests)

    def true_listing(self, repository: str | None = None) -> list[dict[str, Any]]:
        items = []
        for name, content in self.more.get(repository or "", self.files).items():
            item: dict[str, Any] = {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
            }
            if name.endswith((".safetensors", ".gguf")):
                item["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            items.append(item)
        return items


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        fake, parts = self.fake, urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        fake.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if path == "/":
            self.answer(200, b"a hub")
        elif path in fake.pages:
            self.body(fake.pages[path])
        elif path == f"/api/models/{fake.repository}/revision/main":
            if isinstance(fake.listing, bytes):
                self.answer(200, fake.listing)
            else:
                siblings = fake.true_listing() if fake.listing is None else fake.listing
                self.answer(200, json.dumps({"id": fake.repository, "sha": REVISION, "siblings": siblings}).encode())
        elif match := re.fullmatch(r"/api/models/(.+)/revision/main", path):
            if match[1] in fake.more:
                siblings = fake.true_listing(match[1])
                self.answer(200, json.dumps({"id": match[1], "sha": REVISION, "siblings": siblings}).encode())
            elif match[1] in fake.refused:
                self.answer(403, b"agree first", {"X-Error-Code": "GatedRepo"})
            else:
                self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif path == f"/api/v1/models/{REPOSITORY}/repo/files":
            items = [{"Path": n, "Size": len(c), "Sha256": hashlib.sha256(c).hexdigest(), "Type": "blob"} for n, c in fake.files.items()]
            self.answer(200, json.dumps({"Code": 200, "Data": {"Files": [*items, {"Path": "figures", "Type": "tree"}]}}).encode())
        elif path == f"/api/v1/models/{REPOSITORY}/repo":
            self.file(query["FilePath"][0])
        elif path.startswith(prefix := f"/{fake.repository}/resolve/{REVISION}/"):
            self.file(path.removeprefix(prefix))
        elif (match := re.fullmatch(rf"/(.+)/resolve/{REVISION}/(.+)", path)) and match[2] in fake.more.get(match[1], {}):
            self.body(fake.more[match[1]][match[2]])
        else:
            self.answer(404, b"no such thing")

    def do_HEAD(self) -> None:
        """Of a file, what huggingface_hub's own downloading asks first."""
        self.fake.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        content = self.fake.files[unquote(urlsplit(self.path).path).rsplit("/", 1)[1]]
        self.send_response(200)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()

    def file(self, name: str) -> None:
        if self.fake.redirect is not None:
            self.send_response(302)
            self.send_header("Location", self.fake.redirect + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.fake.status is not None:
            self.answer(self.fake.status, b"an error")
        else:
            self.body(self.fake.served.get(name, self.fake.files[name]))

    def answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/html" if content.startswith(b"<") else "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self, content: bytes) -> None:
        fake = self.fake
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match and not fake.ignore_range else 0
        if start and start >= len(content):
            self.answer(416, b"")
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", fake.content_range or f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fake.content_encoding:
            self.send_header("Content-Encoding", fake.content_encoding)
        self.send_header("Content-Type", "text/html" if content.startswith(b"<") else "application/octet-stream")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = memoryview(content)[start:]
        if fake.cut_after is not None and fake.cut_after < len(rest):
            self.wfile.write(rest[: fake.cut_after])
            self.close_connection = True
            return
        for offset in range(0, len(rest), 1024):
            if fake.stall_after is not None and fake.sent >= fake.stall_after:
                self.wfile.flush()
                fake.stalled.set()
                fake.released.wait(WAIT_SECONDS)
                self.close_connection = True
                return
            chunk = rest[offset : offset + 1024]
            self.wfile.write(chunk)
            fake.sent += len(chunk)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is what these tests are about."""


@contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        fake.released.set()
        server.shutdown()
        server.server_close()
        thread.join(WAIT_SECONDS)


def wheel(package: str, version: str, member: str, content: bytes) -> tuple[str, bytes]:
    """File name and bytes of a wheel that carries one file."""
    module = package.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr(zipfile.ZipInfo(member), content)
        archive.writestr(zipfile.ZipInfo(f"{info}/METADATA"), f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(zipfile.ZipInfo(f"{info}/WHEEL"), "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
    return f"{module}-{version}-py3-none-any.whl", output.getvalue()
