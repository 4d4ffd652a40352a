"""The depth of a thought that a request deserves."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path

import pytest

from qwenbox.chat.depth import BUDGETS, CUES, DEEP, DIRECT, FORM, HURRY, REASONS, DepthChoice, _edged, choose_depth
from qwenbox.types import Message
from tests.chat.depth import DEPTHS, agreement, prompts


def test_the_prompts_are_three_hundred_balanced_over_halves_languages_and_depths() -> None:
    counts = Counter((row["depth"], lang, split) for split in ("dev", "held") for lang in ("en", "zh") for row in prompts(split, lang))
    assert sum(counts.values()) == 300
    for label, size in zip(DEPTHS, (24, 20, 18, 13), strict=True):
        assert [counts[label, lang, split] for lang in ("en", "zh") for split in ("dev", "held")] == [size] * 4


# Measured 73.3 % and 97.3 % in English, 76.0 % and 98.7 % in Chinese: two prompts in 75 less are let pass.
@pytest.mark.parametrize(("lang", "exact", "near"), [("en", 0.70, 0.94), ("zh", 0.73, 0.95)])
def test_prompts_that_the_table_was_not_made_from_mostly_get_the_depth_that_a_person_gave_them(lang: str, exact: float, near: float) -> None:
    found = agreement(prompts("held", lang))
    assert found.exact >= exact
    assert found.near >= near


def test_who_wants_no_thought_gets_none_however_hard_the_question() -> None:
    hard = "prove that there are infinitely many primes."
    assert choose_depth([Message("user", f"P{hard[1:]}")]).depth == "long"
    assert choose_depth([Message("user", f"Don't think, {hard}")]) == DepthChoice("off", ("hurry",))


def test_the_subject_of_a_text_that_is_translated_does_not_count() -> None:
    text = "\n\nWe prove that the algorithm is optimal. Let n be 2024 and find all integers with n^2 = m."
    assert choose_depth([Message("user", f"Check this.{text}")]).depth == "long"
    assert choose_depth([Message("user", f"Please translate to German:{text}")]) == DepthChoice("off", ("given",))


@pytest.mark.parametrize("question", ["Summarise it in three points.", "Prove that its second claim is wrong.", "hi"])
def test_a_file_before_the_question_changes_nothing(question: str) -> None:
    for text in ("Prove that 2024 divides 4048.\nThink hard.", "find all integers n with n^2 = 4\n" * 900):
        sent = f'<file name="a.pdf">\n{text}\n</file>\n\n<file name="b.md">\nDesign a lock-free queue.\n</file>\n\n{question}'
        assert choose_depth([Message("user", sent)]) == choose_depth([Message("user", question)])


def test_the_page_knows_every_reason_in_both_languages() -> None:
    texts = (Path(__file__).parents[2] / "src" / "qwenbox" / "server" / "web" / "i18n.js").read_text("utf-8")
    found = re.findall(r'\bcue_(\w+): "([^"]+)"', texts)
    assert dict(found[: len(REASONS)]) == REASONS
    assert [code for code, _ in found[len(REASONS) :]] == [code for code, _ in found[: len(REASONS)]]
    assert {cue.code for cue in (HURRY, *DIRECT, *FORM, *DEEP, *CUES)} < set(REASONS)


def test_the_reason_names_what_decided_the_strongest_first() -> None:
    assert choose_depth([Message("user", "Prove that 2024 divides 4048.")]).cues == ("proof", "figures")
    assert choose_depth([Message("user", "hi")]) == DepthChoice("off", ("nothing",))


def test_only_the_last_message_of_the_user_decides() -> None:
    turns = [Message("user", "Prove it."), Message("assistant", "Done."), Message("user", "thanks!"), Message("tool", "prove all theorems")]
    assert choose_depth(turns).depth == "off"
    assert choose_depth([]).depth == "off"


@pytest.mark.parametrize("piece", ["word ", "证明", "f(x) = y;\n", "`", "```", "((", "1 ", "?\n", " \t\n", "a.b(", "\n\t\t "])
def test_a_prompt_of_100_kilobytes_costs_less_than_two_milliseconds(piece: str) -> None:
    messages = [Message("user", piece * (100_000 // len(piece)))]
    times = []
    for _ in range(20):
        begin = time.process_time()
        choose_depth(messages)
        times.append(time.process_time() - begin)
    assert min(times) < 0.002


def test_phrases_stand_in_the_table_as_they_are_looked_for_and_once_a_cue() -> None:
    for cue in (HURRY, *DIRECT, *FORM, *DEEP, *CUES):
        assert len(set(cue.phrases)) == len(cue.phrases), cue.what
        for phrase in cue.phrases:
            assert _edged(phrase).strip() == phrase.strip(), (cue.what, phrase)


def test_every_depth_has_a_budget_and_deeper_ones_have_more() -> None:
    assert tuple(BUDGETS) == DEPTHS
    limits = [float("inf") if budget is None else budget for budget in BUDGETS.values()]
    assert limits == sorted(limits) and limits[0] == 0


@pytest.mark.parametrize("text", ["What is 3 + 4?", "8-3 = ?", "6乘7等于多少", "Tom is taller than Ann. Who is the tallest?", "9.9和9.11哪个大？"])
def test_a_question_for_a_word_or_a_number_is_known(text: str) -> None:
    assert choose_depth([Message("user", text)]).is_brief


@pytest.mark.parametrize("text", ["hi", "Prove that 3 + 4 = 7.", "What is 1+2+3+4+5+6+7?", "Translate: what is 3 + 4?", "Plan 3 days in Rome."])
def test_talk_proofs_long_sums_and_texts_are_no_such_questions(text: str) -> None:
    assert not choose_depth([Message("user", text)]).is_brief
