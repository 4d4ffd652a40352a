"""Every knob, once: name, type, default, what it does, its environment variable. No other file reads the environment.

The table is the dataclass `Settings` itself. A setting comes from the command line (`overrides`), else from its environment variable
(`QWENBOX_` and the name in capitals; a few have a second, well-known one), else from the file `settings.json` of `state_dir`, in which a service
keeps what somebody chose, else it has its default. docs/settings.md is `describe()`.
"""

# ruff: noqa: RUF009 - the defaults are immutable; `_setting` wraps `dataclasses.field`.
from __future__ import annotations

import difflib
import json
import math
import os
import tempfile
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import UsageError

PREFIX = "QWENBOX_"
TEST_PREFIX = "QWENBOX_TEST_"
"""Variables of the test suite; no settings."""

KEPT_FILE = "settings.json"
"""In `state_dir`."""
_MAX_KEPT_BYTES = 1 << 20

_SECRETS = ("api_key", "hub_token")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _setting(
    default: Any,
    text: str,
    *,
    also: str | None = None,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    shown: str | None = None,
) -> Any:
    """One line of the table. A callable default is asked at each load; `also` is a second environment variable; `shown` is for the document."""
    metadata = {"text": text, "also": also, "least": least, "most": most, "choices": choices, "shown": shown}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _xdg(variable: str, fallback: str) -> Callable[[], Path]:
    def directory() -> Path:
        base = os.environ.get(variable, "")
        # The XDG specification: a relative path is invalid and ignored.
        return (Path(base) if base.startswith("/") else Path.home() / fallback) / "qwenbox"

    return directory


def _language() -> str:
    """That of the locale, as POSIX ranks its variables."""
    return "zh" if next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "").startswith("zh") else "en"


_state_home = _xdg("XDG_STATE_HOME", ".local/state")


def _huggingface_cache() -> Path:
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser() if home else _xdg("XDG_CACHE_HOME", ".cache")().with_name("huggingface")) / "hub"


