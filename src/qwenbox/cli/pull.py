"""`qwenbox pull [MODEL]`: put a model into the cache, verified."""

from __future__ import annotations

import json as json_module
import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..settings import Settings


def pull(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Name of the catalogue, such as qwen2.5-coder-0.5b or qwen3-8b; otherwise what a first start would fetch.", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of the path.")] = False,
    fingerprint: Annotated[bool, typer.Option("--fingerprint", help="Load it too, and keep what it says for `qwenbox verify`.")] = False,
) -> None:
    """Fetch MODEL into the cache and verify it; one that is there is verified again. An interrupted pull goes on where it was."""
    # Not at the top: the help of the whole command line imports this file.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from .. import hub
    from ..hub.manifest import read_manifest
    from ..settings import load_settings

    settings = load_settings()
    name = model or _first(settings)
    if name is None or hub.local(name) is not None:
        return
    entry = hub.find(name)
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=json, transient=True) as bar:
        task = bar.add_task(entry.name, total=None)

        def report(phase: str, done: int, total: int) -> None:
            bar.update(task, description=f"{phase} {entry.name}", completed=done, total=total)

        path = hub.pull(entry, settings, report)
    if fingerprint:
        from ..evaluate.fingerprint import place
        from .verify import opened, read_digests, write_fingerprint

        files = read_digests(entry.name, path)
        with opened(entry.name, path, settings, settings.forms) as loaded:
            write_fingerprint(loaded, files, place(path, settings.state_dir))
    if not json:
        typer.echo(path)
        return
    manifest = read_manifest(path if path.is_dir() else path.parent)
    size = sum(file.size for file in manifest.files.values()) if manifest else 0
    typer.echo(json_module.dumps({"model": entry.name, "path": str(path), "bytes": size, "seconds": round(time.monotonic() - started, 3)}))


def _first(settings: Settings) -> str | None:
    """What a service that chooses its model would fetch without asking; None where a model is on this disk, or somebody has chosen."""
    from ..errors import DownloadError
    from ..hub import CATALOGUE, FIRST, announced_bytes, installed
    from ..hub.disk import look
    from ..hub.sources import first_reachable, hubs
    from ..model.choice import FREE_BYTES
    from ..server.choice import PRACTICE
    from ..settings import is_stated

    if is_stated("model", settings.state_dir) or installed(settings) or any(found.problem is None for found in look(settings)):
        return None
    try:
        first_reachable(hubs(settings))
        return FIRST if announced_bytes(CATALOGUE[FIRST], settings) <= FREE_BYTES else None
    except DownloadError:
        return PRACTICE
