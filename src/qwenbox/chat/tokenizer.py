"""Text to token ids and back: the byte-level BPE of the Qwen family.

A tokenizer comes from a `tokenizer.json` or from the metadata of a GGUF file. Both give a vocabulary, merges and added tokens; the
normaliser (NFC) and the regular expression that splits text are the family's own and never taken from a file, so a file cannot bring
a slow expression. Added tokens are cut out of the text here, not by the library: that is what lets a caller say which of them count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from qwenbox.errors import ModelFormatError, RequestError, UnsupportedModelError
from qwenbox.types import TokenTable

MAX_FILE_BYTES = 32 * 1024 * 1024
"""Largest `tokenizer.json` that is read; Qwen3's has 11 MB."""
MAX_IDS = 1 << 20
MAX_MERGES = 1 << 21
MAX_ADDED = 4096

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen cuts text before merging: one digit a piece, letters with one leading character that is neither letter, digit nor line break."""

END_OF_TURN = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

# Token types of GGUF (`tokenizer.ggml.token_type`).
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = sorted(set(range(256)) - set(printable))
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


class AddedToken(NamedTuple):
    """A token that is matched as a whole and never made by merging."""

    id: int
    text: str
    special: bool
    """Special tokens are left out of decoded answers; `<tool_call>` and `<think>` are added but not special."""


class Tokenizer:
    """Byte-level BPE. Immutable, and safe to use from several threads.

    `vocab_limit`: ids at and above it are padding rows of the model's head and must never be sampled.
    `control_tokens`: text -> id of every added token, special or not.
    """

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Iterable[AddedToken]) -> None:
        added = tuple(added)
        _check(vocab, merges, added)
        self.vocab_limit = max(max(vocab.values()), max((token.id for token in added), default=0)) + 1
        self.control_tokens: Mapping[str, int] = {token.text: token.id for token in added}
        self.special_ids = frozenset(token.id for token in added if token.special)
        self.eos_ids = tuple(self.control_tokens[name] for name in (END_OF_TURN, END_OF_TEXT) if name in self.control_tokens)
        self._text: list[str | None] = [None] * self.vocab_limit
        for text, id in vocab.items():
            self._text[id] = text
        self._bytes: list[bytes | None] = [None] * self.vocab_limit
        self._plain: dict[int, bool] = {}
        for token in added:
            self._bytes[token.id] = token.text.encode()
        # Longest first: at one position the longest token wins, as in the reference tokenizer.
        names = sorted(self.control_tokens, key=len, reverse=True)
        self.control_pattern = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")
        self._bpe = _bpe(vocab, merges)

    # --- where it comes from ---------------------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """From a `tokenizer.json`. ModelFormatError where the file is damaged, UnsupportedModelError where it is not a Qwen tokenizer."""
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelFormatError(f"{path.name}: {size} bytes, at most {MAX_FILE_BYTES} are read")
        try:
            document = json.loads(path.read_bytes())
            return cls(*_parts(document))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelFormatError(f"{path.name}: not a tokenizer file ({error!r})") from error

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the `tokenizer.ggml.*` keys of a GGUF file."""
        model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
        if model != "gpt2":
            raise UnsupportedModelError(f"tokenizer.ggml.model {model!r}: the Qwen family uses 'gpt2' (byte-level BPE)")
        if pre != "qwen2":
            raise UnsupportedModelError(f"tokenizer.ggml.pre {pre!r}: the Qwen family uses 'qwen2'; convert the model again with a current converter")
        tokens = _array(metadata, "tokenizer.ggml.tokens", MAX_IDS)
        types = _array(metadata, "tokenizer.ggml.token_type", MAX_IDS)
        merges = _array(metadata, "tokenizer.ggml.merges", MAX_MERGES)
        if len(tokens) != len(types):
            raise ModelFormatError(f"tokenizer: {len(tokens)} tokens but {len(types)} token types")
        vocab: dict[str, int] = {}
        added: list[AddedToken] = []
        for id, (text, kind) in enumerate(zip(tokens, types, strict=True)):
            if not isinstance(text, str):
                raise ModelFormatError(f"tokenizer: token {id} is not a string")
            if kind == _NORMAL:
                if text in vocab:
                    raise ModelFormatError(f"tokenizer: tokens {vocab[text]} and {id} are the same")
                vocab[text] = id
            elif kind in (_CONTROL, _USER_DEFINED):
                added.append(AddedToken(id, text, special=bool(kind == _CONTROL)))
            elif kind != _UNUSED:
                raise UnsupportedModelError(f"tokenizer: token {id} has type {kind}; there are normal (1), control (3), user (4), unused (5)")
        return cls(vocab, [_pair(merge) for merge in merges], added)

    # --- what it does ----------------------------------------------------------------------------------------------

    def encode(self, text: str, *, control: bool = True) -> list[int]:
        """Ids of a text. With `control=False` the names of control tokens in it are plain text, so nobody can forge one.

        RequestError for text that UTF-8 cannot hold (lone surrogates).
        """
        if not control:
            return self._encode_text(text)
        ids: list[int] = []
        position = 0
        for match in self.control_pattern.finditer(text):
            ids += self._encode_text(text[position : match.start()])
            ids.append(self.control_tokens[match.group()])
            position = match.end()
        return ids + self._encode_text(text[position:])

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, control tokens included; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes an id stands for; they may end inside a character. RequestError for an id that names no token."""
        if not 0 <= id < self.vocab_limit:
            raise RequestError(f"token id {id}: this model has ids 0 to {self.vocab_limit - 1}")
        known = self._bytes[id]
        if known is not None:
            return known
        text = self._text[id]
        if text is None:
            raise RequestError(f"token id {id}: no token has this id")
        known = self._bytes[id] = bytes(BYTE_OF[char] for char in text)
        return known

    def table(self) -> TokenTable:
        """What every id stands for, as data."""
        control = set(self.control_tokens.values())
        # A character of the byte alphabet is a byte: one translation does them all.
        texts = ["" if text is None or id in control else text for id, text in enumerate(self._text)]
        alphabet = str.maketrans({char: chr(byte) for char, byte in BYTE_OF.items()})
        pieces = "".join(texts).translate(alphabet).encode("latin-1")
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
        for name, id in sorted(self.control_tokens.items(), key=lambda item: -item[1]):
            at, text = int(ends[id]), name.encode()
            pieces = pieces[:at] + text + pieces[at:]
            ends[id:] += len(text)
        return TokenTable(pieces, ends.astype("<u4").tobytes(), tuple(sorted(control)), self.eos_ids)

    def is_plain(self, id: int) -> bool:
        """Whether an id stands for ASCII without control characters. RequestError as for `token_bytes`."""
        known = self._plain.get(id)
        if known is None:
            data = self.token_bytes(id)
            known = self._plain[id] = data.isascii() and all(byte >= 0x20 for byte in data)
        return known

    def id_of(self, token: str) -> int | None:
        """Id of a control token such as `<|im_end|>`, None where this tokenizer has none of that name."""
        return self.control_tokens.get(token)

    def is_special(self, id: int) -> bool:
        return id in self.special_ids

    @cached_property
    def blank_ids(self) -> tuple[int, ...]:
        """Ids of a line end, of two, and of a space."""
        return tuple(id for text in ("\n", "\n\n", " ") for id in self.encode(text) if self.token_bytes(id) == text.encode())

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token: a text of n bytes (in normal form) has at least n / longest_token tokens."""
        return max(max(len(text) for text in self._text if text is not None), max(map(len, self.control_tokens), default=0))

    def _encode_text(self, text: str) -> list[int]:
        if not text:
            return []
        try:
            # The fast kind keeps no offsets: half the time for long texts.
            ids: list[int] = self._bpe.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError:  # what the library says of them
            raise RequestError("the text holds a lone surrogate, which no UTF-8 text can") from None
        return ids


