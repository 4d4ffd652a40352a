"""Models of other programs that we can run: found on the disk, judged by the headers of their files, each file once."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from qwenbox.errors import Problem, QwenboxError
from qwenbox.hub.disk import Found, look
from qwenbox.model.costs import Costs
from qwenbox.settings import Settings


class Judged(NamedTuple):
    """A model that was found, and what a token of it costs; or why we cannot run it."""

    found: Found
    costs: Costs | None
    problem: Problem | None


class Others:
    """What the places of the settings hold. Any thread may ask; `judge` takes a tenth of a second for a file that it has not seen."""

    def __init__(self, settings: Settings) -> None:
        self._lock = threading.Lock()
        self._verdicts: dict[tuple[Path, int, int], tuple[Costs | None, Problem | None]] = {}
        self._judged: dict[str, Judged] = {}
        self._paths: dict[str, Path] = {}
        self._forms = settings.forms
        self.look(settings)

    def look(self, settings: Settings) -> None:
        """Once more; what is new is unknown until `judge`."""
        self.found = look(settings)
        self._paths = {model.name: model.path for model in self.found if model.problem is None}

    def path(self, name: str) -> Path | None:
        """Where a model is that is whole, whether we can run it or not."""
        return self._paths.get(name)

    def paths(self) -> Mapping[str, Path]:
        """Those that we can run, as far as they have been judged."""
        return {name: judged.found.path for name, judged in self._judged.items() if judged.problem is None}

    def judge(self) -> Sequence[Judged]:
        """Every model that was found."""
        with self._lock:
            judged = [Judged(found, *self._verdict(found)) for found in self.found]
            self._judged = {one.found.name: one for one in judged}
        return judged

    def _verdict(self, found: Found) -> tuple[Costs | None, Problem | None]:
        return self.verdict(found.path) if found.problem is None else (None, Problem(found.problem, "model_incomplete"))

    def verdict(self, path: Path) -> tuple[Costs | None, Problem | None]:
        """What a token of the model costs, or why we cannot run it. A file that has not changed is read once."""
        # Not at the top: it brings the model's code along, which the front needs for nothing else.
        from qwenbox.model.load import stored_costs

        try:
            status = (path / "config.json" if path.is_dir() else path).stat()
            key = path, status.st_size, status.st_mtime_ns
            if key not in self._verdicts:
                try:
                    self._verdicts[key] = stored_costs(path, **self._forms), None
                except QwenboxError as error:
                    self._verdicts[key] = None, error.problem
            return self._verdicts[key]
        except OSError as error:
            return None, Problem(f"{path}: {error.strerror}", "model_incomplete")
