"""Whether a model thinks before it answers, and for how long: one decision of all that a request, its text, the service and the model say.

Clients spell the switch in a dozen ways (`wire/thinking_fields.py` reads them), people write `/no_think`, services have a default, and models differ:
hybrid ones do as they are told, others always think or never do. `decide` never refuses: the strongest voice wins, the others are named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwenbox.chat.depth import BUDGETS, REASONS, Depth, DepthChoice, choose_depth
from qwenbox.chat.stream import THINK, THINK_END
from qwenbox.chat.template import ChatTemplate
from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.errors import RequestError
from qwenbox.types import Message, ThinkingPlan, ThinkingVote

Nature = Literal["hybrid", "always", "never"]
"""Whether a model thinks: as its template is told, always, or never."""

STOP_TEXT = "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n</think>\n\n"
"""What ends a thought that became too long; Qwen's own words (Qwen3 technical report, 4.3, and the quickstart's code)."""
NO_THOUGHT = "\n</think>\n\n"
"""What ends a thought that the prompt has opened and nobody wants."""
LEAST_TOKENS = 64
"""With fewer tokens for all, there is no thinking: the answer needs them."""
MOST_ANSWER_TOKENS = 4096
"""A quarter of the tokens, but no more than these, cannot be used for thinking."""
TIME_SHARE = 0.6
"""Of the time that a client waits for a whole answer, this much may pass before the thought is ended."""

_FIRST_WORD = re.compile(r"\s*(/think|/no_think)(?!\S)")
_LAST_WORD = re.compile(r"(?<!\S)(/think|/no_think)\s*$")


@dataclass(frozen=True, slots=True)
class Decision:
    """How an answer thinks. `source` is who decided, `overruled` whoever said otherwise, `reason` a sentence for people."""

    on: bool
    source: str
    reason: str
    budget: int | None = None
    """Tokens."""
    seconds: float | None = None
    depth: str | None = None
    """Of a decision that was left to us."""
    overruled: tuple[str, ...] = ()
    cues: tuple[str, ...] = ()
    """Of a decision that was left to us, what decided: codes of `REASONS`, which make the reason."""
    unless_sure: bool = False
    """An answer is tried without thought first, and kept if the model is sure of it."""

    def after_trial(self, *, sure: bool) -> Decision:
        """What became of it."""
        if sure:
            return _ours(False, self.source, (*self.cues, "sure"), depth="off", overruled=self.overruled)
        more = {name: getattr(self, name) for name in ("budget", "seconds", "depth", "overruled")}
        return _ours(True, self.source, (*self.cues, "unsure"), **more)

    @property
    def stated(self) -> bool:
        """Whether there is anything to tell: of a model that never thinks, and was not asked to, there is not."""
        return self.on or self.source != "model" or bool(self.overruled)

    def body(self) -> dict[str, Any]:
        """For the client's `qwenbox` object."""
        said = {"budget": self.budget, "seconds": self.seconds, "depth": self.depth, "cues": list(self.cues) or None}
        said |= {"overruled": list(self.overruled) or None}
        known = {name: value for name, value in said.items() if value is not None}
        return {"mode": "on" if self.on else "off", "source": self.source, "reason": self.reason} | known

    def header(self) -> str:
        """One line of ASCII: the mode, then who decided and what was overruled."""
        parts = ["on" if self.on else "off", f"source={self.source}"]
        parts += [f"{name}={value:g}" for name, value in (("budget", self.budget), ("seconds", self.seconds)) if value is not None]
        parts += [f"depth={self.depth}"] if self.depth else []
        parts += ["unless=sure"] if self.unless_sure else []
        parts += [f"overruled={','.join(self.overruled)}"] if self.overruled else []
        return "; ".join(parts)


def vote_of(source: str, wanted: Literal["on", "off", "auto"] | int) -> ThinkingVote:
    """What a switch, or a budget of tokens, says. A budget of 0 is off."""
    if isinstance(wanted, str):
        return ThinkingVote(source, wanted)
    if isinstance(wanted, bool):
        return ThinkingVote(source, "on" if wanted else "off")
    return ThinkingVote(source, "on", wanted) if wanted else ThinkingVote(source, "off")


def nature_of(tokenizer: Tokenizer, template: ChatTemplate) -> Nature:
    """What a model's own template shows of it."""
    if tokenizer.id_of(THINK) is None or tokenizer.id_of(THINK_END) is None:
        return "never"
    question = [Message("user", "Hi")]
    try:
        plain, off = template.render(question), template.render(question, enable_thinking=False)
    except RequestError:  # it wants another conversation
        return "never"
    if plain.rstrip().endswith(THINK):
        return "always" if plain == off else "hybrid"
    return "never" if plain == off else "hybrid"