def _bpe(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    try:
        bpe = tokenizers.Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))
    except Exception as error:  # the library raises plain Exception for a merge whose parts or result are no tokens
        raise ModelFormatError(f"tokenizer: {error}") from error
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    return bpe


def _check(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Sequence[AddedToken]) -> None:
    if len(merges) > MAX_MERGES:
        raise ModelFormatError(f"tokenizer: {len(merges)} merges, at most {MAX_MERGES} are read")
    if len(added) > MAX_ADDED:
        raise ModelFormatError(f"tokenizer: {len(added)} added tokens, at most {MAX_ADDED} are read")
    for token in added:
        if not token.text:
            raise ModelFormatError(f"tokenizer: added token {token.id} is empty")
    texts = {token.text: token.id for token in added}
    if len(texts) != len(added):
        raise ModelFormatError("tokenizer: two added tokens have the same text")
    # A file may list an added token in the vocabulary too, under the same id.
    ids = [id for text, id in vocab.items() if texts.get(text) != id] + list(texts.values())
    if any(type(id) is not int or not 0 <= id < MAX_IDS for id in ids):
        raise ModelFormatError(f"tokenizer: ids must be whole numbers from 0 to {MAX_IDS - 1}")
    if len(set(ids)) != len(ids):
        raise ModelFormatError("tokenizer: two tokens have the same id")
    missing = set(BYTE_OF) - vocab.keys()
    if missing:
        raise ModelFormatError(f"tokenizer: no token for {len(missing)} of the 256 bytes")
    strangers = set().union(*(text for text in vocab if text not in texts)) - BYTE_OF.keys()
    if strangers:
        raise ModelFormatError(f"tokenizer: {min(strangers)!r} is not a character of byte-level BPE")


