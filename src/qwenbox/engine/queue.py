"""Who is next: sequences that wait for a place, in an order that is fair to the users whose they are."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qwenbox.engine.sequence import Sequence

MAX_USERS = 1024
"""Users without a request whose use is remembered; more are forgotten, those who used least first."""


@dataclass(slots=True)
class _User:
    used: float
    """Seconds of steps over the weight of the requests that they served."""
    alive: int = 0
    waiting: list[Sequence] = field(default_factory=list)


class WaitingQueue:
    """First those who ran before and had to give way, as they were admitted; then by priority, then by what the user has had, then by arrival.

    What a user has had is counted in seconds of steps over the request's weight (weighted fair queueing). Whoever was away has had as much as the
    one who has had least of those who were there: being idle earns no credit.
    """

    def __init__(self) -> None:
        self._users: dict[str, _User] = {}
        self._preempted: deque[Sequence] = deque()
        self._least = 0.0

    def __len__(self) -> int:
        return len(self._preempted) + sum(len(user.waiting) for user in self._users.values())

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted
        for user in self._users.values():
            yield from user.waiting

    def add(self, sequence: Sequence) -> None:
        """A new request."""
        user = self._users.setdefault(sequence.plan.user, _User(self._least))
        if not user.alive:
            user.used = max(user.used, self._least)
        user.alive += 1
        insort(user.waiting, sequence, key=_order)

    def put_back(self, sequence: Sequence) -> None:
        """One that ran; of all that ran, those that are still running were admitted earlier, and those that were put back later."""
        self._preempted.appendleft(sequence)

    def first(self) -> Sequence | None:
        if self._preempted:
            return self._preempted[0]
        waiting = [user for user in self._users.values() if user.waiting]
        if not waiting:
            return None
        return min(waiting, key=lambda user: (user.waiting[0].plan.priority, user.used, user.waiting[0].arrival)).waiting[0]

    def remove(self, sequence: Sequence) -> None:
        """It runs from now on, or ends."""
        if sequence in self._preempted:
            self._preempted.remove(sequence)
        else:
            self._users[sequence.plan.user].waiting.remove(sequence)

    def charge(self, seconds: Iterable[tuple[Sequence, float]]) -> None:
        """A step spent so many seconds on each of these sequences."""
        for sequence, spent in seconds:
            self._users[sequence.plan.user].used += spent / sequence.plan.weight
        self._least = max(self._least, min(user.used for user in self._users.values() if user.alive))

    def forget(self, sequence: Sequence) -> None:
        """A request of this user has ended."""
        self._users[sequence.plan.user].alive -= 1
        idle = [name for name, user in self._users.items() if not user.alive]
        if len(idle) > MAX_USERS:
            del self._users[min(idle, key=lambda name: self._users[name].used)]


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.plan.priority, sequence.arrival
