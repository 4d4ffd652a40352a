"""What all dialects have in common: the document of their tables, and the jobs that are recognised in any of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenbox.types import Message, RequestParams, ThinkingVote
from qwenbox.wire.background import as_background, background_job
from qwenbox.wire.dialects import describe

TITLE = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n### Guidelines:\n..."


def test_the_document_is_the_tables():
    assert describe() in (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8"), (
        "replace the tables in docs/api.md by what qwenbox.wire.dialects.describe() returns"
    )


@pytest.mark.parametrize(
    ("prompt", "name", "priority"),
    [
        (TITLE, "title", 1000),
        ("### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history, along with", "tags", 1000),
        ("### Task:\nSuggest 3-5 relevant follow-up questions or prompts that the user might naturally ask", "follow-ups", 1000),
        ("### Task:\nGenerate a concise title summarizing the chat history.\n### Guidelines:", "title", 1000),
        ("### Task:\nPredict 3-5 useful messages this user might naturally send next to advance their", "follow-ups", 1000),
        ("### Task:\nAnalyze the chat history to determine the necessity of generating search queries, in", "search queries", 0),
        ("Provide a concise, 5-word-or-less title for the conversation, using title case conventions.", "title", 1000),
    ],
)
def test_jobs_of_web_clients_are_not_thought_about(prompt, name, priority):
    job = background_job([Message("user", prompt)])
    assert job is not None
    assert job.name == name
    asked = RequestParams(thinking=(ThinkingVote("enable_thinking", "on"),))
    params = as_background(asked, job)
    assert (params.thinking[0].mode, params.thinking[1:], params.priority) == ("off", asked.thinking, priority)
    assert as_background(RequestParams(priority=-5), job).priority == -5


@pytest.mark.parametrize(
    "messages",
    [
        [Message("user", "### Task:\nRespond to the user query using the provided context.")],
        [Message("user", f"What does this prompt do? {TITLE}")],
        [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", TITLE)],
        [Message("system", TITLE)],
    ],
)
def test_what_people_ask_is_no_job(messages):
    assert background_job(messages) is None
