"""How to tell a model that was well from one that no longer is: digests of its files, and what it says to fixed prompts.

A digest finds any byte that changed. The rest finds what changed in meaning where bytes cannot tell: the files were made anew, or are read wrongly
(a foreign template, another base of the rope, layers in another order, scales or zeros of other weights). For that the likeliest tokens and their
logits are kept at some places of fixed prompts, among them the model's own answers to a call of a tool, a form and a question about the beginning
of a longer text. Later the same ids run again, answers too, so nothing depends on how a near tie falls.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qwenbox import __version__
from qwenbox.chat.stream import EventStream
from qwenbox.chat.template import FAMILIES, encode_chat, template_for
from qwenbox.chat.toolcall import ToolScanner, tool_calls
from qwenbox.errors import ModelFormatError, RequestError
from qwenbox.hub.manifest import FileDigest, sha256_of
from qwenbox.types import PAGE_TOKENS, Batch, FloatArray, Message, SequenceOutput, Span
from qwenbox.weights.files import write_whole
from qwenbox.weights.safetensors import INDEX

from . import needle
from .logits import Scorable
from .perplexity import perplexity

if TYPE_CHECKING:
    from qwenbox.chat.chat import ChatFormat

FILE = "fingerprint.json"
"""In a directory that we made; others have theirs in the state directory."""
LIMIT = 0.02
"""How far the logits of a prompt may be from those stored, in spreads (see `_distance`)."""
MAX_NLL = 0.7
"""Of what guessing would cost, ln(vocabulary): a model that reads plain text worse has read its weights wrongly."""
MAX_TOKENS = 512
"""Of the longest prompt with its answer."""
NUM_PAGES = MAX_TOKENS // PAGE_TOKENS
_TOP = 8
_PLACES = 24
_READ = (
    INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "modules.json",
)
"""Beside weights and templates; other files say nothing of what a model computes."""

_TEXTS = {
    "english": "The lighthouse keeper wrote down the weather every evening, and once a year he counted the storms. When somebody asked him why, he "
    "said that a storm which nobody counts comes back. There were eleven in the first year, nine in the second, and after that he stopped telling.",
    "chinese": "灯塔看守人每天傍晚记录天气，每年数一次风暴。有人问他为什么，他说，没有人数过的风暴还会回来。"
    "第一年有十一次，第二年有九次，以后他就不再说了。",
    "code": "def merge(first, second):\n    result = []\n    i = j = 0\n    while i < len(first) and j < len(second):\n"
    "        if first[i] <= second[j]:\n            result.append(first[i])\n            i += 1\n        else:\n"
    "            result.append(second[j])\n            j += 1\n    return result + first[i:] + second[j:]\n",
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_CALL = "What is the weather in Paris?"
_FORM = 'Answer with JSON only, no other text: {"animal": "cat", "legs": <number of legs of a cat>}'
_HAY = "On day {} of the journey they passed {} villages, and the driver bought {} apples. "
_TALK = (
    Message("system", "You are brief."),
    Message("user", "How warm is it in Oslo? 奥斯陆现在多少度？"),
    Message("assistant", "", tool_calls=({"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}},)),
    Message("tool", '{"celsius": -3}'),
    Message("assistant", "It is -3 °C."),
    Message("user", "Thanks."),
)
_ANSWER_TOKENS = {"needle": 12, "tool call": 40, "form": 32}

Progress = Callable[[float], None]


class Finding(NamedTuple):
    """One thing that was looked at. `well` is None where there is nothing to compare it with."""

    name: str
    well: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt with the model's answer, and at some places the likeliest ids, their logits, and the standard deviation of all logits there."""

    name: str
    ids: tuple[int, ...]
    num_prompt: int
    """Of `ids`; the others are the answer."""
    places: tuple[int, ...]
    top: tuple[tuple[int, ...], ...]
    logits: tuple[tuple[float, ...], ...]
    spread: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of one model in one form of its weights (`weights`, `head`, `embedding`, as the settings of these names)."""

    made: str | None
    """The day; None for what came with the model, so that a model which is made again has the same files."""
    version: str
    weights: str | None
    files: Mapping[str, FileDigest]
    template: tuple[int, ...]
    """Ids of a conversation with everything in it."""
    probes: tuple[Probe, ...]
    head: str | None = None
    embedding: str | None = None

    @property
    def forms(self) -> dict[str, Any]:
        """As `Settings.forms`."""
        return {"weights": self.weights, "head": self.head, "embedding": self.embedding}


# --- taking and keeping --------------------------------------------------------------------------------------------------


def take(
    model: Scorable,
    chat: ChatFormat,
    weights: str | None,
    files: Mapping[str, FileDigest],
    progress: Progress = lambda part: None,
    *,
    head: str | None = None,
    embedding: str | None = None,
    dated: bool = True,
) -> Fingerprint:
    """The fingerprint of a loaded model that is well, with at least NUM_PAGES pages. `weights`, `head`, `embedding`: how it was loaded."""
    prompts = _prompts(chat, model)
    probes = []
    for number, (name, ids) in enumerate(prompts.items()):
        answer = _answer(model, ids, _ANSWER_TOKENS.get(name, 0), chat.eos_ids)
        probes.append(_probe(model, name, [*ids, *answer], len(ids)))
        progress((number + 1) / len(prompts))
    now = datetime.now(UTC).isoformat(timespec="seconds") if dated else None
    return Fingerprint(now, __version__, weights, dict(files), tuple(_talk(chat) or ()), tuple(probes), head, embedding)


def place(path: Path, state_dir: Path) -> Path:
    """Where the fingerprint of a model is: in its directory if it came with one, else in ours by the model's place."""
    if path.is_dir() and (path / FILE).is_file():
        return path / FILE
    path = path.resolve()
    where = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return state_dir / "fingerprints" / f"{path.name}-{where}.json"


