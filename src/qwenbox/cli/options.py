"""Arguments and options that several commands share, stated once."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A name of the catalogue, a directory, or a .gguf file.", show_default=False)]
OptionalModel = Annotated[
    str | None, typer.Argument(help="A name of the catalogue, a directory, or a .gguf file; otherwise the setting `model`.", show_default=False)
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Form of the weights in memory: stored, bf16, int8 or int4; otherwise as stored, but the head of a quantised checkpoint as int8. "
        "Quantised weights are rounded a second time, with loss."
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        help="Kind of the head, which makes logits: stored, bf16, int8, int4, or two-stage, which is int8 and reads less where answers are greedy; "
        "otherwise as --weights says."
    ),
]
Embedding = Annotated[str | None, typer.Option(help="Kind of the embedding: stored, bf16, int8 or int4; otherwise as --weights says.")]
ContextLength = Annotated[int | None, typer.Option(min=1, help="Longest prompt and answer together, in tokens.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the kernels; otherwise one a processor.")]
Isa = Annotated[str | None, typer.Option(help="Instruction-set variant: generic, avx2, avxvnni, avx512vnni or amx; otherwise the best there is.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option(min=0.0, help="0 takes the most likely token; otherwise the model's own default.")]
TopP = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Smallest set of tokens with this much probability.")]
TopK = Annotated[int | None, typer.Option(min=0, help="How many of the most likely tokens to choose from; 0 for all.")]
Thinking = Annotated[
    str | None,
    typer.Option(help="Think first: on, off, auto, or a number of tokens at most; otherwise the setting `thinking`, or auto for 20 seconds."),
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer; otherwise another one each time.")]
System = Annotated[str | None, typer.Option(help="System message before the conversation.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON for programs.")]