def _parts(document: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]], list[AddedToken]]:
    """Vocabulary, merges and added tokens of a `tokenizer.json`, after a look at everything else in it."""
    model = document["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or model.get("unk_token") is not None or model.get("ignore_merges"):
        raise UnsupportedModelError(f"tokenizer model {model['type']!r} with these options: the Qwen family uses plain byte-level BPE")
    if document["normalizer"] != {"type": "NFC"}:
        raise UnsupportedModelError("tokenizer normalizer: the Qwen family uses NFC alone")
    steps = document["pre_tokenizer"]["pretokenizers"]
    if len(steps) != 2 or steps[0]["pattern"] != {"Regex": SPLIT} or steps[1]["type"] != "ByteLevel" or steps[1]["add_prefix_space"]:
        raise UnsupportedModelError("tokenizer pre_tokenizer: not the one of Qwen2 to Qwen3; run a Qwen3 model instead")
    added = []
    for token in document["added_tokens"]:
        if any(token.get(flag) for flag in ("single_word", "lstrip", "rstrip", "normalized")):
            raise UnsupportedModelError(f"added token {token['content']!r}: lstrip, rstrip, single_word and normalized must be false")
        added.append(AddedToken(token["id"], str(token["content"]), bool(token["special"])))
    return model["vocab"], [_pair(merge) for merge in model["merges"]], added


def _pair(merge: Any) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if len(parts) != 2:
        raise ModelFormatError(f"tokenizer: merge {merge!r} does not have two parts")
    return parts[0], parts[1]


def _array(metadata: Mapping[str, Any], key: str, limit: int) -> Sequence[Any]:
    values = metadata.get(key)
    if values is None or isinstance(values, str) or not hasattr(values, "__len__"):
        raise ModelFormatError(f"{key}: missing, or not an array")
    if len(values) > limit:
        raise ModelFormatError(f"{key}: {len(values)} entries, at most {limit} are read")
    array: Sequence[Any] = values.tolist() if hasattr(values, "tolist") else values
    return array
