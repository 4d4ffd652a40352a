"""`qwenbox launch PROGRAM`: a program for coding, pointed at this service by a profile that goes when it ends."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NamedTuple

import typer

from qwenbox.errors import RequestError, UsageError

from .remote import Remote, Url, started_service

_NO_KEY = "none"
_KEY_VARIABLE = "LAUNCHED_API_KEY"
MAX_AT_ONCE = 64
_PATIENCE_MS = 3_600_000
"""How long a program waits while its prompt is read: tens of thousands of tokens take minutes on a processor."""


class Target(NamedTuple):
    """What a program has to know. `window`: tokens of a prompt and its answer together."""

    url: str
    key: str
    model: str
    window: int

    @property
    def answer(self) -> int:
        """The longest answer that a program shall plan with."""
        return min(self.window // 4, 16384)


class Profile(NamedTuple):
    """`environment` is added to ours; `files` are put into the temporary folder."""

    environment: Mapping[str, str]
    files: Mapping[str, str]


class Program(NamedTuple):
    install: str
    profile: Callable[[Target, Path], Profile]


def _claude(to: Target, folder: Path) -> Profile:
    models = dict.fromkeys(
        (
            "ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL",
            "CLAUDE_CODE_SUBAGENT_MODEL",
        ),
        to.model,
    )  # fmt: skip
    environment = models | {
        "CLAUDE_CONFIG_DIR": str(folder),
        "ANTHROPIC_BASE_URL": to.url,
        "ANTHROPIC_AUTH_TOKEN": to.key,
        "ANTHROPIC_API_KEY": "",  # it would go first, and is for somebody else
        # Counts for models that are not called claude-something.
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(to.window),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(to.answer),
        # Pings do not count for it: after 300 s without an event it asks again, and gives up.
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(_PATIENCE_MS),
        "API_TIMEOUT_MS": str(_PATIENCE_MS),
        # Memory would go with the profile; the others are a third of its prompt, which is read before the first word.
        **dict.fromkeys((f"CLAUDE_CODE_DISABLE_{what}" for what in ("AUTO_MEMORY", "WORKFLOWS", "CRON")), "1"),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
    }
    return Profile(environment, {".claude.json": json.dumps({"hasCompletedOnboarding": True})})


def _codex(to: Target, folder: Path) -> Profile:
    # Strings of JSON are strings of TOML.
    lines = [
        f"model = {json.dumps(to.model)}",
        'model_provider = "qwenbox"',
        f"model_context_window = {to.window}",
        f"model_auto_compact_token_limit = {to.window - to.answer}",
        "check_for_update_on_startup = false",
        "[model_providers.qwenbox]",
        'name = "qwenbox"',
        f"base_url = {json.dumps(to.url + '/v1')}",
        'wire_api = "responses"',
        f'env_key = "{_KEY_VARIABLE}"',
    ]
    return Profile({"CODEX_HOME": str(folder), _KEY_VARIABLE: to.key}, {"config.toml": "\n".join(lines) + "\n"})


def _opencode(to: Target, folder: Path) -> Profile:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "qwenbox",
        "options": {"baseURL": f"{to.url}/v1", "apiKey": f"{{env:{_KEY_VARIABLE}}}"},
        "models": {to.model: {"name": to.model, "tool_call": True, "limit": {"context": to.window, "output": to.answer}}},
    }
    model = f"qwenbox/{to.model}"
    settings = {"provider": {"qwenbox": provider}, "model": model, "small_model": model, "share": "disabled", "autoupdate": False}
    return Profile({"OPENCODE_CONFIG_CONTENT": json.dumps(settings), "OPENCODE_DISABLE_MODELS_FETCH": "1", _KEY_VARIABLE: to.key}, {})


def _qwen(to: Target, folder: Path) -> Profile:
    settings = {
        "security": {"auth": {"selectedType": "openai"}},
        "model": {"name": to.model, "generationConfig": {"contextWindowSize": to.window, "timeout": _PATIENCE_MS}},
        # It would go with the profile, and is a second prompt behind every question.
        "memory": {"enableManagedAutoMemory": False},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"enableAutoUpdate": False},
    }
    environment = {
        "QWEN_HOME": str(folder),
        "QWEN_CODE_SYSTEM_SETTINGS_PATH": str(folder / "settings.json"),
        "OPENAI_BASE_URL": f"{to.url}/v1",
        "OPENAI_API_KEY": to.key,
        "OPENAI_MODEL": to.model,
    }
    return Profile(environment, {"settings.json": json.dumps(settings)})


PROGRAMS: Mapping[str, Program] = {
    "claude": Program("npm install -g @anthropic-ai/claude-code", _claude),
    "codex": Program("npm install -g @openai/codex", _codex),
    "opencode": Program("npm install -g opencode-ai", _opencode),
    "qwen": Program("npm install -g @qwen-code/qwen-code", _qwen),
}


def launch(
    context: typer.Context,
    program: Annotated[str, typer.Argument(help="claude, codex, opencode or qwen; what follows is given to it.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Model to use; otherwise the service's own.", show_default=False)] = None,
    url: Url = None,
) -> None:
    """Start a program for coding with this service as its model. Its own settings stay as they are: the profile is temporary."""
    if program not in PROGRAMS:
        raise UsageError(f"launch knows {', '.join(PROGRAMS)}, not {program!r}.")
    from qwenbox.settings import load_settings

    if (path := shutil.which(program)) is None:
        raise UsageError(f"{program} is not installed, or not on PATH: {PROGRAMS[program].install}")
    with _service(Remote(url), ours=url is None) as remote:
        target = _target(remote, model)
        typer.echo(f"{program} on {target.model} at {target.url}, {target.window} tokens of context", err=True)
        # Not below /tmp: Codex keeps its helpers in no temporary folder.
        profiles = load_settings().state_dir / "profiles"
        profiles.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _folder(profiles, program) as folder:
            profile = PROGRAMS[program].profile(target, folder)
            for name, text in profile.files.items():
                (folder / name).write_text(text, "utf-8")
            code = _run([path, *context.args], profile.environment)
    raise typer.Exit(code)


@contextmanager
def _service(remote: Remote, *, ours: bool) -> Iterator[Remote]:
    """The service, which is started where none answers, and then ended again. `ours`: at the address of the settings, where it may be started."""
    if not ours or remote.answers():
        yield remote
        return
    typer.echo(f"no service answers at {remote.url}; one is started until the program ends", err=True)
    with started_service([], remote):
        yield remote


@contextmanager
def _folder(profiles: Path, program: str) -> Iterator[Path]:
    """An empty folder until the block ends, with the same name every time while nobody else has it: programs write it into the beginning of their
    prompts, and with another name there nothing that follows would be found in the service's cache.
    """
    for name in (program, *(f"{program}-{number}" for number in range(2, MAX_AT_ONCE + 1))):
        with (profiles / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            folder = profiles / name
            shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
            folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return
    raise UsageError(f"{program} has been launched {MAX_AT_ONCE} times already.")


def _target(remote: Remote, name: str | None) -> Target:
    """The model, loaded: its window is known then."""
    models = remote.models()
    known = [name] if name is not None else [model["id"] for model in models if model.get("qwenbox", {}).get("default")]
    if not known:
        raise RequestError(f"What answers at {remote.url} has no model.")
    model = remote.loaded(known[0])
    return Target(remote.url, remote.key or _NO_KEY, model["id"], int(model["max_model_len"]))


def _run(command: list[str], environment: Mapping[str, str]) -> int:
    """The program's exit code. Ctrl-C is the program's own business, and a SIGTERM for us is passed on to it."""
    from qwenbox.settings import child_environment

    process: subprocess.Popen[bytes] | None = None

    def terminate(number: int, frame: FrameType | None) -> None:
        if process is not None:
            process.terminate()

    before = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None), signal.SIGTERM: signal.signal(signal.SIGTERM, terminate)}
    try:
        process = subprocess.Popen(command, env=child_environment(**environment))
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
