"""`qwenbox serve [MODEL]`: the service, with its address on standard output before the model is fetched or loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ContextLength, Embedding, Head, Isa, OptionalModel, Threads, Weights

if TYPE_CHECKING:
    from qwenbox.server.serve import Service


def serve(
    model: OptionalModel = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="NAME=MODEL: a further name of a model, as in gpt-4o=qwen2.5-coder-1.5b; repeatable.")
    ] = None,
    keep_alive: Annotated[
        float | None, typer.Option(min=-1, help="Seconds that a model loaded for a request stays after its last answer; -1 keeps it. Otherwise 1800.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; otherwise 127.0.0.1, which only this machine reaches.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one. Otherwise 8080.")] = None,
    ollama: Annotated[
        bool | None, typer.Option("--ollama", help="Listen on 127.0.0.1:11434 as well, where Ollama's clients look; its API is on either port.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Key that clients must send; other people see it in the list of processes.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File whose first line is the key that clients must send.")] = None,
    weights: Weights = None,
    head: Head = None,
    embedding: Embedding = None,
    context_length: ContextLength = None,
    kv_gb: Annotated[float | None, typer.Option(min=0.001, help="Gigabytes for the KV pages; otherwise what fits into memory.")] = None,
    memory_util: Annotated[
        float | None, typer.Option(min=0.05, max=1.0, help="Share of the free memory for weights and KV pages, unless --kv-gb is given.")
    ] = None,
    threads: Threads = None,
    isa: Isa = None,
    max_sequences: Annotated[int | None, typer.Option(min=1, help="Requests that run at the same time.")] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens in one step of the model.")] = None,
    step_ms: Annotated[int | None, typer.Option(min=10, help="Milliseconds of a step while answers stream; otherwise 200.")] = None,
    max_queue: Annotated[int | None, typer.Option(min=0, help="Requests that wait; one more is refused with 429.")] = None,
    thinking: Annotated[str | None, typer.Option(help="Where a request does not say: model, on, off or auto.")] = None,
    thinking_budget: Annotated[int | None, typer.Option(min=1, help="Tokens that a thought may have, where a request does not say.")] = None,
    thinking_seconds: Annotated[float | None, typer.Option(min=0.1, help="Seconds that a thought may take, where a request does not say.")] = None,
    reasoning_field: Annotated[str | None, typer.Option(help="Where thoughts are shown: reasoning_content, reasoning, or both.")] = None,
    loop_guard: Annotated[
        bool | None, typer.Option("--loop-guard/--no-loop-guard", help="End thoughts and answers that repeat themselves for ever; otherwise on.")
    ] = None,
    request_timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds that a request may take.")] = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="Refuse requests with fields that we know nothing of.")] = None,
    remote_choice: Annotated[
        bool | None, typer.Option("--remote-choice", help="Let whoever has the key name files, folders and mirrors from elsewhere too.")
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where pulled models are kept.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where the service keeps the key that it made.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the page's conversations are kept.")] = None,
    archive: Annotated[
        bool | None, typer.Option("--archive/--no-archive", help="Keep the page's conversations on the disk; otherwise in memory. Otherwise on.")
    ] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never use the network to fetch a model.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve a model: a page for people, and OpenAI's API for programs, on http://127.0.0.1:8080."""
    from qwenbox.server.serve import serve as run_service
    from qwenbox.settings import load_settings

    overrides: dict[str, Any] = {
        "model": model,
        "alias": alias or None,
        "keep_alive": keep_alive,
        "host": host,
        "port": port,
        "ollama": ollama,
        "api_key": api_key,
        "api_key_file": api_key_file,
        "weights": weights,
        "head": head,
        "embedding": embedding,
        "context_length": context_length,
        "kv_gb": kv_gb,
        "memory_util": memory_util,
        "threads": threads,
        "isa": isa,
        "max_sequences": max_sequences,
        "max_batch_tokens": max_batch_tokens,
        "step_ms": step_ms,
        "max_queue": max_queue,
        "thinking": thinking,
        "thinking_budget": thinking_budget,
        "thinking_seconds": thinking_seconds,
        "reasoning_field": reasoning_field,
        "loop_guard": loop_guard,
        "request_timeout": request_timeout,
        "strict": strict,
        "remote_choice": remote_choice,
        "cache_dir": cache_dir,
        "state_dir": state_dir,
        "data_dir": data_dir,
        "archive": archive,
        "offline": offline,
        "log_level": log_level,
    }
    settings = load_settings(overrides)
    raise typer.Exit(run_service(settings, started=announce))


def announce(service: Service) -> None:
    """The address, and the key where this start made one."""
    key = service.key
    lines = [f"qwenbox listens on {service.url}"]
    if key.created is not None:
        lines += [
            "",
            f"This address can be reached from other machines, so a key was made ({key.created}):",
            f"  {key.text}",
            "Sign in with a browser (from another machine, with this machine's address in place of 127.0.0.1):",
            f"  {service.sign_in_url}",
            "Or ask from a shell:",
            f"  curl {service.url}/v1/chat/completions -H 'Authorization: Bearer {key.text}' -H 'Content-Type: application/json' \\",
            """    -d '{"messages": [{"role": "user", "content": "Hello"}]}'""",
        ]
    typer.echo("\n".join(lines))
