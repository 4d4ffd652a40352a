"""The models of a service: who is loaded, who uses whom, and who has to go when memory is short.

A request takes a `Lease` of its model, and a leased model is not unloaded. Leases that cannot be given at once wait in the order of their arrival
for one task, which makes room, loads, and gives. A model that has to go gives no new leases, so two models that displace each other take turns.
Everything here happens on the event loop of the service; nothing blocks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from qwenbox.errors import EngineError, NotFoundError, OverloadedError, QwenboxError, RequestError, gigabytes
from qwenbox.llm import READY_POLL_SECONDS, LocalLLM
from qwenbox.metrics import Metrics
from qwenbox.server.stock import Held, Outline, StoredModel

if TYPE_CHECKING:
    from qwenbox.model.load import MemoryNeed

log = logging.getLogger("qwenbox.server")

DRAIN_SECONDS = 10.0
"""What open answers get to end when their model is unloaded on request."""
RETRY_SECONDS = 5
"""What a request is told that waited in vain for other models' answers to end."""
REFUSED_SECONDS = 120
"""The same where there is not enough memory. OpenAI's clients do not sleep so long: they soon show the reason."""
UNDECIDED = "auto"
"""The name of what answers while nobody knows yet which model that is."""


class Source(Protocol):
    """Where models come from; `stock.Stock` is one. `default` is the name of the model that it opens for requests that name none; it may change, and
    is empty while nobody knows it."""

    default: str
    metrics: Metrics

    def models(self) -> Mapping[str, StoredModel]: ...
    def need(self, name: str) -> MemoryNeed: ...
    def outline(self, name: str) -> Outline | None: ...
    def free(self) -> int: ...
    def held(self, llm: LocalLLM) -> Held: ...
    def open(self, name: str, memory_bytes: int | None = None) -> LocalLLM: ...


