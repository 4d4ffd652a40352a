from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from qwenbox.chat.tokenizer import MAX_FILE_BYTES, Tokenizer
from qwenbox.errors import ModelFormatError, RequestError, UnsupportedModelError
from tests.chat.small import CONTROL_TOKENS, small_document, small_metadata

LIBRARY = tokenizers.Tokenizer.from_str(json.dumps(small_document()))
"""The library's own reading of the small tokenizer's file."""

PIECES = st.sampled_from([*CONTROL_TOKENS, "<|im_", "end|>", "hello", "\n\n", " w", "你好", "e\u0301", "9", "\r\n"])
TEXTS = st.lists(PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=12).map("".join)


# --- encoding and decoding -----------------------------------------------------------------------------------------


@given(text=TEXTS)
def test_ids_are_those_of_the_library_reading_the_same_tokenizer(text: str, small: Tokenizer) -> None:
    assert small.encode(text) == LIBRARY.encode(text).ids


@given(text=TEXTS)
def test_without_control_every_id_is_plain_text_and_the_text_comes_back(text: str, small: Tokenizer) -> None:
    ids = small.encode(text, control=False)
    assert not set(ids) & set(small.control_tokens.values())
    assert small.decode(ids) == LIBRARY.normalizer.normalize_str(text)


def test_control_tokens_are_matched_whole_and_the_longest_wins(small: Tokenizer) -> None:
    im_end, think = small.id_of("<|im_end|>"), small.id_of("<think>")
    assert small.encode("a<|im_end|>b<think>") == [97, im_end, 98, think]
    assert small.encode("<|im_<|im_end|>end|>") == [*b"<|im_", im_end, *b"end|>"]
    assert small.encode("<|im_end|>", control=False) == list(b"<|im_end|>")


def test_bytes_of_a_token_are_exact_even_inside_a_character(small: Tokenizer) -> None:
    ids = small.encode("你")
    assert [small.token_bytes(id) for id in ids] == [b"\xe4\xbd", b"\xa0"]
    assert small.decode(ids[:1]) == "\ufffd"
    assert small.token_bytes(small.control_tokens["<think>"]) == b"<think>"


def test_names_and_limits(small: Tokenizer) -> None:
    assert small.vocab_limit == 292
    assert small.eos_ids == (268, 266)
    assert small.is_special(268)
    assert not small.is_special(small.control_tokens["<tool_call>"])
    assert small.id_of("<nothing>") is None
    assert small.longest_token == len("<|object_ref_start|>")


@pytest.mark.parametrize("id", [-1, 292, 293, 10**9])
def test_an_id_that_names_no_token_is_refused(small: Tokenizer, id: int) -> None:
    with pytest.raises(RequestError, match=f"token id {id}"):
        small.decode([97, id])


def test_a_lone_surrogate_is_refused(small: Tokenizer) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        small.encode("a\ud800b")


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_tokenizer_file_gives_the_same_tokenizer(tmp_path: Path, small: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_document()), encoding="utf-8")
    loaded = Tokenizer.from_file(path)
    text = "hello <|im_start|> the <think>\n\n"
    assert loaded.encode(text) == small.encode(text)
    assert (loaded.vocab_limit, loaded.special_ids, loaded.eos_ids) == (small.vocab_limit, small.special_ids, small.eos_ids)


def test_merges_may_be_written_as_strings(tmp_path: Path, small: Tokenizer) -> None:
    document = small_document()
    document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert Tokenizer.from_file(path).encode("hello") == small.encode("hello")


def test_a_truncated_file_is_an_error_at_every_tenth_byte(tmp_path: Path) -> None:
    whole = json.dumps(small_document()).encode()
    path = tmp_path / "tokenizer.json"
    for length in range(0, len(whole), 10):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError):
            Tokenizer.from_file(path)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ModelFormatError, match="at most"):
        Tokenizer.from_file(path)


