"""A model's name -> a verified local file or directory."""

from __future__ import annotations

import difflib
from pathlib import Path

from ..errors import NotFoundError
from ..settings import Settings, load_settings
from .catalogue import CATALOGUE, FIRST, Entry, Repository
from .disk import look
from .pull import Phase, Progress, announced_bytes, pull, pulled, remove

__all__ = ["CATALOGUE", "FIRST", "Entry", "Phase", "Progress", "announced_bytes", "find", "installed", "local", "pull", "pulled", "remove", "resolve"]


def find(name: str) -> Entry:
    """The entry of the catalogue with this name, or with this repository (`Qwen/Qwen3-8B`). Raises NotFoundError listing what there is."""
    for entry in CATALOGUE.values():
        if name.lower() == entry.name or (isinstance(entry.source, Repository) and name == entry.source.name):
            return entry
    close = difflib.get_close_matches(name.lower().split("/")[-1], CATALOGUE, 1, 0.5)
    hint = f"; did you mean {close[0]}?" if close else "."
    raise NotFoundError(
        f"no model {name!r}{hint} A model is a directory, a .gguf file or one of {', '.join(CATALOGUE)}", param="model", code="model_not_found"
    )


def installed(settings: Settings) -> dict[str, Path]:
    """The models of the catalogue that are in the cache, complete and verified: file or directory by name."""
    return {name: path for name, entry in CATALOGUE.items() if (path := pulled(entry, settings)) is not None}


def local(model: str) -> Path | None:
    """The path that `model` is, if it is one of a directory or a `.gguf` file."""
    path = Path(model).expanduser()
    return path if path.is_dir() or (path.suffix == ".gguf" and path.is_file()) else None


def resolve(model: str, settings: Settings | None = None, progress: Progress | None = None) -> Path:
    """The file or directory of `model`: a path or a model of another program is taken as it is, a name of the catalogue is pulled unless it is here.

    Raises NotFoundError (no such path or name), DownloadError.
    """
    if (path := local(model)) is not None:
        return path
    settings = settings or load_settings()
    for found in look(settings) if model not in CATALOGUE else ():
        if found.name == model:
            if found.problem is not None:
                raise NotFoundError(f"{model} of {found.origin} is not whole: {found.problem}", param="model", code="model_not_found")
            return found.path
    entry = find(model)
    return pulled(entry, settings) or pull(entry, settings, progress)