@dataclass(eq=False, slots=True)
class Place:
    """What the shelf knows of a model that was asked for."""

    name: str
    keep_alive: float
    """Seconds that the model stays loaded after its last answer."""
    llm: LocalLLM | None = None
    num_leases: int = 0
    used_at: float = 0.0
    unloading: bool = False
    """Somebody asked for it to go."""
    closing: bool = False
    """Its process ends."""
    need: MemoryNeed | None = None
    """While it waits for its turn."""
    loading_since: float | None = None
    """Until somebody has seen it ready."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None

    @property
    def seconds_left(self) -> float | None:
        """Until it is unloaded; None while it is used, and where it stays."""
        return None if self.timer is None else max(0.0, self.timer.when() - asyncio.get_running_loop().time())

    @property
    def failed(self) -> bool:
        return self.llm is not None and self.llm.engine.state().name in ("failed", "closed")

    @property
    def loading(self) -> bool:
        """Whether nobody knows yet how much memory it will take; of one that is fetched its size is taken for that."""
        if self.llm is None:
            return False
        state = self.llm.engine.state()
        return state.name == "loading" or (state.name in ("fetching", "verifying") and state.total_bytes is None)


class Lease:
    """A request's hold on its model, from `with` on."""

    def __init__(self, shelf: Shelf, place: Place, keep_alive: float | None) -> None:
        self.place = place
        self.keep_alive = keep_alive
        self._shelf = shelf
        self._given: asyncio.Future[LocalLLM] = asyncio.get_running_loop().create_future()

    def __enter__(self) -> Lease:
        """Raises OverloadedError where too many wait already."""
        self._shelf.enter(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._shelf.leave(self)

    async def opened(self, seconds: float) -> LocalLLM | None:
        """The model, which may still be loading; None where it has not been its turn within so many seconds. Raises why it never will be."""
        if not self._given.done():
            await asyncio.wait([self._given], timeout=seconds)
        return self._given.result() if self._given.done() else None

    async def ready(self, seconds: float) -> LocalLLM | None:
        """The model when it answers; None after so many seconds. Raises the error of a model that never will."""
        deadline = time.monotonic() + seconds
        llm = await self.opened(seconds)
        if llm is None or not await llm.await_ready(deadline - time.monotonic()):
            return None
        self._shelf.note_ready(self.place)
        return llm

    def waiting_error(self) -> OverloadedError:
        """What a request is told that does not wait any longer."""
        if self._given.done():
            return self._given.result().loading_error()
        loading = next((other.name for other in self._shelf.places if other.loading), None)
        reason = "the models that hold its memory still answer" if loading is None else f"{loading} is being loaded"
        return OverloadedError(f"{self.place.name} is not loaded yet: {reason}.", code="model_loading", retry_after=RETRY_SECONDS)

    # --- for the shelf ---

    @property
    def given(self) -> bool:
        return self._given.done() and not self._given.cancelled() and self._given.exception() is None

    def give(self, llm: LocalLLM) -> None:
        self._given.set_result(llm)

    def refuse(self, error: QwenboxError) -> None:
        self._given.set_exception(error)
        self._given.exception()  # whoever waits hears it; nobody has to

    def drop(self) -> None:
        self._given.cancel()


class Shelf:
    """The loaded models by name, the default one first."""

    def __init__(
        self,
        source: Source,
        default: LocalLLM | None,
        *,
        keep_alive: float = 1800.0,
        max_waiting: int = 128,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """`default` answers requests that name no model; None: they wait till the source has one. `keep_alive`: seconds, < 0 for ever, of others."""
        self._default = Place(UNDECIDED if default is None else default.name, math.inf, default)
        self.metrics = source.metrics if default is None else default.metrics
        self.aliases = dict(aliases or {})
        self._places = {} if default is None else {default.name: self._default}
        self._source = source
        self._source_default = source.default if default is not None else ""
        self._keep_alive = keep_alive
        self._max_waiting = max_waiting
        self._waiting: list[Lease] = []
        self._displaced: Place | None = None
        """Who has to go for the first in the queue."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unloads: set[asyncio.Task[bool]] = set()

    def close(self) -> None:
        """Ends the loaded models, but not one that stays: that is its giver's. After the event loop has ended."""
        for place in self._places.values():
            if place.llm is not None and self._can_open(place):
                place.llm.close()

    # --- what there is ------------------------------------------------------------------------------------------------

    @property
    def default(self) -> Place:
        """For requests that name no model. When the source comes to another one, the next request means it, and the former goes like any other."""
        if self._source.default != self._source_default:
            self._source_default, before = self._source.default, self._default
            self._default = self._places.setdefault(self._source_default, Place(self._source_default, math.inf))
            self._default.keep_alive = math.inf
            if self._default.timer is not None:
                self._default.timer.cancel()
                self._default.timer = None
            before.keep_alive = _seconds(self._keep_alive)
            for lease in self._of(before) if before.name == UNDECIDED else ():
                lease.place = self._default
            if not before.num_leases:
                self._await_expiry(before)
        return self._default

    @property
    def places(self) -> Sequence[Place]:
        """Models that were asked for since the service started, the default one first."""
        return sorted(self._places.values(), key=lambda place: place is not self.default)

    def known(self, name: str) -> Place | None:
        """The place of a model that was asked for."""
        return self._places.get(name)

    def models(self) -> Mapping[str, StoredModel | None]:
        """What a request may name, the default first: None where it is not on the disk yet."""
        stored = self._source.models()
        return stored if self.default.name == UNDECIDED else {self.default.name: stored.get(self.default.name), **stored}

    def place(self, name: str | None) -> Place:
        """The model that a request means; none means the default. Raises NotFoundError listing what there is."""
        if not name:
            return self.default
        name = self.aliases.get(name, name)
        place = self._places.get(name)
        if place is not None and place.llm is not None:
            return place
        there = self.models()
        if name not in there:
            names = [*there, *self.aliases]
            be = "are" if len(names) > 1 else "is"
            raise NotFoundError(f"There is no such model; there {be} {', '.join(names)}.", param="model", code="model_not_found")
        if place is None:
            place = self._places[name] = Place(name, _seconds(self._keep_alive))
        return place

    def state(self, place: Place) -> str:
        if place.closing or self._is_leaving(place):
            return "draining"
        if place.llm is not None:
            return place.llm.engine.state().name
        return "choosing" if place.name == UNDECIDED else "unloaded"

    def outline(self, name: str) -> Outline | None:
        """Of a model that is not loaded; None where it is not known, or not yet."""
        return self._source.outline(name)

    def predicted_speed(self, touched_bytes: int) -> float | None:
        """Tokens a second of a model whose tokens read so many bytes: as fast as a loaded one reads its own. None where none has answered yet."""
        rates = [
            place.llm.write_speed * info.costs.get("touched_bytes", 0.0)
            for place in self._places.values()
            if place.llm is not None and place.llm.write_speed is not None and (info := place.llm.engine.info()) is not None
        ]
        return max(rates) / touched_bytes if any(rates) else None

    def held_bytes(self, place: Place) -> int:
        """What the ledger counts for a loaded model: its weights and all its pages."""
        return 0 if place.llm is None else self._source.held(place.llm).promised

    def num_waiting(self, place: Place) -> int:
        return sum(lease.place is place for lease in self._waiting)

    # --- leases -------------------------------------------------------------------------------------------------------

    def lease(self, place: Place, keep_alive: float | None = None) -> Lease:
        """`keep_alive`: seconds that the model stays loaded after this request, and after later ones that do not say."""
        return Lease(self, place, keep_alive)

    def enter(self, lease: Lease) -> None:
        place = lease.place
        if place.llm is not None and not self._is_leaving(place) and not (place.failed and self._can_open(place)):
            self._give(lease, place.llm)
            return
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError(f"{len(self._waiting)} requests wait for their model already.", retry_after=RETRY_SECONDS, status=429)
        self._waiting.append(lease)
        self._stir()

    def leave(self, lease: Lease) -> None:
        place = lease.place
        if lease in self._waiting:
            self._waiting.remove(lease)
        elif lease.given:
            place.num_leases -= 1
            if not place.num_leases:
                place.idle.set()
                self._await_expiry(place)
        lease.drop()
        self._wake.set()

    def note_ready(self, place: Place) -> None:
        if place.loading_since is not None:
            log.info("ready", extra={"fields": {"model": place.name, "seconds": round(time.monotonic() - place.loading_since, 1)}})
            place.loading_since = None

    def _give(self, lease: Lease, llm: LocalLLM) -> None:
        place = lease.place
        if lease.keep_alive is not None:
            place.keep_alive = _seconds(lease.keep_alive)
        if place.timer is not None:
            place.timer.cancel()
            place.timer = None
        place.num_leases += 1
        place.idle.clear()
        place.used_at = time.monotonic()
        lease.give(llm)

    def _is_leaving(self, place: Place) -> bool:
        return place.unloading or place is self._displaced

    def _can_open(self, place: Place) -> bool:
        """False for a model that this service was given and does not know how to open: it stays."""
        return place is not self._default or place.name == self._source.default

    # --- unloading ----------------------------------------------------------------------------------------------------

    async def unload(self, place: Place) -> bool:
        """Ends the model's process when its open answers have ended, or after a while; False where it was not loaded."""
        if place.llm is None:
            return False
        if not self._can_open(place):
            raise RequestError(f"{place.name} could not be loaded again, so it stays.", status=409, code="model_stays")
        place.unloading = True
        try:
            if place.num_leases:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(place.idle.wait(), DRAIN_SECONDS)
            await self._close(place)
        finally:
            place.unloading = False
            self._wake.set()
        return True

    def _await_expiry(self, place: Place) -> None:
        if place.llm is None or place.timer is not None or not math.isfinite(place.keep_alive):
            return
        place.timer = asyncio.get_running_loop().call_later(place.keep_alive, self._expire, place)

    def _expire(self, place: Place) -> None:
        place.timer = None
        if place.llm is not None and not place.num_leases and self._can_open(place):
            task = asyncio.create_task(self.unload(place))
            self._unloads.add(task)
            task.add_done_callback(self._unloads.discard)

    async def _close(self, place: Place) -> None:
        llm, place.llm = place.llm, None
        if llm is None:
            return
        if place.timer is not None:
            place.timer.cancel()
        place.timer, place.closing = None, True
        try:
            # A thread that has not begun would be cancelled with whoever waits for it, and the process would stay.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, llm.close))
            log.info("unloaded", extra={"fields": {"model": place.name}})
        finally:
            place.closing = False
            self._wake.set()

    # --- the queue ----------------------------------------------------------------------------------------------------

    def _stir(self) -> None:
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve_queue())

    async def _serve_queue(self) -> None:
        while self._waiting:
            self._wake.clear()
            undecided = self.default if self.default.name == UNDECIDED else None
            place = next((lease.place for lease in self._waiting if lease.place is not undecided), None)
            if place is None:
                await self._pause()
                continue
            try:
                llm = await self._advance(place)
            except QwenboxError as error:
                self._refuse(place, error)
            except Exception as error:
                log.exception("a model could not be loaded", extra={"fields": {"model": place.name}})
                self._refuse(place, EngineError(f"{place.name} could not be loaded: {type(error).__name__}: {error}"))
            else:
                if llm is None:
                    await self._pause()
                    continue
                leases, self._waiting = self._of(place), [lease for lease in self._waiting if lease.place is not place]
                for lease in leases:
                    self._give(lease, llm)
            self._displaced = place.need = None
        self._displaced = None

    async def _pause(self) -> None:
        """Until something has changed here, or may have changed in an engine."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), READY_POLL_SECONDS)

    def _of(self, place: Place) -> list[Lease]:
        return [lease for lease in self._waiting if lease.place is place]

    def _refuse(self, place: Place, error: QwenboxError) -> None:
        leases, self._waiting = self._of(place), [lease for lease in self._waiting if lease.place is not place]
        for lease in leases:
            lease.refuse(error)

    async def _advance(self, place: Place) -> LocalLLM | None:
        """One step towards the model: itself when it is there, None where something has to happen first. Raises why it cannot be loaded."""
        if any(other.closing or other.unloading for other in self.places):
            return None
        if place.failed and self._can_open(place):
            if place.num_leases == 0:
                await self._close(place)
            return None
        if place.llm is not None:
            return place.llm
        if any(other.loading for other in self.places):
            return None  # what it will take is known when it is there
        if place.need is None:
            place.need = await asyncio.to_thread(self._source.need, place.name)
            return None
        self._displaced = self._who_goes(place, place.need)
        if self._displaced is None:
            free = self._free()
            fields = {"model": place.name, "needs": gigabytes(place.need.total), "free": gigabytes(free)}
            log.info("loading", extra={"fields": fields})
            place.llm, place.loading_since = self._source.open(place.name, free), time.monotonic()
            return place.llm
        if self._displaced.num_leases == 0:
            await self._close(self._displaced)
        return None

    def _free(self) -> int:
        """Free memory that is promised to nobody."""
        held = [self._source.held(place.llm) for place in self.places if place.llm is not None]
        return self._source.free() - sum(max(0, promised - resident) for promised, resident in held)

    def _who_goes(self, place: Place, need: MemoryNeed) -> Place | None:
        """Of idle models, else of all, the one used longest ago; None where there is memory enough. OverloadedError if there never will be."""
        free = self._free()
        if need.total <= free:
            return None
        loaded = [other for other in self.places if other.llm is not None and self._can_open(other)]
        held = sum(max(self._source.held(other.llm)) for other in loaded if other.llm is not None)
        if need.total > free + held:
            others = f", {gigabytes(free + held)} if no other model were loaded" if loaded else ""
            raise OverloadedError(
                f"{place.name} needs {gigabytes(need.total)} of memory (weights {gigabytes(need.weights)}, keys and values {gigabytes(need.kv)}, "
                f"the program {gigabytes(need.program)}), but {gigabytes(free)} are free{others}: choose a smaller model, end other programs, or "
                "start the service with a smaller context_length or kv_gb.",
                code="insufficient_memory",
                retry_after=REFUSED_SECONDS,
            )
        return min(loaded, key=lambda other: (other.num_leases > 0, other.used_at))


def _seconds(keep_alive: float) -> float:
    return keep_alive if keep_alive >= 0 else math.inf