def at(*keys: Any) -> Callable[[Any, Any], None]:
    def put(document: Any, value: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return put


@pytest.mark.parametrize(
    ("put", "value", "error"),
    [
        (at("model", "type"), "Unigram", UnsupportedModelError),
        (at("model", "byte_fallback"), True, UnsupportedModelError),
        (at("model", "ignore_merges"), True, UnsupportedModelError),
        (at("normalizer"), {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000}, UnsupportedModelError),
        (at("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "(a+)+$"}, UnsupportedModelError),
        (at("pre_tokenizer", "pretokenizers", 1, "add_prefix_space"), True, UnsupportedModelError),
        (at("added_tokens", 0, "lstrip"), True, UnsupportedModelError),
        (at("added_tokens", 0, "normalized"), True, UnsupportedModelError),
        (at("added_tokens", 0, "content"), "", ModelFormatError),
        (at("added_tokens", 0, "content"), "<|im_end|>", ModelFormatError),
        (at("added_tokens", 0, "id"), 267, ModelFormatError),
        (at("added_tokens", 0, "id"), -1, ModelFormatError),
        (at("added_tokens", 0, "id"), 2**40, ModelFormatError),
        (at("added_tokens", 0, "id"), "266", ModelFormatError),
        (at("added_tokens", 0, "id"), 97, ModelFormatError),
        (at("model", "vocab", "a"), 98, ModelFormatError),
        (at("model", "vocab", "a"), 1.5, ModelFormatError),
        (at("model", "vocab", "中"), 300, ModelFormatError),
        (at("model", "vocab"), {}, ModelFormatError),
        (at("model", "vocab"), [], ModelFormatError),
        (at("model", "merges", 0), ["h", "e", "l"], ModelFormatError),
        (at("model", "merges", 0), ["h", "q"], ModelFormatError),
        (at("model", "merges", 0), 7, ModelFormatError),
        (at("added_tokens"), [{}], ModelFormatError),
        (at("pre_tokenizer"), None, ModelFormatError),
        (at("model"), None, ModelFormatError),
    ],
)
def test_a_file_that_lies_is_an_error(tmp_path: Path, put: Callable[[Any, Any], None], value: Any, error: type[Exception]) -> None:
    document = small_document()
    put(document, value)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(error):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    ("key", "value", "error", "words"),
    [
        ("tokenizer.ggml.model", "llama", UnsupportedModelError, "'llama'"),
        ("tokenizer.ggml.pre", "llama-bpe", UnsupportedModelError, "'llama-bpe'"),
        ("tokenizer.ggml.pre", None, UnsupportedModelError, "tokenizer.ggml.pre"),
        ("tokenizer.ggml.tokens", None, ModelFormatError, "tokenizer.ggml.tokens"),
        ("tokenizer.ggml.tokens", "abc", ModelFormatError, "tokenizer.ggml.tokens"),
        ("tokenizer.ggml.token_type", [1, 2], ModelFormatError, "294 tokens but 2"),
        ("tokenizer.ggml.token_type", [2] * 294, UnsupportedModelError, "type 2"),
        ("tokenizer.ggml.token_type", [5] * 294, ModelFormatError, "bytes"),
        ("tokenizer.ggml.tokens", ["a"] * 294, ModelFormatError, "the same"),
        ("tokenizer.ggml.tokens", list(range(294)), ModelFormatError, "not a string"),
        ("tokenizer.ggml.merges", ["h"], ModelFormatError, "two parts"),
        ("tokenizer.ggml.merges", ["x y"], ModelFormatError, "tokenizer"),
    ],
)
def test_gguf_metadata_that_lies_is_an_error(key: str, value: Any, error: type[Exception], words: str) -> None:
    metadata = copy.deepcopy(small_metadata())
    metadata[key] = value
    with pytest.raises(error, match=words):
        Tokenizer.from_gguf(metadata)


# --- the real vocabularies -----------------------------------------------------------------------------------------

VECTORS = {
    "Hello world": [9707, 1879],
    " Hello world": [21927, 1879],
    "Yes": [9454],
    " Yes": [7414],
    "No": [2753],
    " No": [2308],
    "yes": [9693],
    " yes": [9834],
    "no": [2152],
    " no": [902],
    "YES": [14004],
    "NO": [8996],
    "<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function": [
        *(151644, 8948, 198, 2, 13852, 271, 2610, 1231, 1618, 825, 476, 803, 5746, 311, 7789, 448, 279, 1196, 3239, 382),
        *(2610, 525, 3897, 448, 729),
    ],
}


def mixed_lines(count: int) -> list[str]:
    """Seeded lines that mix Chinese, English, code, Thai, Arabic and emoji, control tokens, odd spaces and unnormalised letters."""
    rng = random.Random(20261121)
    words = ["the", "quick", "brown", "don't", "I'll", "WE'VE", "jumps", "12", "lazy", "3.14159", "naïve", "café", "résumé", "U.S.A.", "e-mail"]
    code = [
        "def f(x):\n\treturn x**2",
        "for (int i=0;i<n;++i) {",
        "}\r\n",
        "x != y && z",
        "<div class='a'>",
        "SELECT * FROM t;",
        "#include <vector>",
        "0xFFu",
    ]
    ranges = {"zh": (0x4E00, 0x9FA5), "thai": (0x0E01, 0x0E3A), "arabic": (0x0621, 0x064A), "emoji": (0x1F600, 0x1F64F), "hangul": (0xAC00, 0xD7A3)}
    odd = [
        " ",
        "  ",
        "\t",
        "\u3000",
        "\u00a0",
        "\n",
        "\n\n",
        "\r\n",
        "e\u0301",
        "A\u030a",
        "👩‍👩‍👧",
        "🇨🇳",
        "ﬁ",
        "½",
        "①",
        "。",
        "，",
        "—",
        "'S",
        "\u200d",
        "\x00",
        "\x7f",
    ]
    control = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|im_", "|>", "<|file_sep|>"]

    def piece() -> str:
        kind = rng.randrange(8)
        if kind < 2:
            return " ".join(rng.choices(words, k=rng.randint(1, 6)))
        if kind == 2:
            return rng.choice(code)
        if kind == 3:
            return rng.choice(odd)
        if kind == 4 and rng.random() < 0.2:
            return rng.choice(control)
        low, high = ranges[rng.choice(list(ranges))]
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))

    return ["".join(piece() + rng.choice(["", "", " "]) for _ in range(rng.randint(1, 8))) for _ in range(count)]