def text_switch(messages: Sequence[Message]) -> bool | None:
    """What the last `/think` or `/no_think` says: a whole word at either end of a message of the user or the system."""
    for message in reversed(messages):
        text = message.content
        if message.role not in ("user", "system") or text.startswith("<tool_response>"):
            continue
        if (match := _LAST_WORD.search(text, max(0, len(text) - 64)) or _FIRST_WORD.match(text, 0, 64)) is not None:
            return match[1] == "/think"
    return None


def decide(
    nature: Nature,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    votes: Sequence[ThinkingVote],
    default: ThinkingVote,
    max_tokens: int,
    depth: Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], DepthChoice] = choose_depth,
) -> Decision:
    """`votes` are the request's, the strongest first; `default` is the service's, `max_tokens` what thought and answer have together."""
    switch = text_switch(messages)
    said = [*votes, *([] if switch is None else [ThinkingVote("/think" if switch else "/no_think", "on" if switch else "off")]), default]
    first = next((vote for vote in said if vote.mode is not None), ThinkingVote("model", "off" if nature == "never" else "on"))
    others = tuple(dict.fromkeys(vote.source for vote in said if vote.mode not in (None, first.mode)))
    budget = next((vote.budget for vote in said if vote.budget is not None), None)
    seconds = next((vote.seconds for vote in said if vote.seconds is not None), None)

    def off(source: str, reason: str, overruled: tuple[str, ...] = others) -> Decision:
        return Decision(False, source, reason, overruled=overruled)

    if nature == "never":
        wanted = tuple(dict.fromkeys(vote.source for vote in said if vote.mode == "on"))
        return off("model", "This model does not think.", wanted)
    if first.mode == "off":
        return off(first.source, "Thinking was switched off.")
    if max_tokens < LEAST_TOKENS:
        few = f"{max_tokens} tokens are needed for the answer; from {LEAST_TOKENS} on there is room to think."
        return off("max_tokens", few, (first.source, *others))
    if first.mode == "on":
        reason = "The model thinks unless it is told not to." if first.source == "model" else "Thinking was switched on."
        return Decision(True, first.source, reason, budget, seconds, overruled=others)
    choice = depth(messages, tools)
    if choice.depth == "off" and not choice.is_brief:
        return _ours(False, first.source, choice.cues, depth="off", overruled=others)
    deep: Depth = "short" if choice.depth == "off" else choice.depth
    limits = [limit for limit in (budget, BUDGETS[deep]) if limit is not None]
    unless_sure = choice.is_brief and nature == "hybrid"
    more = {"budget": min(limits, default=None), "seconds": seconds, "depth": deep, "overruled": others, "unless_sure": unless_sure}
    return _ours(True, first.source, choice.cues, **more)


def _ours(on: bool, source: str, cues: tuple[str, ...], **more: Any) -> Decision:
    """A decision that was left to us; `more` are further fields."""
    return Decision(on, source, "; ".join(REASONS[cue] for cue in cues), cues=cues, **more)


def thinking_plan(
    tokenizer: Tokenizer, decision: Decision, *, is_open: bool, max_tokens: int, wait_seconds: float | None, loop_guard: bool
) -> ThinkingPlan | None:
    """What the engine has to know. `is_open`: the prompt ends in a thought. `wait_seconds`: how long the client waits for the whole answer.

    None for a tokenizer that has no marks for thoughts.
    """
    open_id, close_id = tokenizer.id_of(THINK), tokenizer.id_of(THINK_END)
    if open_id is None or close_id is None:
        return None
    # A thought that nobody wanted ends where it begins.
    limits: dict[str, Any] = {"max_tokens": decision.budget} if decision.on else {"max_tokens": 0}
    if decision.seconds is not None:
        limits["max_seconds"] = decision.seconds
    if wait_seconds is not None:
        limits["deadline"] = TIME_SHARE * wait_seconds
    closing = tuple(tokenizer.encode(STOP_TEXT if decision.on else NO_THOUGHT))
    reserve = min(max_tokens // 4, MOST_ANSWER_TOKENS)
    return ThinkingPlan(open_id, close_id, closing, tokenizer.blank_ids, is_open, answer_tokens=reserve, loop_guard=loop_guard, **limits)
