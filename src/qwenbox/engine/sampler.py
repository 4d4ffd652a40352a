"""From sequences to rows of the sampler, and from its results to log-probabilities. The arithmetic itself is the kernels'."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qwenbox.engine.sequence import Sequence
from qwenbox.kernels.program import MaskArray, SampleResult, SampleRow
from qwenbox.types import SamplingParams, TokenLogprob

# The shortest prefix of candidates with at least no mass is the first of them; the kernels want a top_p above 0.
_LEAST_TOP_P = math.nextafter(0.0, 1.0)
_NO_IDS = np.empty(0, np.int32)


def score_rows(sequence: Sequence, length: int, vocab_limit: int) -> Iterator[SampleRow]:
    """One row for each prompt token to score: its choice is forced by an infinite bias; log-probabilities come from the raw logits anyway."""
    for position in sequence.scored_rows(length):
        forced = {int(sequence.ids[position + 1]): math.inf}
        params = SamplingParams(temperature=0.0, logit_bias=forced, logprobs=sequence.plan.prompt_logprobs)
        yield SampleRow(params, _NO_IDS, _NO_IDS, position + 1, vocab_limit)


def choice_row(sequence: Sequence, vocab_limit: int, allowed: MaskArray | None) -> SampleRow:
    """The row of the next token. Until `min_tokens` are out, stop ids are banned by a bias of minus infinity, but a grammar knows better."""
    plan = sequence.plan
    params = plan.sampling
    if allowed is None and plan.stop_ids and sequence.num_output < plan.min_tokens:
        params = replace(params, logit_bias=dict(params.logit_bias) | {id: -math.inf for id in plan.stop_ids if id < vocab_limit})
    if params.top_p == 0:
        params = replace(params, top_p=_LEAST_TOP_P)
    return SampleRow(params, sequence.prompt_ids, sequence.output_ids, sequence.num_tokens, vocab_limit, allowed)


def only_largest(sequence: Sequence, length: int) -> bool:
    """Whether nothing but the largest logit counts in the rows that the next `length` tokens give."""
    plan, params = sequence.plan, sequence.plan.sampling
    if sequence.scored_rows(length) or sequence.constraint is not None or (plan.stop_ids and sequence.num_output < plan.min_tokens):
        return False
    penalties = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
    return params.temperature == 0 and params.logprobs is None and not params.logit_bias and not penalties


def token_logprob(result: SampleResult) -> TokenLogprob | None:
    if result.logprob is None:
        return None
    return TokenLogprob(result.id, result.logprob, tuple(result.top or ()))