@pytest.mark.weights
@pytest.mark.parametrize(("text", "ids"), VECTORS.items())
def test_the_rebuilt_tokenizer_gives_the_published_ids(real_tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert real_tokenizer.encode(text) == ids


@pytest.mark.weights
def test_the_rebuilt_tokenizer_gives_the_official_ids_on_ten_thousand_lines(real_tokenizer: Tokenizer, official_tokenizer_json: Path) -> None:
    official = tokenizers.Tokenizer.from_file(str(official_tokenizer_json))
    for line in mixed_lines(10_000):
        assert real_tokenizer.encode(line) == official.encode(line).ids


@pytest.mark.weights
def test_the_official_file_gives_the_official_ids(official_tokenizer_json: Path) -> None:
    official = tokenizers.Tokenizer.from_file(str(official_tokenizer_json))
    ours = Tokenizer.from_file(official_tokenizer_json)
    assert ours.vocab_limit == 151_669
    for line in [*mixed_lines(2_000), "<think>\n\n</think>\n\n<tool_response>\n1\n</tool_response>"]:
        ids = ours.encode(line)
        assert ids == official.encode(line).ids
        assert ours.decode(ids) == official.decode(ids, skip_special_tokens=False)
    # The special tokens are Qwen's fourteen: `<tool_call>` and `<think>` are added, but not special.
    assert sorted(ours.special_ids) == list(range(151_643, 151_657))


@pytest.mark.weights
@pytest.mark.parametrize("unit", [" ", "a", "\n", "!", "1", "'", " a", "中", "\u0301", " \n", "<", "<|im_end|>"])
def test_a_megabyte_of_one_thing_takes_less_than_two_seconds(real_tokenizer: Tokenizer, unit: str) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    start = time.thread_time()  # of this thread: other load on the machine does not count
    real_tokenizer.encode(text)
    assert time.thread_time() - start < 2
