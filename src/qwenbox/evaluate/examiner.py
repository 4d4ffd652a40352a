"""The program of the child process that runs the code of an answer against its tests.

One JSON object on stdin, {code, tests, verdict}; one on stdout, {verdict, passed, reason}. `confinement` takes everything from it before the first
line of the answer runs; of Python's library there is what `MODULES` names. What the answer prints goes nowhere. The word `verdict` is chosen at
random: an answer that ends the process, or writes into its channel, has not passed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import io
import json
import os
import sys
from types import ModuleType

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 10
MODULES = (
    *(
        "_strptime",
        "abc",
        "array",
        "ast",
        "base64",
        "binascii",
        "bisect",
        "builtins",
        "calendar",
        "cmath",
        "codecs",
        "collections",
        "collections.abc",
    ),
    *("colorsys", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions", "functools", "gc", "graphlib"),
    *("hashlib", "heapq", "hmac", "html", "inspect", "io", "ipaddress", "itertools", "json", "keyword", "linecache", "locale", "math", "numbers"),
    *("operator", "pprint", "queue", "random", "re", "secrets", "statistics", "string", "struct", "textwrap", "threading", "time", "timeit", "token"),
    *("tokenize", "traceback", "types", "typing", "unicodedata", "unittest", "urllib.parse", "uuid", "warnings", "weakref", "zlib", "zoneinfo"),
    *("encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.utf_16", "encodings.utf_32", "encodings.cp1252"),
)


class _Text(importlib.abc.InspectLoader):
    """A module whose source is a text."""

    def __init__(self, source: str) -> None:
        self._source = source

    def get_source(self, fullname: str) -> str:
        return self._source


def _module(name: str, source: str, names: ModuleType | None = None) -> ModuleType:
    """The text as a module, after it has run; `names` are those of another module that it knows from the beginning."""
    loader = _Text(source)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    if names is not None:
        module.__dict__.update((key, value) for key, value in vars(names).items() if not key.startswith("__"))
    sys.modules[name] = module  # dataclasses look themselves up there
    loader.exec_module(module)
    return module


def _reason(error: BaseException, tests: str) -> str:
    """What went wrong, and at which line of the tests where one failed."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "tests":
            place = tests.splitlines()[trace.tb_lineno - 1 : trace.tb_lineno]  # none for code that an answer executes in their name
            line = f" at `{place[0].strip()[:200]}`" if place else ""
        trace = trace.tb_next
    try:
        said = str(error)[:300]
    except BaseException:
        said = ""
    return type(error).__name__[:100] + (f": {said}" if said else "") + line


def main() -> None:
    from qwenbox.confinement import give_up

    for name in MODULES:
        importlib.import_module(name)
    task = json.load(sys.stdin)
    channel, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    sys.stdin = io.StringIO("")
    del sys.path[:]
    give_up(memory_bytes=MEMORY_BYTES, cpu_seconds=CPU_SECONDS, strictly=True)
    passed, reason = False, ""
    try:
        _module("tests", task["tests"], _module("answer", task["code"]))
        passed = True
    except BaseException as error:
        reason = _reason(error, task["tests"])
    os.write(channel, json.dumps({"verdict": task["verdict"], "passed": passed, "reason": reason}).encode())
    os._exit(0)  # nothing that the answer left behind has a last word


if __name__ == "__main__":
    sys.path[:0] = sys.argv[1:]
    main()
