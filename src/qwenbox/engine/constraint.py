"""Content in a required form: which ids may come next, by llguidance, beside the steps and never inside them.

A grammar is compiled in one thread, and what follows a token is worked out in another while the model runs. Where that is not done when a choice is
due, the one sequence chooses a step later: nobody else waits for it. llguidance lets other threads run meanwhile, and bounds its own work.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qwenbox.errors import RequestError
from qwenbox.types import ConstraintPlan, TokenTable

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from qwenbox.kernels.program import MaskArray

MAX_GRAMMARS = 32
"""Compiled ones that are kept for requests to come."""
COMPILE_SECONDS = 2.0
MAX_FORCED = 64
"""Ids that are put behind an answer at once, where the grammar leaves no choice."""
LONGEST_FORCED = 32
"""Bytes of the longest of them."""
MAX_FORCED_BYTES = 2048


class Grammars:
    """Compiles grammars for the tokens of one model, and keeps the last. What a grammar does wrong is a RequestError of its own requests."""

    def __init__(self, table: TokenTable) -> None:
        self.num_ids = table.num_ids
        self._compiler = ThreadPoolExecutor(1, "qwenbox-grammar")
        self._follower = ThreadPoolExecutor(1, "qwenbox-mask")
        self._table = table
        self._tokenizer: Future[LLTokenizer] | None = None
        self._compiled: OrderedDict[str, _Compilation] = OrderedDict()

    def warm(self) -> Future[LLTokenizer]:
        """Gets ready for the first grammar: for an idle moment, because it holds the interpreter for almost half a second."""
        if self._tokenizer is None:
            self._tokenizer = self._compiler.submit(_tokenizer, self._table)
        return self._tokenizer

    def begin(self, plan: ConstraintPlan) -> Constraint:
        compilation = self._compiled.pop(plan.grammar, None)
        if compilation is None or compilation.failed:
            compilation = _Compilation(self._compiler, self.warm(), plan, self.num_ids)
        self._compiled[plan.grammar] = compilation
        if len(self._compiled) > MAX_GRAMMARS:
            self._compiled.popitem(last=False)
        return Constraint(plan, compilation, self._follower)

    def close(self) -> None:
        for pool in (self._compiler, self._follower):
            pool.shutdown(wait=False, cancel_futures=True)


class Constraint:
    """Follows the content of one answer: `poll` before each step, `allowed` when a token is to be chosen, `note` with the token."""

    def __init__(self, plan: ConstraintPlan, compilation: _Compilation, pool: ThreadPoolExecutor) -> None:
        self.over = False
        """The grammar allows nothing more."""
        self.armed = plan.trigger is None
        """The grammar holds for the next token of content."""
        self.begun = False
        """Some content has come."""
        self._plan = plan
        self._compilation = compilation
        self._pool = pool
        self._matcher: LLMatcher | None = None
        self._forces = False  # of the task that is under way
        self._hurries = True
        self._task: Future[_Next] | None = None
        self._next: _Next | None = None

    @property
    def gap_ids(self) -> tuple[int, ...]:
        return self._plan.gap_ids

    @property
    def task(self) -> Future[Any] | None:
        """What has to be done before the next choice."""
        return self._task or (self._compilation.future if self._matcher is None else None)

    def check(self) -> None:
        """RequestError for a grammar that cannot be compiled."""
        self._compilation.matcher()

    def poll(self, *, forces: bool) -> tuple[int, ...]:
        """For one that is armed, goes on as far as possible without waiting. Raises RequestError.

        The ids that the grammar puts behind the answer, which need no `note`; none where something else may come first, and it `forces` nothing.
        """
        if self._matcher is None or (forces and not self._forces and not self.begun):
            self._start(forces)
        if self._task is None or not self._task.done():
            return ()
        self._next, self._task = self._task.result(), None
        self.begun = self.begun or bool(self._next.forced)
        self._hurries = self._hurries and not self._next.is_long
        if self._next.over:
            self.over = self._plan.trigger is None
            self.armed = self.over
        return self._next.forced

    def allowed(self, free: Collection[int]) -> MaskArray | None:
        """Which ids may come next, and `free` ones. None: it is not known yet."""
        task = self._task
        if task is not None and task.done() and task.exception() is None and not (task.result().forced or task.result().over):
            self._next, self._task = task.result(), None
        if self._next is None or self._task is not None:
            return None
        mask = self._next.mask
        if free:
            mask = mask.copy()
            for id in free:
                mask[id // 32] |= np.uint32(1 << id % 32)
        return mask

    def note(self, id: int) -> None:
        """The content goes on with this token, which was chosen."""
        self.begun, self._next = True, None
        if self.armed:
            assert self._matcher is not None, "a token was chosen before its grammar was there"
            self._task = self._pool.submit(self._compilation.follow, self._matcher, id, self._forces and self._hurries)
        elif id == self._plan.trigger:
            self.armed, self._matcher = True, None
            self._start(True)

    def _start(self, forces: bool) -> None:
        if (matcher := self._compilation.matcher()) is not None:
            self._matcher, self._forces, self._next = matcher.deep_copy(), forces, None
            self._task = self._pool.submit(self._compilation.follow, self._matcher, None, forces)


class _Next(NamedTuple):
    """What the grammar says after a token."""

    forced: tuple[int, ...]
    """Ids that have to follow it."""
    over: bool
    """Nothing may follow these."""
    mask: MaskArray
    """What may follow them."""
    is_long: bool
    """So much text has to follow that working it out again after each token would take longer than choosing its tokens."""


class _Compilation:
    """A grammar on its way."""

    def __init__(self, pool: ThreadPoolExecutor, tokenizer: Future[LLTokenizer], plan: ConstraintPlan, num_ids: int) -> None:
        self._plan = plan
        self._num_ids = num_ids
        self._began: float | None = None
        self.future = pool.submit(self._compile, tokenizer)

    @property
    def failed(self) -> bool:
        return self.future.done() and self.future.exception() is not None

    def matcher(self) -> LLMatcher | None:
        """To copy, not to feed. None while it is compiled. Raises RequestError."""
        if self.future.done():
            return self.future.result()
        if self._began is not None and time.monotonic() - self._began > COMPILE_SECONDS:
            raise self._refusal(f"it takes longer than {COMPILE_SECONDS:g} seconds to compile")
        return None

    def follow(self, matcher: LLMatcher, id: int | None, forces: bool) -> _Next:
        """Takes the id that was chosen; RequestError where the grammar breaks llguidance's bounds."""
        if id is not None:
            matcher.consume_token(id)
        forced: tuple[int, ...] = ()
        num_bytes = len(matcher.compute_ff_bytes()) if forces and not matcher.is_error() else 0
        if 0 < num_bytes <= MAX_FORCED_BYTES:
            forced = tuple(matcher.compute_ff_tokens()[:MAX_FORCED])
            matcher.consume_tokens(list(forced))
        over = matcher.is_stopped()
        mask = np.zeros(-(-self._num_ids // 32), np.uint32)
        if not over:
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error():
            raise self._refusal(matcher.get_error().partition("\n")[0][:300])
        return _Next(forced, over, mask, num_bytes > MAX_FORCED_BYTES)

    def _compile(self, tokenizer: Future[LLTokenizer]) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        tokens = tokenizer.result()
        self._began = time.monotonic()
        matcher = LLMatcher(tokens, self._plan.grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        # The first mask is often the hardest: what breaks on it is better refused now.
        self.follow(matcher.deep_copy(), None, forces=False)
        return matcher

    def _refusal(self, why: str) -> RequestError:
        return RequestError(f"{self._plan.param}: the form cannot be honoured: {why}.", param=self._plan.param)


def _tokenizer(table: TokenTable) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Tokens(table)), n_vocab=table.num_ids, eos_token=list(table.eos_ids))


class _Tokens:
    """What llguidance wants of a tokenizer. Called with text, it takes the longest token each time: near enough for the short pieces of JSON that a
    grammar forces."""

    bos_token_id = None

    def __init__(self, table: TokenTable) -> None:
        ends = np.frombuffer(table.ends, "<u4").tolist()
        self.tokens = [table.data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        self.special_token_ids = list(table.control_ids)
        self.eos_token_id = table.eos_ids[0]
        control = set(table.control_ids)
        self._ids = {token: id for id, token in enumerate(self.tokens) if 0 < len(token) <= LONGEST_FORCED and id not in control}

    def __call__(self, text: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            size = next(size for size in range(min(LONGEST_FORCED, len(text) - at), 0, -1) if text[at : at + size] in self._ids)
            ids.append(self._ids[text[at : at + size]])
            at += size
        return ids
