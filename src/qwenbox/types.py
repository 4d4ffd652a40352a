"""Nouns of the whole pipe: tensors, batches, plans, events.

These are pure values. They know no file, no socket and no kernel; every package may import them and they import nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
ByteArray = npt.NDArray[np.uint8]
AnyArray = npt.NDArray[Any]

PAGE_TOKENS = 32
"""Tokens in one KV page."""


# --- weights -------------------------------------------------------------------------------------------------------


class TensorKind(NamedTuple):
    """How the bytes of a row are laid out. `code` is the number the native library knows the kind by."""

    code: int
    block: int
    """Elements in a block; a row holds ceil(columns / block) blocks."""
    block_bytes: int
    ggml_type: int | None
    """Type number in a GGUF file, None where GGUF has no such type."""


TENSOR_KINDS: Mapping[str, TensorKind] = {
    "f32": TensorKind(0, 1, 4, 0),
    "f16": TensorKind(1, 1, 2, 1),
    "bf16": TensorKind(2, 1, 2, 30),
    "q4_0": TensorKind(3, 32, 18, 2),
    "q4_1": TensorKind(4, 32, 20, 3),
    "q5_0": TensorKind(5, 32, 22, 6),
    "q8_0": TensorKind(6, 32, 34, 8),
    "q4_k": TensorKind(7, 256, 144, 12),
    "q5_k": TensorKind(8, 256, 176, 13),
    "q6_k": TensorKind(9, 256, 210, 14),
    # Ours: fp16 scale, uint8 zero from 0 to 15, 64 bytes of codes (byte j: low nibble = element j, high nibble = element j + 64).
    "int4": TensorKind(10, 128, 67, None),
    # Ours: fp16 scale, 128 int8 codes.
    "int8": TensorKind(11, 128, 130, None),
    # Ours, int4 with groups of 64 or 32: fp16 scale, uint8 zero from 0 to 15, codes (low nibbles = the first half, high nibbles = the other).
    "int4_64": TensorKind(12, 64, 35, None),
    "int4_32": TensorKind(13, 32, 19, None),
    # Ours: fp16 scale, uint8 zero, 128 uint8 codes.
    "uint8": TensorKind(14, 128, 131, None),
}
"""Every kind of weight there is: files are checked, kernels chosen and bytes counted by this table. Blocks are little-endian."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named weight as its file holds it. `shape` is (rows, columns), (columns,) or (experts, rows, columns): the last axis is contiguous.

    `data` is a flat uint8 view of exactly `nbytes` bytes, already checked against the file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    data: ByteArray

    @property
    def nbytes(self) -> int:
        return tensor_nbytes(self.kind, self.shape)

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        """What holds it."""
        return (self.data,)

    def expert(self, index: int) -> Tensor:
        """One (rows, columns) slice of an (experts, rows, columns) tensor."""
        size = self.nbytes // self.shape[0]
        return Tensor(f"{self.name}[{index}]", self.kind, self.shape[1:], self.data[index * size : (index + 1) * size])


@dataclass(frozen=True, slots=True)
class RoundedTensor(Tensor):
    """A tensor whose rows become `kind` when they are packed, as `kernels.quants.round_tensor` makes them. `data` is empty."""

    stored: Tensor

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        return self.stored.arrays


@dataclass(frozen=True, slots=True)
class PackedTensor(Tensor):
    """A matrix as another program packs it, which `weights.unpack` brings into blocks of its kind without loss. `data` is empty."""


@dataclass(frozen=True, slots=True)
class AwqTensor(PackedTensor):
    """A matrix of kind int4, int4_64 or int4_32 in the words of AutoAWQ (see `weights/awq.py`)."""

    qweight: npt.NDArray[np.uint32]
    """[columns, rows / 8]"""
    qzeros: npt.NDArray[np.uint32]
    """[columns / block of the kind, rows / 8]"""
    scales: npt.NDArray[np.uint16]
    """[columns / block of the kind, rows], the bits of fp16."""

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        return self.qweight, self.qzeros, self.scales


@dataclass(frozen=True, slots=True)
class GptqTensor(PackedTensor):
    """A matrix in words that hold codes of one output (see `weights/gptq.py`)."""

    qweight: npt.NDArray[np.uint32]
    """[columns / codes of a word, rows]"""
    qzeros: npt.NDArray[np.uint32]
    """[groups, rows / codes of a word]"""
    scales: Tensor
    """[groups, rows]"""
    zeros_less_one: bool
    """Version 1 of the format."""

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        return self.qweight, self.qzeros, self.scales.data


@dataclass(frozen=True, slots=True)
class CompressedTensor(PackedTensor):
    """A matrix whose rows are words of consecutive codes (see `weights/compressed.py`)."""

    packed: npt.NDArray[np.uint32]
    """[rows, columns / codes of a word]"""
    zeros: npt.NDArray[np.uint32] | None
    """[rows / codes of a word, groups]; None: symmetric"""
    scales: Tensor
    """[rows, groups]"""

    @property
    def arrays(self) -> tuple[AnyArray, ...]:
        return (self.packed, self.scales.data) if self.zeros is None else (self.packed, self.zeros, self.scales.data)