@dataclass(frozen=True, slots=True)
class Settings:
    """The values in force. Make one with `load_settings`; `Settings(...)` directly, for tests, checks nothing."""

    model: str = _setting("qwen2.5-coder-1.5b", "Model to run: a name of the catalogue, a directory, or a `.gguf` file.", also="MODEL_NAME")
    alias: tuple[str, ...] = _setting(
        (), "Further names of models, NAME=MODEL each, as in `gpt-4o=qwen2.5-coder-1.5b`; in the environment with commas between them."
    )
    keep_alive: float = _setting(
        1800.0,
        "Seconds that a model which was loaded for a request stays after its last answer; -1: until its memory is needed. "
        "The model that the service was started with always stays until then.",
        least=-1,
    )
    host: str = _setting("127.0.0.1", "Address that the service listens on.")
    port: int = _setting(8080, "Port that the service listens on; 0 takes a free one.", least=0, most=65535)
    ollama: bool = _setting(False, "Listen on 127.0.0.1:11434 as well, where Ollama's clients look.")
    api_key: str | None = _setting(None, "Key that clients must send. Prefer `api_key_file`: a process's environment can be seen.")
    api_key_file: Path | None = _setting(None, "File whose first line is the key that clients must send.")
    isa: str | None = _setting(None, "Instruction-set variant of the kernels; otherwise the best that the machine has.")
    threads: int | None = _setting(None, "Threads of the kernels; otherwise one a processor.", least=1, most=1024)
    weights: str | None = _setting(
        None,
        "Form of the weights in memory; otherwise as stored, but the 16-bit head of a quantised checkpoint as int8.",
        choices=("stored", "bf16", "int8", "int4"),
    )
    head: str | None = _setting(
        None,
        "Kind of the head, which makes logits; otherwise as `weights` says. An int8 head of 16,384 rows or more is kept a second time in 4 bits, so "
        "that greedy answers read less of it and stay the same: `two-stage` insists on that, `int8` saves the memory.",
        choices=("stored", "bf16", "int8", "int4", "two-stage"),
    )
    embedding: str | None = _setting(
        None,
        "Kind of the embedding; otherwise as `weights` says. Where the model has one matrix for embedding and head, it is as `head` says, and this "
        "setting makes two of it.",
        choices=("stored", "bf16", "int8", "int4"),
    )
    context_length: int | None = _setting(None, "Longest prompt and answer together, in tokens; otherwise what the model was trained for.", least=1)
    kv_gb: float | None = _setting(None, "Gigabytes for the KV pages; otherwise what fits into the memory that is free.", least=0.001)
    memory_util: float | None = _setting(
        None,
        "Share of the free memory for weights and KV pages, where `kv_gb` does not say how much the pages get.",
        also="GPU_MEMORY_UTIL",
        least=0.05,
        most=1.0,
    )
    max_sequences: int = _setting(32, "Requests that run at the same time.", least=1, most=4096)
    max_batch_tokens: int = _setting(512, "Tokens in one step of the model.", least=1, most=65536)
    step_ms: int = _setting(
        200, "Milliseconds of a step while answers stream: a longer prompt runs in slices, so that nobody waits for it.", least=10, most=60000
    )
    max_queue: int = _setting(128, "Requests that wait for their turn; one more is refused with 429.", least=0)
    thinking: str = _setting(
        "model",
        "Whether to think where a request does not say it: as the model does by itself, always, never, or as the question needs it.",
        choices=("model", "on", "off", "auto"),
    )
    thinking_budget: int | None = _setting(None, "Tokens that a thought may have where a request does not say it; otherwise no limit.", least=1)
    thinking_seconds: float | None = _setting(None, "Seconds that a thought may take where a request does not say it.", least=0.1)
    reasoning_field: str = _setting(
        "both",
        "Where chat completions show the thoughts: clients read `reasoning_content`, `reasoning`, or either.",
        choices=("both", "reasoning_content", "reasoning"),
    )
    loop_guard: bool = _setting(True, "End thoughts and answers that repeat the same piece for ever.")
    request_timeout: float = _setting(600.0, "Seconds that a request may take.", least=0.1)
    strict: bool = _setting(False, "Refuse a request with a field that we know nothing of, instead of listing it in `x-qwenbox-ignored`.")
    remote_choice: bool = _setting(
        False, "Whoever has the key may name files, folders and mirrors for the service from elsewhere too, not only on its own machine."
    )
    cache_dir: Path = _setting(
        _xdg("XDG_CACHE_HOME", ".cache"), "Where pulled models are kept.", shown="`$XDG_CACHE_HOME/qwenbox`, else `~/.cache/qwenbox`"
    )
    state_dir: Path = _setting(
        _state_home,
        "Where the service keeps the key that it made, and `settings.json`: what somebody chose.",
        shown="`$XDG_STATE_HOME/qwenbox`, else `~/.local/state/qwenbox`",
    )
    data_dir: Path = _setting(
        _xdg("XDG_DATA_HOME", ".local/share"),
        "Where the page's conversations are kept.",
        shown="`$XDG_DATA_HOME/qwenbox`, else `~/.local/share/qwenbox`",
    )
    archive: bool = _setting(True, "Keep the page's conversations on the disk; otherwise in memory, until the service ends.")
    ollama_dir: Path | None = _setting(None, "Ollama's models, served in place; otherwise where it keeps them by itself.", also="OLLAMA_MODELS")
    huggingface_dir: Path = _setting(
        _huggingface_cache,
        "The cache of Hugging Face, served in place.",
        also="HF_HUB_CACHE",
        shown="`$HF_HOME/hub`, else `~/.cache/huggingface/hub`",
    )
    modelscope_dir: Path = _setting(
        lambda: Path.home() / ".cache" / "modelscope",
        "The cache of ModelScope, served in place.",
        also="MODELSCOPE_CACHE",
        shown="`~/.cache/modelscope`",
    )
    lmstudio_dir: Path | None = _setting(None, "LM Studio's models, served in place; otherwise where it keeps them by itself.")
    models_dir: Path | None = _setting(None, "A folder of your own with models: checkpoints, `.gguf` files, or folders of them.")
    offline: bool = _setting(False, "Never use the network to fetch a model.", also="HF_HUB_OFFLINE")
    hub_endpoint: str | None = _setting(
        None, "Address of a Hugging Face hub or mirror. Set, it is the only hub tried; otherwise the public one.", also="HF_ENDPOINT"
    )
    hub_token: str | None = _setting(None, "Token for that hub; it is sent to no other host.", also="HF_TOKEN")
    modelscope_endpoint: str = _setting("https://modelscope.cn", "Address of ModelScope, tried where the Hugging Face hub does not answer.")
    language: str = _setting(_language, "Language of the chat in the terminal.", choices=("en", "zh"), shown="that of the locale, else `en`")
    log_level: str = _setting("info", "How much is logged.", also="LOG_LEVEL", choices=("debug", "info", "warning", "error"))

    @property
    def forms(self) -> dict[str, Any]:
        """The settings that say which kinds the matrices of a model have in memory."""
        return {"weights": self.weights, "head": self.head, "embedding": self.embedding}

    def __repr__(self) -> str:
        """Without secrets: settings are logged."""
        values = (f"{f.name}={'...' if f.name in _SECRETS and getattr(self, f.name) else repr(getattr(self, f.name))}" for f in fields(self))
        return f"Settings({', '.join(values)})"


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from `overrides` (None means not given), the environment and the defaults. Raises UsageError naming what is wrong."""
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    table = {f.name: f for f in fields(Settings)}
    for name in given:
        if name not in table:
            raise UsageError(f"unknown setting {name!r}{_nearest(name, list(table))}", param=name)
    variables = [PREFIX + name.upper() for name in table]
    for variable in os.environ:
        if variable.startswith(PREFIX) and not variable.startswith(TEST_PREFIX) and variable not in variables:
            raise UsageError(f"unknown environment variable {variable}{_nearest(variable, variables)}", param=variable)

    values: dict[str, Any] = {}
    hints = typing.get_type_hints(Settings)
    kept: Mapping[str, Any] = {}
    for name, entry in sorted(table.items(), key=lambda item: item[0] != "state_dir"):
        if name in given:
            values[name] = _checked(name, given[name], hints[name], entry)
            continue
        for variable in (PREFIX + name.upper(), entry.metadata["also"]):
            # An empty variable counts as unset: it is how compose files and shells leave one out.
            if variable and os.environ.get(variable):
                values[name] = _checked(variable, os.environ[variable], hints[name], entry)
                break
        else:
            if name in kept:
                values[name] = _checked(f"{KEPT_FILE}, {name}", kept[name], hints[name], entry)
        if name == "state_dir":
            kept = kept_settings(values.get(name) or _state_home())
    return Settings(**values)


def is_stated(name: str, state_dir: Path) -> bool:
    """Whether the environment or the file of `state_dir` say the setting, which then is more than a default."""
    entry = next(f for f in fields(Settings) if f.name == name)
    return any(os.environ.get(variable or "") for variable in (PREFIX + name.upper(), entry.metadata["also"])) or name in kept_settings(state_dir)


def kept_settings(state_dir: Path) -> Mapping[str, Any]:
    """What was kept. Raises UsageError for a file that cannot be read as that."""
    path = state_dir / KEPT_FILE
    try:
        with path.open("rb") as file:
            kept = json.loads(file.read(_MAX_KEPT_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error}); mend it, or delete it: then everything has its default again", param=KEPT_FILE) from None
    names = [f.name for f in fields(Settings) if f.name != "state_dir"]
    if not isinstance(kept, dict) or (unknown := [name for name in kept if name not in names]):
        raise UsageError(f"{path} is not an object of settings" + (f": there is no {unknown[0][:40]!r}" if isinstance(kept, dict) else ""))
    return kept


def keep_setting(state_dir: Path, name: str, value: str | None) -> None:
    """From the next start on the setting has this value where nothing else says it; None: its default. Raises UsageError."""
    path = state_dir / KEPT_FILE
    kept = {**kept_settings(state_dir), name: value}
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=state_dir, prefix=KEPT_FILE, delete=False) as draft:
            draft.write(json.dumps({key: value for key, value in kept.items() if value is not None}, indent=1, ensure_ascii=False) + "\n")
        os.replace(draft.name, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Choose another place with QWENBOX_STATE_DIR.", param="state_dir") from None


def takes_copies() -> bool:
    """Whether the terminal may pass text on to a clipboard: some are known never to."""
    return os.environ.get("TERM", "dumb") not in ("dumb", "linux") and os.environ.get("TERM_PROGRAM") != "Apple_Terminal"


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a program that we start, with `changes`."""
    return {**os.environ, **changes}


