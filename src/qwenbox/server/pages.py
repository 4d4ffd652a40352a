"""The static page: read once, served from memory, under a policy that lets it talk to nobody but us."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

WEB = Path(__file__).parent / "web"
TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Pages:
    """The files of `folder` by their path; `index.html` is `/`. Files of other types than the table's are not served."""

    def __init__(self, folder: Path = WEB) -> None:
        self._files: dict[str, tuple[bytes, str, str]] = {}
        for file in sorted(folder.rglob("*")):
            if file.suffix in TYPES and file.is_file():
                name = file.relative_to(folder).as_posix()
                body = file.read_bytes()
                entry = body, TYPES[file.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"'
                self._files["/" if name == "index.html" else f"/{name}"] = entry

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(self._files)

    async def serve(self, request: Request) -> Response:
        body, media_type, etag = self._files[request.scope["path"]]
        headers = {
            "etag": etag,
            # A new version of the package is seen at the next load; an old one costs a 304.
            "cache-control": "no-cache",
            "content-security-policy": CONTENT_SECURITY_POLICY,
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
        }
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type, headers=headers)
