"""`qwenbox quantize MODEL OUT`: a checkpoint with weights of 4 or 8 bits, from a directory or a GGUF file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Model
from .session import note, progress_bar, resolve

if TYPE_CHECKING:
    from qwenbox.quantize.quantize import Progress as Layers


class Method(StrEnum):
    awq = "awq"
    gptq = "gptq"
    rtn = "rtn"
    both = "awq+gptq"


def quantize(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Directory to write; one that a killed run left is finished.", show_default=False)],
    method: Annotated[
        Method | None,
        typer.Option(help="rtn rounds to nearest; the others watch the model with a calibration text.", show_default="awq with 4 bits, rtn with 8"),
    ] = None,
    bits: Annotated[int, typer.Option(help="Of a weight: 4 or 8.")] = 4,
    group: Annotated[int, typer.Option(help="Inputs that share a scale: 128, 64 or 32.")] = 128,
    calibration: Annotated[str, typer.Option(help="A text, a JSONL file of texts and conversations, or builtin.")] = "builtin",
    tokens: Annotated[int, typer.Option(min=512, help="Read no more tokens of the calibration than this.")] = 16384,
) -> None:
    """Make a quantised checkpoint of a model, a layer at a time; run again after a kill, it goes on.

    4 bits are written as AutoAWQ writes them, 8 bits as GPTQ's programs do: qwenbox loads the directory as it is,
    and so do vLLM and transformers (8 bits: gptqmodel).
    """
    from qwenbox.llm import open_chat
    from qwenbox.quantize.calibration import load
    from qwenbox.quantize.quantize import Options
    from qwenbox.quantize.quantize import quantize as run
    from qwenbox.quantize.source import read_source
    from qwenbox.settings import load_settings

    options = Options((method or (Method.rtn if bits == 8 else Method.awq)).value, bits, group)
    path = resolve(model, load_settings())
    source = read_source(path)
    text = load(calibration, open_chat(path), tokens) if options.calibrated else None
    with progress_bar() as bar:
        line = bar.add_task("quantising", total=source.config.num_layers)

        def report(state: Layers) -> None:
            left = "" if state.seconds_left is None else f", {_duration(state.seconds_left)} left"
            if state.seconds is not None:
                note(f"layer {state.done} of {state.total}: {state.seconds:.1f} s")
            bar.update(line, completed=state.done, description=f"layer {min(state.done + 1, state.total)} of {state.total}{left}")

        facts = run(source, out, options, text, report)
    note(f"{out}: {facts['bytes'] / 1e9:.2f} GB, {facts['method']}, {facts['bits']} bits")


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"
