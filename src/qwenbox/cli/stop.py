"""`qwenbox stop MODEL`: end a model of a running service."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from .options import Json
from .remote import Remote, Url


def stop(
    model: Annotated[str, typer.Argument(help="Name of the model, as `qwenbox ps` shows it.", show_default=False)],
    url: Url = None,
    json: Json = False,
) -> None:
    """Unload MODEL when its answers have ended: its memory is free again. The next request for it loads it again."""
    stopped = Remote(url).unload(model)
    typer.echo(json_module.dumps(stopped) if json else f"{stopped['id']} is not loaded any more.")