def describe() -> str:
    """The table as Markdown, for docs/settings.md."""
    lines = ["| Setting | Environment | Default | What it does |", "|---|---|---|---|"]
    for entry in fields(Settings):
        rules = entry.metadata
        default = str(entry.default).lower() if isinstance(entry.default, bool) else entry.default
        shown = rules["shown"] or ("" if default in (None, ()) else f"`{default}`")
        variables = f"`{PREFIX}{entry.name.upper()}`" + (f", `{rules['also']}`" if rules["also"] else "")
        text = rules["text"] + (f" One of {', '.join(f'`{choice}`' for choice in rules['choices'])}." if rules["choices"] else "")
        lines.append(f"| `{entry.name}` | {variables} | {shown} | {text} |")
    return "\n".join(lines) + "\n"


def _checked(source: str, value: Any, hint: Any, entry: Field[Any]) -> Any:
    kind = next(t for t in typing.get_args(hint) if t is not types.NoneType) if isinstance(hint, types.UnionType) else hint
    rules = entry.metadata
    try:
        value = _parsed(value, kind)
    except (ValueError, TypeError):
        shown = "" if entry.name in _SECRETS else f" {value!r} is"
        raise UsageError(f"{source}:{shown} not {_ARTICLES[kind]}", param=source) from None
    if rules["choices"]:
        value = value.lower()
    if rules["choices"] and value not in rules["choices"]:
        raise UsageError(f"{source}: {value!r} is not one of {', '.join(rules['choices'])}{_nearest(str(value), rules['choices'])}", param=source)
    if kind in (int, float) and (
        not math.isfinite(value) or (rules["least"] is not None and value < rules["least"]) or (rules["most"] is not None and value > rules["most"])
    ):
        limits = " and ".join(f"at {side} {rules[side]}" for side in ("least", "most") if rules[side] is not None)
        raise UsageError(f"{source}: {value} must be {limits or 'finite'}", param=source)
    return value


_ARTICLES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "one of 1, 0, true, false, yes, no, on, off",
    str: "a text",
    Path: "a path",
    tuple[str, ...]: "a list of texts",
}


def _parsed(value: Any, kind: type) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in _TRUE:
            return True
        if str(value).lower() in _FALSE:
            return False
        raise ValueError
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        raise ValueError
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(str(part) for part in value)
    if kind is Path:
        return Path(value).expanduser()
    if kind is str and not isinstance(value, str):
        raise ValueError
    return kind(value)


def _nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""
