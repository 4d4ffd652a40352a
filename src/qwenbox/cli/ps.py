"""`qwenbox ps`: the models that a running service has loaded."""

from __future__ import annotations

import json as json_module
import time
from typing import Any

import typer

from .options import Json
from .remote import Remote, Url


def ps(url: Url = None, json: Json = False) -> None:
    """Show the models that a running service has loaded, what they hold, who uses them, and until when they stay."""
    models = [model for model in Remote(url).models() if model.get("qwenbox", {}).get("state", "unloaded") != "unloaded"]
    if json:
        typer.echo(json_module.dumps(models))
    elif models:
        rows = [("NAME", "STATE", "MEMORY", "RUNNING", "WAITING", "STAYS"), *map(_row, models)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    else:
        typer.echo("No model is loaded. The next request loads one.")


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    more = model["qwenbox"]
    state = more["state"] if more["state"] == "ready" else f"{more['state']} {more.get('progress', 0):.0%}"
    running, waiting = more.get("requests_running", 0), more.get("requests_waiting", 0)
    return model["id"], state, f"{more.get('memory_bytes', 0) / 1e9:.2f} GB", str(running), str(waiting), _stays(more)


def _stays(more: dict[str, Any]) -> str:
    if (left := more.get("unloads_in")) is not None:
        return f"until {time.strftime('%H:%M:%S', time.localtime(time.time() + left))}, if nobody asks"
    kept = more.get("keep_alive", -1)
    return "until its memory is needed" if kept < 0 else f"{kept:g} s after its last answer"