def write(fingerprint: Fingerprint, path: Path) -> None:
    write_whole(path, (json.dumps({"format": 1, **asdict(fingerprint)}) + "\n").encode())


def read(path: Path) -> Fingerprint:
    """Raises ModelFormatError for a file that is none of ours."""
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        if raw.pop("format") != 1:
            raise ValueError("of another format")
        files = {name: FileDigest(int(one["size"]), str(one["sha256"])) for name, one in raw.pop("files").items()}
        if not all(value is None or isinstance(value, str) for name, value in raw.items() if name not in ("template", "probes")):
            raise ValueError("a form or a date is no text")
        template, probes = tuple(map(_id, raw.pop("template"))), tuple(map(_read_probe, raw.pop("probes")))
        return Fingerprint(files=files, template=template, probes=probes, **raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFormatError(f"{path} is no fingerprint ({error}); `qwenbox verify --store` makes a new one") from None


def _read_probe(raw: Mapping[str, Any]) -> Probe:
    probe = Probe(
        str(raw["name"]),
        tuple(map(_id, raw["ids"])),
        int(raw["num_prompt"]),
        tuple(map(int, raw["places"])),
        tuple(tuple(map(_id, row)) for row in raw["top"]),
        tuple(tuple(map(float, row)) for row in raw["logits"]),
        tuple(map(float, raw["spread"])),
    )
    same = len(probe.places) == len(probe.top) == len(probe.logits) == len(probe.spread)
    rows = all(top and len(top) == len(logits) for top, logits in zip(probe.top, probe.logits, strict=False))
    places = probe.places and all(0 <= place < len(probe.ids) for place in probe.places)
    if not (same and rows and places) or len(probe.ids) > MAX_TOKENS:
        raise ValueError("a probe does not fit itself")
    return probe


def _id(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{str(value)[:40]} is no id of a token")
    return value


# --- files ---------------------------------------------------------------------------------------------------------------


def model_files(path: Path) -> list[Path]:
    """What is read of a model: the file itself, or the weights and descriptions of a directory."""
    if path.is_file():
        return [path]
    return sorted(file for file in (*path.iterdir(), *path.glob("*_Pooling/config.json")) if is_read(_name(file, path)) and file.is_file())


def _name(file: Path, model: Path) -> str:
    return file.resolve().name if file == model else file.relative_to(model).as_posix()


def is_read(name: str) -> bool:
    """Whether a file of a model's directory says what it computes."""
    return name.endswith((".safetensors", ".jinja", "_Pooling/config.json")) or name in _READ


def missing_shards(path: Path) -> list[str]:
    """Of a directory: files of weights that its index names and that are not there."""
    try:
        placed = json.loads((path / INDEX).read_bytes())["weight_map"]
        return sorted({name for name in placed.values() if not (path / str(name)).is_file()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # no index, or one that loading will refuse


def digests(path: Path, progress: Progress) -> dict[str, FileDigest]:
    """Reads every byte of the model."""
    files = model_files(path)
    total, before = max(sum(file.stat().st_size for file in files), 1), 0
    found = {}
    for file in files:
        size = file.stat().st_size
        found[_name(file, path)] = FileDigest(size, sha256_of(file, lambda done, before=before: progress((before + done) / total)))  # type: ignore[misc]
        before += size
    return found


def check_files(known: Mapping[str, FileDigest], found: Mapping[str, FileDigest], whose: str) -> Finding:
    """Whether the files are those whose digests `whose` holds. A file that is not known is told, and does no harm, but for a template: it is read
    instead of what the others say."""
    wrong = [f"{name} is missing" for name in known if name not in found]
    for name, digest in known.items():
        if name in found and found[name] != digest:
            sizes = f"{found[name].size} bytes instead of {digest.size}" if found[name].size != digest.size else f"{digest.size} bytes, some changed"
            wrong.append(f"{name}: {sizes}")
    more = [name for name in found if name not in known]
    wrong += [f"{name} was not there" for name in more if name.endswith(".jinja")]
    if wrong:
        return Finding("files", False, f"not those of {whose}: {'; '.join(wrong)}")
    return Finding("files", True, f"{len(known)} by sha256 as in {whose}" + (f"; not known: {', '.join(more)}" if more else ""))


# --- comparing -----------------------------------------------------------------------------------------------------------


def check(known: Fingerprint, model: Scorable, chat: ChatFormat, progress: Progress = lambda part: None) -> Iterator[Finding]:
    """What a loaded model says, beside what it said."""
    prompts = _prompts(chat, model)
    changed = [probe.name for probe in known.probes if tuple(prompts.get(probe.name, ())) != probe.ids[: probe.num_prompt]]
    texts = [name for name in changed if name in (*_TEXTS, "needle")]
    yield Finding("tokenizer", not texts, f"encodes {', '.join(texts)} otherwise than it did" if texts else "encodes as it did")
    same = len(changed) == len(texts) and tuple(_talk(chat) or ()) == known.template
    yield Finding("template", same, f"renders conversations {'as' if same else 'otherwise than'} it did")
    for number, probe in enumerate(known.probes):
        yield Finding(f"logits of {probe.name}", *_same_logits(probe, model))
        progress((number + 1) / len(known.probes))


def _same_logits(probe: Probe, model: Scorable) -> tuple[bool, str]:
    if max(probe.ids) >= model.vocab_limit or any(max(row) >= model.vocab_limit for row in probe.top):
        return False, "has ids that the model does not have"
    distance = _distance(probe, _logits(model, probe.ids, probe.places))
    return distance <= LIMIT, f"{distance:.4f} spreads from those stored, of {LIMIT} at most"


def _distance(probe: Probe, logits: FloatArray) -> float:
    """Mean over the places of the mean difference of the stored ids' logits, each by the standard deviation of all logits at its place.

    Infinite where a logit is not finite.
    """
    now = np.take_along_axis(logits.astype(np.float64), np.array(probe.top), axis=1)
    if not np.isfinite(now).all():
        return math.inf
    return float((np.abs(now - np.array(probe.logits)).mean(axis=1) / np.array(probe.spread)).mean())


# --- without anything to compare with --------------------------------------------------------------------------------------


def sanity(model: Scorable, chat: ChatFormat) -> Iterator[Finding]:
    """What can be said of a model that nobody has looked at before."""
    yield _family_template(chat)
    ids = [chat.tokenizer.encode(text, control=False)[:MAX_TOKENS] for text in _TEXTS.values()]
    scored = [perplexity(model, one, window=MAX_TOKENS, stride=MAX_TOKENS // 2) for one in ids]
    nll = sum(one.nll * one.tokens for one in scored) / sum(one.tokens for one in scored)
    guess = math.log(model.vocab_limit)
    if math.isfinite(nll):
        told = f"{nll:.2f} nats a token of plain text, {guess:.2f} for guessing"
        yield Finding("perplexity", nll < MAX_NLL * guess, told)
    else:
        yield Finding("perplexity", False, "its logits are not numbers")
        return
    prompts = _prompts(chat, model)
    for name, num_tokens in _ANSWER_TOKENS.items():
        if name in prompts:
            yield _answered(name, chat, _answer(model, prompts[name], num_tokens, chat.eos_ids), bool(chat.starts_in_reasoning(prompts[name])))


def _answered(name: str, chat: ChatFormat, ids: Sequence[int], reasoning: bool) -> Finding:
    """None is wrong: small models, and those that think first, may well not do it."""
    text = chat.tokenizer.decode(ids).strip()
    if name == "needle":
        found = needle.is_found(text)
        return Finding(name, found or None, "the number at the beginning of a longer text was " + ("found" if found else "not found"))
    if name == "tool call":
        stream = EventStream(chat.tokenizer, start_reasoning=reasoning, tools=ToolScanner([_TOOL]))
        called = bool(tool_calls(stream.feed(SequenceOutput("", tuple(ids), finish_reason="length"))))
        return Finding(name, called or None, "a tool was called" if called else "no tool was called")
    try:
        form = json.loads(text.removeprefix("```json").removeprefix("```").removesuffix("```"))
    except ValueError:
        form = None
    return Finding(name, isinstance(form, dict) or None, "JSON was written" if isinstance(form, dict) else "no JSON was written")


def _family_template(chat: ChatFormat) -> Finding:
    ids = _talk(chat)
    if ids is None:
        return Finding("template", None, "cannot render a conversation with a system message, a call of a tool and its result")
    if not set(ids) & set(chat.eos_ids):
        return Finding("template", False, "writes none of the tokens that end a turn of this model: it belongs to another one")
    if chat.family not in FAMILIES:
        return Finding("template", None, "renders")
    own = template_for(chat.family, None)
    same = chat.encode(_TALK, [_TOOL]) == encode_chat(chat.tokenizer, own, _TALK, [_TOOL])
    own.close()
    return Finding("template", same or None, f"renders {'as' if same else 'otherwise than'} that of {chat.family}")


# --- prompts -------------------------------------------------------------------------------------------------------------


def _prompts(chat: ChatFormat, model: Scorable) -> dict[str, list[int]]:
    """Ids by name; without those that the model's template or window has no room for."""
    encode = chat.tokenizer.encode
    prompts = {name: encode(text, control=False) for name, text in _TEXTS.items()}
    room = min(MAX_TOKENS, getattr(model, "context_length", MAX_TOKENS))
    for days in range(60, 0, -4):
        hay = "".join(_HAY.format(day, day * 7 % 10, day * 3 % 8 + 2) for day in range(1, days + 1))
        ids = encode(needle.hidden(hay), control=False)
        if len(ids) + _ANSWER_TOKENS["needle"] <= room:
            prompts["needle"] = ids
            break
    options = {"enable_thinking": False} if chat.nature == "hybrid" else {}
    for name, question, tools in (("tool call", _CALL, [_TOOL]), ("form", _FORM, None)):
        try:
            prompts[name] = chat.encode([Message("user", question)], tools, **options)
        except (RequestError, ModelFormatError):
            continue
    return {name: ids for name, ids in prompts.items() if 2 <= len(ids) <= room - _ANSWER_TOKENS.get(name, 0)}


def _talk(chat: ChatFormat) -> list[int] | None:
    """Ids of `_TALK`; None where the template refuses it."""
    try:
        return chat.encode(_TALK, [_TOOL])
    except (RequestError, ModelFormatError):
        return None


# --- running -------------------------------------------------------------------------------------------------------------


def _probe(model: Scorable, name: str, ids: list[int], num_prompt: int) -> Probe:
    """Places evenly over a plain text, and for what is answered at the prompt's end and in all of the answer."""
    first = max(num_prompt - 1, 0) if len(ids) > num_prompt else 0
    places = np.unique(np.linspace(first, len(ids) - 1, _PLACES).astype(int)).tolist()
    logits = _logits(model, ids, places).astype(np.float64)
    if not np.isfinite(logits).all():
        raise ModelFormatError(f"the logits of {name} are not numbers: this model is not well, and no fingerprint was taken")
    top = np.argsort(-logits, axis=1, kind="stable")[:, :_TOP]
    kept = np.take_along_axis(logits, top, axis=1).round(5)
    spread = logits.std(axis=1).round(6)
    return Probe(name, tuple(ids), num_prompt, tuple(places), _rows(top.tolist()), _rows(kept.tolist()), tuple(spread.tolist()))


def _rows(rows: list[list[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(map(tuple, rows))


def _logits(model: Scorable, ids: Sequence[int], places: Sequence[int]) -> FloatArray:
    """Logits [len(places), vocab_limit] behind the ids at these places, of a run of all ids in steps as large as the model takes them."""
    array = np.array(ids, np.int32)
    pages = np.arange(-(-len(array) // PAGE_TOKENS), dtype=np.int32)
    found = []
    begin = 0
    while begin < len(array):
        end = min(begin + model.max_batch_tokens, len(array))
        rows = [place - begin for place in places if begin <= place < end]
        if len(rows) > model.max_logits:
            rows = rows[: model.max_logits]
            end = begin + rows[-1] + 1
        span = Span(0, end - begin, begin, pages[: -(-end // PAGE_TOKENS)])
        logits = model.run(Batch(array[begin:end], [span], np.array(rows, np.int32)))
        found.append(np.array(logits[:, : model.vocab_limit]))
        begin = end
    return np.concatenate(found)


def _answer(model: Scorable, prompt: Sequence[int], num_tokens: int, eos_ids: Sequence[int]) -> list[int]:
    """The likeliest tokens one after another, up to one that ends the answer."""
    if not num_tokens:
        return []
    pages = np.arange(NUM_PAGES, dtype=np.int32)
    logits = _logits(model, prompt, [len(prompt) - 1])
    answer = [int(np.argmax(logits[0]))]
    while len(answer) < num_tokens and answer[-1] not in eos_ids:
        position = len(prompt) + len(answer) - 1
        span = Span(0, 1, position, pages[: position // PAGE_TOKENS + 1])
        row = model.run(Batch(np.array(answer[-1:], np.int32), [span], np.zeros(1, np.int32)))
        answer.append(int(np.argmax(row[0, : model.vocab_limit])))
    return answer
