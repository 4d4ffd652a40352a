"""`qwenbox bench MODEL`: tokens per second, and what fraction of the machine's limits they are; ends with one line of JSON."""

from __future__ import annotations

import json as json_module
import time
from contextlib import closing
from enum import StrEnum
from typing import Annotated

import typer

from qwenbox.errors import UsageError

from .options import Embedding, Head, Isa, Json, OptionalModel, Threads, Weights
from .session import load_with_bar, note, resolve


class Shape(StrEnum):
    b8 = "8b"
    b4 = "4b"
    b1_7 = "1.7b"
    b0_6 = "0.6b"
    b30_a3b = "30b-a3b"


def bench(
    model: OptionalModel = None,
    random: Annotated[Shape | None, typer.Option(help="Random weights of this Qwen3 shape, in place of MODEL.")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Streams at the same time.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions; medians are reported.")] = 3,
    json: Json = False,
    weights: Weights = None,
    head: Head = None,
    embedding: Embedding = None,
    threads: Threads = None,
    isa: Isa = None,
) -> None:
    """Measure prefill and decode, and compare them with memory bandwidth and matrix rates measured before and after each repetition."""
    from qwenbox.engine.options import EngineOptions, open_model
    from qwenbox.evaluate.speed import Workload, measure, steal_seconds, summary
    from qwenbox.kernels.ceiling import CeilingMeter
    from qwenbox.model.costs import Costs
    from qwenbox.settings import load_settings

    if (model is None) == (random is None):
        raise UsageError("give a MODEL or --random SHAPE" + (", not both" if model else ""))
    work = Workload(prompt_tokens, new_tokens, batch)
    settings = load_settings(
        {
            "model": model,
            "weights": weights,
            "head": head,
            "embedding": embedding,
            "threads": threads,
            "isa": isa,
            "context_length": prompt_tokens + new_tokens,
            "max_sequences": max(32, batch),
        }
    )
    if model is not None:
        where = {"model": str(resolve(model, settings))}
        name = model
    else:
        where = {"random": str(random)}
        name = f"random-{random}"
    options = EngineOptions.from_settings(settings, num_pages=work.num_pages, **where)

    started, stolen = time.monotonic(), steal_seconds()
    with closing(load_with_bar(lambda progress: open_model(options, progress), name)) as loaded:
        load_seconds = time.monotonic() - started
        meter = CeilingMeter(loaded.threads)
        repetitions = measure(loaded, work, repeat=repeat, ceilings=meter.measure)
        numbers = summary(work, repetitions, Costs(**loaded.costs))
        numbers |= {"weights_bytes": loaded.weights_bytes, "isa": loaded.isa, "threads": loaded.threads, "model": name}
    numbers |= {"load_seconds": load_seconds, "steal_seconds": steal_seconds() - stolen}
    if not json:
        typer.echo(_report(numbers))
    elif stolen and numbers["steal_seconds"] > 1:
        note(f"the host took {numbers['steal_seconds']:.1f} s of this machine's time meanwhile")
    typer.echo(json_module.dumps(numbers))


def _report(n: dict[str, float]) -> str:
    return (
        f"{n['model']} on {n['isa']} with {n['threads']} threads: {n['batch']} x ({n['prompt_tokens']} + {n['new_tokens']}) tokens, "
        f"medians of {n['repeat']}\n"
        f"prefill {n['prefill_tok_s']:9.2f} tok/s   {n['compute_fraction']:6.1%} of {n['ceiling_l1_tops']:.2f} T/s "
        f"({n['ceiling_method']}, fed from L1)\n"
        f"decode  {n['decode_tok_s']:9.2f} tok/s   {n['bandwidth_fraction']:6.1%} of {n['ceiling_bandwidth_gb_s']:.1f} GB/s "
        f"({n['bytes_per_token'] / 1e6:.1f} MB a token, {n['bandwidth_gb_s']:.1f} GB/s)\n"
        f"memory  {n['rss_bytes'] / 1e9:.2f} GB, weights {n['weights_bytes'] / 1e9:.2f} GB; steal time {n['steal_seconds']:.1f} s"
    )
