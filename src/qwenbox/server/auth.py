"""The key of a service: where it comes from, and how a request's key is compared with it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from starlette.types import Scope

from qwenbox.errors import AuthenticationError, UsageError
from qwenbox.settings import Settings

KEY_FILE = "api-key"
MIN_KEY_LENGTH = 16
"""Characters. A shorter key can be guessed over the network."""


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """`text` None: everybody may use the service, which only listens on loopback. `created` is the file of a key that this start made."""

    text: str | None
    created: Path | None = None

    def check(self, authorization: list[bytes], api_keys: list[bytes]) -> None:
        """AuthenticationError unless a request has this key in one Authorization header, as a Bearer, or in one x-api-key, and no other anywhere."""
        if self.text is None:
            return
        if not authorization and not api_keys:
            raise AuthenticationError("A key is needed: send the header `Authorization: Bearer <key>` or `x-api-key: <key>`.")
        if len(authorization) > 1 or len(api_keys) > 1 or not all(map(self._is_bearer, authorization)) or not all(map(self._is_key, api_keys)):
            raise AuthenticationError("This key is not valid here.")

    def _is_bearer(self, header: bytes) -> bool:
        scheme, _, given = header.partition(b" ")
        return scheme.lower() == b"bearer" and self._is_key(given)

    def _is_key(self, given: bytes) -> bool:
        # Digests have one length, so the comparison's time says nothing about the key.
        return hmac.compare_digest(hashlib.sha256(given.strip()).digest(), hashlib.sha256((self.text or "").encode()).digest())


def service_key(settings: Settings) -> ServiceKey:
    """The key that the settings name; on any address but loopback one is made at the first start, in a file that only its owner reads."""
    if settings.api_key is not None:
        return ServiceKey(_checked(settings.api_key, "api_key"))
    if settings.api_key_file is not None:
        try:
            return ServiceKey(_read(settings.api_key_file))
        except FileNotFoundError:
            raise UsageError(f"There is no key file {settings.api_key_file}.", param="api_key_file") from None
    if is_loopback(settings.host):
        return ServiceKey(None)
    path = settings.state_dir / KEY_FILE
    try:
        return ServiceKey(_read(path))
    except FileNotFoundError:
        return _create(path)


def known_key(settings: Settings, host: str) -> str | None:
    """The key that a client of the service on `host` sends: that of the settings, or on this machine the one that its start made."""
    if settings.api_key is not None:
        return settings.api_key
    if settings.api_key_file is not None:
        return service_key(settings).text
    path = settings.state_dir / KEY_FILE
    return _read(path) if is_loopback(host) and path.exists() else None


def local_url(host: str, port: int) -> str:
    """Where a client on this machine finds a service that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_from_here(scope: Scope) -> bool:
    """Whether a program on this machine asks: over loopback, and not for somebody else, as a proxy would say."""
    client: tuple[str, int] | None = scope.get("client")
    passed_on = any(name in (b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip") for name, _ in scope["headers"])
    return client is not None and is_loopback(client[0].removeprefix("::ffff:")) and not passed_on


def _read(path: Path) -> str:
    try:
        first_line = path.read_text("utf-8").partition("\n")[0]
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The key file {path} cannot be read: {error}.", param="api_key_file") from None
    return _checked(first_line, str(path))


def _create(path: Path) -> ServiceKey:
    key = "qk_" + secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A draft that only its owner reads gets the name when it is whole: neither a full disk nor a second start leaves half a key, or two.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=KEY_FILE) as draft:
            draft.write(key + "\n")
            draft.flush()
            os.fsync(draft.fileno())
            os.link(draft.name, path)
    except FileExistsError:
        return ServiceKey(_read(path))
    except OSError as error:
        raise UsageError(
            f"A key for this address cannot be kept in {path}: {error.strerror}. Give one with --api-key, or another place with --state-dir.",
            param="state_dir",
        ) from None
    return ServiceKey(key, path)


def _checked(text: str, source: str) -> str:
    key = text.strip()
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"{source}: a key has at least {MIN_KEY_LENGTH} printable ASCII characters and no spaces. "
            "A file of ours that holds none can be deleted; a new key is made then.",
            param="api_key",
        )
    return key
