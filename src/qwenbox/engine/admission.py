"""Who may come in: how many requests may be alive at once, and when it is worth coming back."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from qwenbox.errors import OverloadedError
from qwenbox.types import GenerationPlan

EXTRA = 2
"""So many times `max_requests` are alive at most: a user with less than a fair share finds a place even where others have all the usual ones."""
RECENT = 32
"""Ends of requests from which their rate is taken."""
UNKNOWN_SECONDS = 5.0
"""What a refused request is told before there is a rate."""
GRACE_SECONDS = 3.0
"""A promised place is kept so long for who does not come in time."""
MAX_SECONDS = 600


@dataclass(slots=True)
class _User:
    alive: int = 0
    weight: float = 1.0
    promises: list[float] = field(default_factory=list)
    """Times, ascending: from each on, a place is kept for a request that was refused."""


class Admission:
    """Counts the requests that are alive, by user. A user's fair share of the places is by weight, among the users who have any.

    A refused request is told when one of this user's requests will have left its place, beside those that were promised to others before, and the
    place is kept for a while. Who comes back is known by the plan's `attempt`; where a client does not say, it may be either.
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
        seconds = self._seconds_each() / share
        del user.promises[: bisect_right(user.promises, now - seconds - GRACE_SECONDS)]
        kept = bisect_right(user.promises, now + seconds)
        back = bool(kept) and (plan.attempt is None or plan.attempt > 0)
        if self._is_full(user, share, 0 if back else kept):
            raise OverloadedError(f"{self.num_alive} requests run or wait already", retry_after=_promise(user, now, seconds), status=429)
        if back:
            del user.promises[0]
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

    def _is_full(self, user: _User, share: float, kept: int) -> bool:
        if self.num_alive + kept < self.max_requests:
            return False
        return user.alive + kept >= share * self.max_requests or self.num_alive + kept >= EXTRA * self.max_requests

    def _seconds_each(self) -> float:
        """Between two ends of requests."""
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) if len(self._ends) > 1 else UNKNOWN_SECONDS


def _promise(user: _User, now: float, seconds: float) -> int:
    """Whole seconds until the place after the last one that was promised."""
    at = max(now, user.promises[-1] if user.promises else now) + seconds
    wait = max(math.ceil(at - now), 1)
    if wait > MAX_SECONDS:
        return MAX_SECONDS
    user.promises.append(at)
    return wait
