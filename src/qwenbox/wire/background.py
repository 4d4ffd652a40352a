"""Jobs that web clients do beside a conversation, recognised by how their prompts begin: nobody wants them thought about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from qwenbox.types import Message, RequestParams, ThinkingVote
from qwenbox.wire.openai_fields import MAX_PRIORITY


class Job(NamedTuple):
    name: str
    prompt: re.Pattern[str]
    waited_for: bool = False
    """Somebody waits for what comes of it, so it keeps its priority."""


def _job(name: str, beginning: str, *, waited_for: bool = False) -> Job:
    return Job(name, re.compile(beginning, re.IGNORECASE), waited_for)


JOBS: Sequence[Job] = (
    # Open WebUI. Its answers from documents begin with "### Task:" too, so that alone says nothing.
    _job("title", r"### Task:\s*Generate a concise(, \d+-\d+ word)? title "),
    _job("tags", r"### Task:\s*Generate \d+-\d+ broad tags"),
    _job("follow-ups", r"### Task:\s*(Suggest \d+-\d+ relevant follow-up questions|Predict \d+-\d+ useful messages this user might)"),
    _job("search queries", r"### Task:\s*Analyze the chat history to determine the necessity of generating search queries", waited_for=True),
    _job("summary", r"### Task:\s*Summarize the conversation history that will be compacted", waited_for=True),
    _job("image prompt", r"### Task:\s*Generate a detailed prompt for an? image generation task", waited_for=True),
    _job("completion while typing", r"### Task:\s*You are an autocompletion system\.", waited_for=True),
    _job("emoji", r"Your task is to reflect the speaker's likely facial expression through a fitting emoji\."),
    # LibreChat.
    _job("title", r"(Please generate|Provide) a concise, 5-word-or-less title for the conversation"),
    _job("title", r"Analyze this conversation and provide:\s*1\. The detected language of the conversation"),
)


def background_job(messages: Sequence[Message]) -> Job | None:
    """The job that a conversation is, if it is one: a last message of the user's that begins like one, and no answer before it."""
    if messages[-1].role != "user" or any(message.role in ("assistant", "tool") for message in messages):
        return None
    text = messages[-1].content.lstrip()
    return next((job for job in JOBS if job.prompt.match(text)), None)


def as_background(params: RequestParams, job: Job) -> RequestParams:
    """Without thinking, and behind all requests that somebody waits for."""
    vote = ThinkingVote(f"background job: {job.name}", mode="off")
    priority = params.priority if job.waited_for or params.priority else MAX_PRIORITY
    return replace(params, thinking=(vote, *params.thinking), priority=priority)