def tensor_nbytes(kind: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this kind and shape; whole blocks per row."""
    info = TENSOR_KINDS[kind]
    rows = 1
    for extent in shape[:-1]:
        rows *= extent
    return rows * -(-shape[-1] // info.block) * info.block_bytes


# --- what one step runs --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A run of tokens of one sequence inside a batch: rows [start, start + length) sit at positions [position, position + length).

    `pages` are the page ids that cover positions [0, position + length), in order.
    """

    start: int
    length: int
    position: int
    pages: IntArray


@dataclass(frozen=True, slots=True)
class Batch:
    """One step of the model. `ids` int32 [num_tokens]; `logits_rows` int32, the rows whose logits are wanted, ascending."""

    ids: IntArray
    spans: Sequence[Span]
    logits_rows: IntArray
    largest: int = 0
    """Not 0: of each row only the largest of its first so many logits is wanted, all equal ones; smaller ones may be minus infinity instead."""
    hidden: bool = False
    """Of `logits_rows` not the logits are wanted but what the head would read: the states behind the last norm."""

    @property
    def num_tokens(self) -> int:
        return len(self.ids)


# --- what a request asks for ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; the meaning of each field stands in docs/numeric-contract.md, section Sampling."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    choice: int = 0
    """Number of the choice inside a request (`n`): with `seed` and the position it selects the random number."""
    logprobs: int | None = None
    """None: no log-probabilities; n: of the chosen token and of the n most likely."""


@dataclass(frozen=True, slots=True)
class ThinkingPlan:
    """How an answer may think: where its thought begins and ends by id, and when the engine ends it by putting `closing_ids` behind it."""

    open_id: int
    close_id: int
    closing_ids: tuple[int, ...]
    """Stop text, `</think>`, and what stands before an answer."""
    blank_ids: tuple[int, ...] = ()
    """A thought begins before anything else is said; these say nothing."""
    open: bool = False
    """The prompt ends inside the thought."""
    max_tokens: int | None = None
    """Of the thought."""
    max_seconds: float = math.inf
    """Of the thought."""
    deadline: float = math.inf
    """Seconds after the request came."""
    answer_tokens: int = 0
    """Of the plan's `max_tokens`, these the thought cannot touch."""
    loop_guard: bool = True
    """A thought that goes in circles is ended."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """What the ids of a model stand for, as data: what a grammar needs to know of a tokenizer."""

    data: bytes
    """The bytes of all tokens, one after the other; ids that name no token have none."""
    ends: bytes
    """Where each ends in `data`, uint32 in little-endian order."""
    control_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]

    @property
    def num_ids(self) -> int:
        return len(self.ends) // 4


Pooling = Literal["mean", "last"]
"""Which hidden states a vector is made of: the mean of all tokens' or the last token's."""


@dataclass(frozen=True, slots=True)
class ConstraintPlan:
    """The form that the content must have. Thoughts are free."""

    grammar: str
    """As llguidance reads it: Lark, or JSON."""
    param: str = "response_format"
    """The field that asked for it, for errors."""
    trigger: int | None = None
    """The grammar holds from this id of the content on until it allows nothing more, each time. None: it holds for all content."""
    gap_ids: tuple[int, ...] = ()
    """Stand between a thought and the content."""


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """Everything the engine has to know of a request: token ids and numbers, no text. Serialisable by `to_wire`."""

    request_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    stop_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    prompt_logprobs: int | None = None
    """None, or how many top log-probabilities of each prompt token are wanted (`echo` with `logprobs`)."""
    cache_salt: str = ""
    """Pages of keys and values are shared with requests of the same salt only."""
    user: str = ""
    """Whose request it is: places and time are shared fairly among users."""
    weight: float = 1.0
    """Of the user: one with weight 2 gets twice as much as one with weight 1."""
    priority: int = 0
    """Lower ones are admitted first, whoever's they are."""
    attempt: int | None = None
    """How often this request was refused before; None where the client does not say."""
    thinking: ThinkingPlan | None = None
    """None: the ids of thoughts mean nothing special."""
    loop_guard: bool = False
    """An answer that goes in circles ends, with reason "length"."""
    constraint: ConstraintPlan | None = None
    progress: bool = False
    """Whether outputs say how far the prompt has been read, while that takes long."""
    pooling: Pooling | None = None
    """The request wants no tokens but one vector of its prompt, and `max_tokens` is 0."""

    def to_wire(self) -> dict[str, Any]:
        plan = asdict(self)
        plan["sampling"]["logit_bias"] = list(self.sampling.logit_bias.items())
        return plan

    @classmethod
    def from_wire(cls, plan: Mapping[str, Any]) -> GenerationPlan:
        sampling, thinking, constraint = dict(plan["sampling"]), plan["thinking"], plan["constraint"]
        sampling["logit_bias"] = {int(k): float(v) for k, v in sampling["logit_bias"]}
        fields = dict(plan) | {
            "sampling": SamplingParams(**sampling),
            "prompt_ids": tuple(plan["prompt_ids"]),
            "stop_ids": tuple(plan["stop_ids"]),
            "thinking": thinking and ThinkingPlan(**dict(thinking) | {name: tuple(thinking[name]) for name in ("closing_ids", "blank_ids")}),
            "constraint": constraint and ConstraintPlan(**dict(constraint) | {"gap_ids": tuple(constraint["gap_ids"])}),
        }
        return cls(**fields)


FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a token, and the most likely alternatives as (id, logprob), best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Progress(NamedTuple):
    """How far a prompt has been read: tokens, `num_cached` of the `num_read` without work; seconds since it began, and those that are left, once
    something is known of them.
    """

    num_read: int
    num_tokens: int
    num_cached: int
    seconds: float
    seconds_left: float | None


@dataclass(slots=True)
class SequenceOutput:
    """What one step produced for one request. The last output of a request, and only it, has a `finish_reason`.

    There is one a token, as of `Event`, and a frozen one takes three times as long to make. A stop id ends a sequence with reason "stop"; it is the
    last of `ids` and is counted as a completion token.
    """

    request_id: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob | None, ...] | None = None
    """None for a token that nobody chose, because the engine put it there."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """One entry a prompt token, None for the first; sent with the first output where the plan asked for it."""
    finish_reason: FinishReason | None = None
    error: Mapping[str, Any] | None = None
    """`errors.QwenboxError.to_wire()` of what went wrong, with reason "error"."""
    usage: Usage | None = None
    timings: Mapping[str, float] | None = None
    """Seconds, with the last output: queue, prefill, decode."""
    detail: Mapping[str, str] | None = None
    """With the last output: why the engine ended the thought ("thinking_ended") or the answer ("stop"), where it did."""
    progress: Progress | None = None
    """Of the prompt, where the plan asks for it; such an output has nothing else."""
    vector: bytes | None = None
    """With the last output, where the plan has a `pooling`: float32 in little-endian order, [hidden], as the model gives it."""


# --- what people and clients see -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, in the shape chat templates read. `tool_calls` items are OpenAI's objects."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    reasoning_content: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


class ThinkingVote(NamedTuple):
    """What one field of a request says about thinking. None: it does not say."""

    source: str
    """The field, as the client wrote it."""
    mode: Literal["on", "off", "auto"] | None = None
    budget: int | None = None
    """Tokens that thinking may take."""
    seconds: float | None = None
    """How long thinking may take."""


class OutputFormat(NamedTuple):
    """The form that the content must have."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "lark"]
    value: Any = None
    """A JSON schema, an expression, the texts to choose from, a grammar; None for json_object."""
    param: str = "response_format"
    """The field that asked for it, for errors."""


