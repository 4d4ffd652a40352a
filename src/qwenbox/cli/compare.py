"""`qwenbox compare PEER`: the same model file and the same prompts, here and there."""

from __future__ import annotations

import json as json_module
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenbox.errors import QwenboxError, UsageError

from .options import Json
from .remote import START_SECONDS, Remote, ended, started_service

if TYPE_CHECKING:
    from qwenbox.evaluate.comparison import Client

OLLAMA = "http://127.0.0.1:11434"


def compare(
    peer: Annotated[str, typer.Argument(help="ollama, llama.cpp (its llama-server on PATH), or the address of a service.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="A .gguf file, or a name of Ollama's; otherwise its first.", show_default=False)] = None,
    url: Annotated[str | None, typer.Option(help="A qwenbox that runs already; otherwise one is started.", show_default=False)] = None,
    prompt_tokens: Annotated[int, typer.Option(min=16, help="Tokens of a prompt, about.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds that count.")] = 3,
    long_tokens: Annotated[int, typer.Option(min=16, help="Tokens of the prompt that has a number at its beginning, about.")] = 6000,
    plot: Annotated[Path | None, typer.Option(help="Draw the result into this .svg file.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Measure reading, writing, and whether a long prompt is kept whole, beside another service that runs the same file."""
    from qwenbox.evaluate.comparison import Client, picture, summary, table
    from qwenbox.evaluate.comparison import compare as measure

    with ExitStack() as stack:
        name, path = _file(peer, model)
        remote = stack.enter_context(_ours(path, url))
        default = next((one["id"] for one in remote.models() if one.get("qwenbox", {}).get("default")), None)
        if default is None:
            raise UsageError(f"What answers at {remote.url} has no model.")
        remote.loaded(default)
        ours = Client("qwenbox", remote.url, default, ollama=False, key=remote.key)
        theirs = stack.enter_context(_theirs(peer, name, path, remote.threads()))
        for client in (ours, theirs):
            stack.callback(client.close)
        speeds = measure(
            (ours, theirs), remote.count_tokens, prompt_tokens=prompt_tokens, new_tokens=new_tokens, rounds=rounds, long_tokens=long_tokens
        )
    title = f"{name if path is None else path.name}: medians of {rounds} rounds, in turn"
    if plot is not None:
        plot.write_text(picture(speeds, title), "utf-8")
    typer.echo(json_module.dumps({"title": title, "services": summary(speeds)}) if json else f"{title}\n{table(speeds)}")


def _file(peer: str, model: str | None) -> tuple[str, Path | None]:
    """The model's name at the peer, and the file that both run."""
    from qwenbox.hub.disk import look
    from qwenbox.settings import load_settings

    if model is not None and (path := Path(model).expanduser()).is_file():
        return path.name.removesuffix(".gguf"), path
    if peer != "ollama":
        if model is None:
            raise UsageError("--model: which .gguf file do both run?")
        return model, None
    stored = [one for one in look(load_settings()) if one.origin == "Ollama" and one.problem is None]
    chosen = next((one for one in stored if model in (None, one.name, one.name.removesuffix(":latest"))), None)
    if chosen is None:
        raise UsageError(f"Ollama's store has no such model; it has {', '.join(one.name for one in stored) or 'none'}.")
    return chosen.name, chosen.path


@contextmanager
def _ours(path: Path | None, url: str | None) -> Iterator[Remote]:
    if url is not None:
        yield Remote(url)
        return
    if path is None:
        raise UsageError("--model: a .gguf file is needed, or --url of a qwenbox that runs it.")
    port = _free_port()
    remote = Remote(f"http://127.0.0.1:{port}")
    with started_service([str(path), "--host", "127.0.0.1", "--port", str(port)], remote):
        yield remote


@contextmanager
def _theirs(peer: str, name: str, path: Path | None, threads: int) -> Iterator[Client]:
    """`threads`: ours, which a llama-server that is started here gets as well: by itself it takes one a core, and here a core may be two."""
    from qwenbox.evaluate.comparison import Client

    if peer == "ollama":
        yield Client("ollama", OLLAMA, name, ollama=True)
    elif peer != "llama.cpp":
        kind = _kind(peer)
        yield Client(kind, peer.rstrip("/"), name, ollama=kind == "ollama")
    else:
        if (program := shutil.which("llama-server")) is None:
            raise UsageError(
                "There is no llama-server on PATH. Give the address of one that runs: qwenbox compare http://127.0.0.1:8081 --model FILE"
            )
        if path is None:
            raise UsageError("--model: a .gguf file is needed.")
        port = _free_port()
        process = subprocess.Popen(
            [program, "-m", str(path), "--host", "127.0.0.1", "--port", str(port), "--threads", str(threads)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with ended(process):
            _await(process, f"http://127.0.0.1:{port}/health")
            yield Client("llama.cpp", f"http://127.0.0.1:{port}", name, ollama=False)


def _kind(url: str) -> str:
    """Whether Ollama's API is spoken at the address; any other service is called by its address."""
    import httpx2

    try:
        answer = httpx2.get(f"{url.rstrip('/')}/api/version", timeout=10, trust_env=False)
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
        raise UsageError(f"compare knows ollama, llama.cpp and addresses like http://127.0.0.1:8081, not {url!r}.") from None
    except httpx2.HTTPError as error:
        raise QwenboxError(f"Nobody answers at {url} ({error}).") from None
    return "ollama" if answer.is_success else url.split("//")[-1].rstrip("/")


def _await(process: subprocess.Popen[bytes], url: str) -> None:
    import httpx2

    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx2.get(url, timeout=5, trust_env=False).is_success:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    raise QwenboxError("llama-server did not start; run it by hand to see why.")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
