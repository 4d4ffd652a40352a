"""Who may come in: how many requests may be alive at once, and when it is worth coming back."""

from __future__ import annotations

import math
import time
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from qwenbox.errors import OverloadedError
from qwenbox.types import GenerationPlan

EXTRA = 2
"""So many times `max_requests` are alive at most: a user with less than a fair share finds a place even where others have all the usual ones."""
RECENT = 128
"""Ends of requests from which their rate is taken."""
UNKNOWN_SECONDS = 5.0
"""What a refused request is told before there is a rate."""
GRACE_SECONDS = 3.0
"""A promised place is kept so long for who does not come in time."""
SLACK = 1.25
"""So many times its share of the places a user may have where a promise is due: ends come when they like."""
MAX_SECONDS = 600


@dataclass(slots=True)
class _User:
    alive: int = 0
    weight: float = 1.0
    promises: list[tuple[float, int]] = field(default_factory=list)
    """Ascending: from this time on, a place is kept for this request, which was refused."""


class Admission:
    """Counts the requests that are alive, by user. A user's fair share of the places is by weight, among the users who have any.

    A refused request is told when one of this user's requests will have left its place, beside those that were promised to others before, and the
    place is kept for a while. Who comes back is known by the prompt: too early, it is told the same time again; in time, it gets in, or is told how
    much longer that takes. Where the plan's `attempt` is 0, it is another request with the same prompt.
    """

    def __init__(self, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_requests = max_requests
        self.num_alive = 0
        self._clock = clock
        self._users: dict[str, _User] = {}
        self._ends: deque[float] = deque(maxlen=RECENT)

    def enter(self, plan: GenerationPlan) -> None:
        """Takes a place. OverloadedError with `retry_after` where there is none."""
        now = self._clock()
        user = self._users.get(plan.user) or _User()
        user.weight = plan.weight
        share = user.weight / (user.weight + sum(other.weight for other in self._users.values() if other is not user))
        places, seconds = share * self.max_requests, self._seconds_each(now) / share
        del user.promises[: bisect_right(user.promises, (now - seconds - GRACE_SECONDS, 0))]
        mine = _own(user.promises, plan)
        due = bisect_right(user.promises, (now + seconds, 0))
        if mine is not None and mine[0] <= now:
            places, due = SLACK * places, 0
        if self.num_alive + due >= self.max_requests and (user.alive + due >= places or self.num_alive + due >= EXTRA * self.max_requests):
            at = self._promise(user, mine, plan, now, seconds, share)
            raise OverloadedError(
                f"{self.num_alive} requests run or wait already", retry_after=min(max(math.ceil(at - now), 1), MAX_SECONDS), status=429
            )
        if mine is not None:
            user.promises.remove(mine)
        if self.num_alive < self.max_requests // 2:
            self._ends.clear()  # what ends under little load says nothing of what can end
        self._users[plan.user] = user
        user.alive += 1
        self.num_alive += 1

    def leave(self, plan: GenerationPlan) -> None:
        """Gives the place back."""
        user = self._users[plan.user]
        user.alive -= 1
        self.num_alive -= 1
        if not user.alive:
            del self._users[plan.user]
        self._ends.append(self._clock())

    def _promise(self, user: _User, mine: tuple[float, int] | None, plan: GenerationPlan, now: float, seconds: float, share: float) -> float:
        """When a refused request may come. `seconds` is the time between two ends of this user's requests."""
        if mine is not None and mine[0] > now:
            return mine[0]
        at = now + max(user.alive - share * self.max_requests, 0.0) * seconds
        if mine is not None:
            user.promises.remove(mine)  # it is late, and stays the first
        elif user.promises:
            at = max(at, user.promises[-1][0])
        at += seconds
        if at - now <= MAX_SECONDS:
            insort(user.promises, (at, _key(plan)))
        return at

    def _seconds_each(self, now: float) -> float:
        """Between two ends of requests."""
        return (now - self._ends[0]) / (len(self._ends) - 1) if len(self._ends) > 1 else UNKNOWN_SECONDS


def _own(promises: list[tuple[float, int]], plan: GenerationPlan) -> tuple[float, int] | None:
    """The first promise that was made to this request."""
    if plan.attempt == 0 or not promises:
        return None
    key = _key(plan)
    return next((promise for promise in promises if promise[1] == key), None)


def _key(plan: GenerationPlan) -> int:
    return hash((plan.prompt_ids, plan.sampling.choice))