@dataclass(frozen=True, slots=True)
class RequestParams:
    """What a request asks for beside its text. None: the model's own default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    """None: another one for every request."""
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    cache_salt: str = ""
    """Requests share the keys and values of a common beginning with requests of the same salt only."""
    user: str = ""
    weight: float = 1.0
    priority: int = 0
    attempt: int | None = None
    """See `GenerationPlan` for these four."""
    min_tokens: int = 0
    logprobs: int | None = None
    echo: bool = False
    """The prompt is given back before the answer, with its log-probabilities where `logprobs` asks for them."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    thinking: tuple[ThinkingVote, ...] = ()
    """The strongest first."""
    wait_seconds: float | None = None
    """How long the client waits for the whole answer, where it does not read it as it comes."""
    tool_choice: str = "auto"
    """auto, none, required, or `=` and the name of the one tool."""
    allowed_tools: tuple[str, ...] = ()
    """Names of those that may be called, where these are not all that the model knows of."""
    parallel_tool_calls: bool = True
    output_format: OutputFormat | None = None
    progress: bool = False
    """Whether "progress" events say how far a long prompt has been read."""


@dataclass(frozen=True, slots=True)
class TextLogprob:
    """A `TokenLogprob` with its text: `token` may be lossy, `bytes` never is."""

    id: int
    token: str
    bytes: bytes
    logprob: float
    top: tuple[TextLogprob, ...] = ()


class ToolCallPiece(NamedTuple):
    """A piece of a call. `id` and `name` come whole with its first piece; the `arguments` of all its pieces are one JSON text."""

    number: int
    """Of the call in its answer."""
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Event:
    """What comes out of the chat layer. Streams end with exactly one "finish" or "error"; "progress" comes before an answer."""

    kind: Literal["progress", "reasoning", "content", "tool_call", "finish", "error"]
    text: str = ""
    logprobs: tuple[TextLogprob, ...] = ()
    ids: tuple[int, ...] = ()
    call: ToolCallPiece | None = None
    finish_reason: FinishReason | Literal["tool_calls"] | None = None
    stop_text: str | None = None
    """The stop string that ended the content, where one did."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """With the last event: what we say beside, for the client's `qwenbox` object."""
    usage: Usage | None = None
    timings: Mapping[str, float] | None = None
    error: Mapping[str, Any] | None = None
    progress: Progress | None = None
    vector: bytes | None = None
    """With "finish", of a request for one: as in `SequenceOutput`."""
