"""`qwenbox quantize MODEL OUT`: a checkpoint with weights of 4 or 8 bits, from a directory or a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenbox.errors import ModelFormatError, QwenboxError

from .options import Model as ModelName
from .session import bar_of, note, progress_bar, resolve
from .verify import opened, read_digests, write_fingerprint

if TYPE_CHECKING:
    from qwenbox.quantize.quantize import Progress as Layers
    from qwenbox.settings import Settings

TOKENS = 32768
"""Of the calibration, where nobody says how many."""
KL_TOKENS, KL_WINDOW = 2048, 256
"""Of text that the calibration did not see, and what the models see of it at once."""
_ROOM = 1 << 30
"""Bytes beside the weights of two models."""


class Method(StrEnum):
    awq = "awq"
    gptq = "gptq"
    rtn = "rtn"
    both = "awq+gptq"


def quantize(
    model: ModelName,
    out: Annotated[Path, typer.Argument(help="Directory to write; one that a killed run left is finished.", show_default=False)],
    method: Annotated[
        Method | None,
        typer.Option(help="rtn rounds to nearest; the others watch the model with a text.", show_default="awq+gptq with 4 bits, rtn with 8"),
    ] = None,
    bits: Annotated[int, typer.Option(help="Of a weight: 4 or 8.")] = 4,
    group: Annotated[int, typer.Option(help="Inputs that share a scale: 128, 64 or 32.")] = 128,
    calibration: Annotated[str, typer.Option(help="A text, a JSONL file of texts and conversations, or builtin.")] = "builtin",
    tokens: Annotated[int, typer.Option(min=512, help="Read no more tokens of the calibration than this.")] = TOKENS,
    check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Load the result, measure its distance to the original where both fit, keep its fingerprint."),
    ] = True,
) -> None:
    """Make a quantised checkpoint of a model, a layer at a time; run again after a kill, it goes on.

    4 bits are written as AutoAWQ writes them, 8 bits as GPTQ's programs do: qwenbox loads the directory as it is,
    and so do vLLM and transformers (8 bits: gptqmodel).
    """
    from qwenbox.evaluate.fingerprint import FILE
    from qwenbox.llm import open_chat
    from qwenbox.quantize.calibration import BUILTIN, LENGTH, load
    from qwenbox.quantize.quantize import Options, finished
    from qwenbox.quantize.quantize import quantize as run
    from qwenbox.quantize.source import read_source
    from qwenbox.settings import load_settings

    settings = load_settings()
    options = Options((method or (Method.rtn if bits == 8 else Method.both)).value, bits, group)
    path = resolve(model, settings)
    source = read_source(path)
    chat = open_chat(path)
    length = min(LENGTH, source.network.positions)
    text = load(calibration, chat, tokens, length) if options.calibrated else None
    facts = finished(source, out, options, text) if check and not (out / FILE).exists() else None
    if facts is not None:
        note(f"{out} was finished before; now it is looked at")
    else:
        with progress_bar() as bar:
            line = bar.add_task("quantising", total=source.config.num_layers)

            def report(state: Layers) -> None:
                left = "" if state.seconds_left is None else f", {_duration(state.seconds_left)} left"
                if state.seconds is not None:
                    note(f"layer {state.done} of {state.total}: {state.seconds:.1f} s{left}")
                bar.update(line, completed=state.done, description=f"layer {min(state.done + 1, state.total)} of {state.total}{left}")

            facts = run(source, out, options, text, report)
        note(f"{out}: {facts['bytes'] / 1e9:.2f} GB, {facts['method']}, {facts['bits']} bits")
    if check:
        ours = text is not None and (calibration == "builtin" or Path(calibration).samefile(BUILTIN))
        seen = tokens if ours else 0
        try:
            _look_at(out, path, facts, load("builtin", chat, seen + KL_TOKENS).ids.reshape(-1)[seen:].tolist(), settings)
        except (QwenboxError, OSError) as error:
            reason = error.message if isinstance(error, QwenboxError) else f"{error.filename or out}: {error.strerror}"
            note(f"{out} is finished, but could not be looked at: {reason}. The same command looks again; --no-check does without.")
            raise typer.Exit(1) from None


def _look_at(out: Path, original: Path, facts: Mapping[str, Any], ids: list[int], settings: Settings) -> None:
    """Loads the result: its distance to the original, on ids that no calibration saw, goes on the card, and its fingerprint beside it.

    Says why the distance is not measured where it is not. What settings say of the weights in memory is nothing of the directory's.
    """
    from qwenbox.evaluate.divergence import divergence
    from qwenbox.evaluate.fingerprint import FILE
    from qwenbox.model.load import available_memory
    from qwenbox.quantize.quantize import add_quality

    files = read_digests(out.name, out)
    if changed := [name for name, digest in facts["sha256"].items() if name not in files or files[name].sha256 != digest]:
        raise ModelFormatError(f"{', '.join(changed)} is not what was written there; remove {out} and begin again")
    needed = facts["source_bytes"] + facts["bytes"] + _ROOM
    both = bool(ids) and needed <= available_memory()
    if not both:
        why = f"{needed / 1e9:.1f} GB of memory are needed" if ids else "the calibration used all of the text"
        note(f"The distance to {facts['model']} is not measured: {why}; see `qwenbox eval --task kl`.")
    with opened(str(out), out, settings, {"weights": None}) as made:
        if both:
            with opened(str(original), original, settings, {"weights": "stored"}) as reference, bar_of("comparing", len(ids)) as progress:
                found = divergence(made.model, reference.model, ids, window=KL_WINDOW, stride=KL_WINDOW // 2, progress=progress)
            note(f"KL to the original {found.kl_mean:.4f} nats a token, the same likeliest token {found.top1_agreement:.1%}")
            add_quality(out, facts, found.numbers())
        write_fingerprint(made, files, out / FILE, dated=False)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"
