"""Which model the service runs when nobody says it: what is on this disk, else what suits this machine and can be fetched, else what somebody gives.

A choice is kept and does not change by itself. Nothing large is fetched without a yes, which comes from the page or the terminal. A small model
answers while a better one is fetched; the service goes over to it between two answers, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qwenbox.engine.client import EngineState
from qwenbox.engine.protocol import Closed, Pace
from qwenbox.errors import DownloadError, NotFoundError, Problem, QwenboxError, RequestError, UsageError, gigabytes
from qwenbox.hub import CATALOGUE, FIRST, announced_bytes, find, installed, local, pull
from qwenbox.hub.catalogue import Packages
from qwenbox.hub.sources import first_reachable, hubs
from qwenbox.server.auth import is_from_here
from qwenbox.server.forecast import isa_of, threads_of
from qwenbox.server.routes import read_body
from qwenbox.server.shelf import Place, Shelf
from qwenbox.server.stock import Stock
from qwenbox.settings import keep_setting
from qwenbox.wire.errors import validate

if TYPE_CHECKING:
    from qwenbox.model.choice import Machine, Offer
    from qwenbox.model.costs import Costs

log = logging.getLogger("qwenbox.server")

PRACTICE = "qwen2.5-coder-1.5b"
"""What the package index has, where no hub can be reached."""
Phase = Literal["looking", "asking", "fetching", "loading", "nothing", "settled"]
Because = Literal["stated", "disk", "hub", "index", "yours"]
_ATTEMPTS, _PAUSE_SECONDS = 5, 5.0
_SURPRISE = 1.1
"""How much larger than it was offered a model may turn out to be without being asked for again."""
_LOAD_SECONDS = 3600.0
_T = TypeVar("_T")


class Here(NamedTuple):
    """A model on this disk; `problem`: why we cannot run it."""

    name: str
    origin: str
    path: Path
    costs: Costs | None
    problem: Problem | None


class ChoiceRequest(BaseModel):
    """What a person decides; one of these."""

    model_config = ConfigDict(strict=True, extra="forbid")
    model: str | None = Field(None, max_length=300)
    yes: bool | None = None
    path: str | None = Field(None, max_length=4096)
    folder: str | None = Field(None, max_length=4096)
    endpoint: str | None = Field(None, max_length=300, pattern=r"^https?://[^\s/]+(/\S*)?$")


class Choice:
    """Runs on the event loop of the service from its first moment on. `say` tells the terminal; `ask` has it ask and its function gets the answer."""

    def __init__(
        self,
        stock: Stock,
        *,
        stated: bool = False,
        say: Callable[[str], None] = lambda text: None,
        ask: Callable[[str, Callable[[bool], None]], None] = lambda text, answer: None,
    ) -> None:
        """`stated`: the model of the settings is more than a default."""
        self.phase: Phase = "looking"
        self._stock, self._stated, self._say, self._ask = stock, stated, say, ask
        self._shelf: Shelf | None = None
        self._because: Because | None = None
        self._problem: Problem | None = None
        self._here: Sequence[Here] = ()
        self._isa: str | None = None
        self._machine: Machine | None = None
        self._offers: Sequence[Offer] = ()
        self._weighing: asyncio.Task[None] | None = None
        self._asked: tuple[Offer, asyncio.Future[bool]] | None = None
        self._fetching: tuple[str, EngineState] | None = None
        self._switched: tuple[str, str] | None = None
        self._job: asyncio.Task[None] | None = None
        self._closed = threading.Event()

    # --- from the start on --------------------------------------------------------------------------------------------

    def begin(self, shelf: Shelf) -> None:
        """On the event loop."""
        self._shelf = shelf
        self._weighing = asyncio.create_task(self._measure())
        self._weighing.add_done_callback(lambda task: task.cancelled() or task.exception())  # whoever waits for it is told; perhaps nobody does
        self._start(self._decide())

    def close(self) -> None:
        self._closed.set()

    def _start(self, work: Any) -> None:
        """What is under way is given up for it."""
        if self._job is not None:
            self._job.cancel()
        self._job = asyncio.create_task(self._guarded(work))

    async def _guarded(self, work: Any) -> None:
        try:
            await work
        except QwenboxError as error:
            self._problem = error.problem
            self.phase = "nothing" if self._serves is None else "settled"
            self._say(error.message)
        except Closed:
            pass
        except Exception as error:
            log.exception("no model could be chosen")
            self._problem, self.phase = Problem(f"{type(error).__name__}: {error}", "internal_error"), "nothing"

    @property
    def _serves(self) -> str | None:
        """The model that answers now, or soon will."""
        place = self._shelf.default if self._shelf is not None else None
        return None if place is None or not self._stock.default or place.failed else place.name

    async def _decide(self) -> None:
        await self._look()
        name = self._stated_name()
        if name is not None and self._stock.path(name) is not None:
            await self._serve(name, "stated")
            return
        if len([one for one in self._here if one.problem is None]) > 1:
            await self._weigh()
        on_disk = self._best_here()
        if on_disk is not None:
            await self._serve(on_disk.name, "disk", keep=name is None)
            if name is not None:
                await self._weigh()
                await self._get(name)
            return
        if self._stock.settings.offline:
            raise DownloadError("No model is on this disk, and offline is set.", code="offline")
        await self._from_network(name)

    async def _from_network(self, name: str | None) -> None:
        """`name`: what was chosen before, or said. The smallest is fetched as soon as a hub answers; meanwhile it is found out what suits."""
        try:
            await _beside(lambda: first_reachable(hubs(self._stock.settings)))
        except DownloadError as error:
            await self._practise(error, name)
            return
        if name is not None:
            await self._weigh()
            if name not in {offer.name for offer in self._offers}:
                await self._serve(name, "stated")
                return
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        served, wanted = await asyncio.gather(self._serve_first(), self._consider(name, answer), return_exceptions=True)
        if isinstance(served, DownloadError):
            self._asked = None
            await self._practise(served, None)
            return
        for result in (served, wanted):
            if isinstance(result, BaseException):
                raise result
        assert not isinstance(wanted, BaseException)
        if self._asked is not None:
            self.phase = "asking"
        agreed = await answer
        self._asked = None
        if agreed and wanted.name != FIRST:
            await self._get(wanted.name)
        else:
            self._keep(FIRST)
            self.phase = "settled"

    async def _serve_first(self) -> None:
        from qwenbox.model.choice import FREE_BYTES

        size = await _beside(lambda: announced_bytes(CATALOGUE[FIRST], self._stock.settings))
        if size > FREE_BYTES:
            raise DownloadError(f"{FIRST} has {gigabytes(size)} on this hub, more than is fetched without being asked.")
        await self._serve(FIRST, "hub")

    async def _practise(self, error: DownloadError, name: str | None) -> None:
        self._say(f"{error.message} The practice model is fetched from the package index instead.")
        await self._serve(name if name is not None and isinstance(CATALOGUE[name].source, Packages) else PRACTICE, "index")

    async def _consider(self, name: str | None, answer: asyncio.Future[bool]) -> Offer:
        """What was chosen, or else what suits best of what the hub has; `answer` says whether to fetch it, at once where nobody has to be asked."""
        from qwenbox.model.choice import FREE_BYTES, best

        await self._weigh()
        while True:
            wanted = await self._verified(name or best(self._offers).name)
            if wanted.problem is None:
                break
            self._say(wanted.problem.message)
            if name is not None or wanted.name == FIRST:
                raise _as_before(wanted.problem)
        if name is not None or wanted.name == FIRST or wanted.download <= FREE_BYTES:
            answer.set_result(True)
        else:
            self._put_question(wanted, answer)
        return wanted

    async def _verified(self, name: str) -> Offer:
        """An offer as the hub knows it: whether it is there, and how large."""
        try:
            size, problem = await _beside(lambda: announced_bytes(CATALOGUE[name], self._stock.settings)), None
        except DownloadError as error:
            size, problem = None, error.problem
        self._offers = [
            (offer._replace(problem=problem) if size is None else offer._replace(download=size, verified=True, problem=None))
            if offer.name == name
            else offer
            for offer in self._offers
        ]
        return next(offer for offer in self._offers if offer.name == name)

    def _put_question(self, offer: Offer, answer: asyncio.Future[bool]) -> None:
        self._asked = offer, answer
        loop = asyncio.get_running_loop()

        def answered(yes: bool) -> None:
            with contextlib.suppress(RuntimeError):  # the service has ended
                loop.call_soon_threadsafe(self._settle, answer, yes)

        size, speed = f"{offer.download / 1e9:.1f} GB to fetch", f"at most {offer.speed:.0f} tokens a second"
        self._ask(f"{offer.name} suits this machine best: {size}, {speed}. Fetch it? [y/N] ", answered)

    @staticmethod
    def _settle(answer: asyncio.Future[bool], yes: bool) -> None:
        if not answer.done():
            answer.set_result(yes)

    # --- what there is ------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """At the disk, anew."""
        self._stock.others.look(self._stock.settings)
        self._here = await _beside(self._find_here)

    def _find_here(self) -> list[Here]:
        others = self._stock.others
        own = {**installed(self._stock.settings), **self._stock.given}
        here = [Here(name, "qwenbox", path, *others.verdict(path)) for name, path in own.items()]
        return here + [
            Here(one.found.name, one.found.origin, one.found.path, one.costs, one.problem) for one in others.judge() if one.found.name not in own
        ]

    async def _weigh(self) -> None:
        """Until it is known what this machine can do, and what that means for the models that are offered: about a second after the start."""
        assert self._weighing is not None
        await asyncio.shield(self._weighing)

    async def _measure(self) -> None:
        settings = self._stock.settings
        self._isa = await _beside(lambda: isa_of(settings))
        self._machine, self._offers = await _beside(lambda: _weighed(threads_of(settings), settings.forms))

    def _best_here(self) -> Here | None:
        """The largest on the disk that fits and is fast enough, else the fastest that fits; what is for practice only comes last."""
        from qwenbox.model.choice import LEAST_SPEED

        def rank(one: Here) -> tuple[bool, bool, float]:
            speed, costs = self._speed(one.costs), one.costs
            assert costs is not None
            fast = speed is None or speed >= LEAST_SPEED
            own = CATALOGUE.get(one.name)
            return fast, own is None or not isinstance(own.source, Packages), costs.weights_bytes if fast else -costs.touched_bytes

        return max((one for one in self._here if one.problem is None and self._fits(one.costs)), key=rank, default=None)

    def _speed(self, costs: Costs | None) -> float | None:
        return None if self._machine is None or costs is None else self._machine.bandwidth / costs.touched_bytes

    def _fits(self, costs: Costs | None) -> bool:
        from qwenbox.model.choice import CONTEXT, MEMORY_SHARE
        from qwenbox.model.load import program_need

        if costs is None:
            return False
        memory = self._stock.free() if self._machine is None else self._machine.memory
        return costs.weights_bytes + costs.kv_bytes * CONTEXT + program_need() <= MEMORY_SHARE * memory

    def _stated_name(self) -> str | None:
        if not self._stated:
            return None
        try:
            return self._stock.name_of(self._stock.settings.model)
        except NotFoundError as error:
            self._say(f"The model that was chosen is not there any more: {error.message}")
            return None

    # --- what is done -------------------------------------------------------------------------------------------------

    async def _serve(self, name: str, because: Because, *, keep: bool = False) -> None:
        """The model answers from now on: it is fetched if need be, and loaded. Raises why it never will be there."""
        assert self._shelf is not None
        self._because, self._problem, self.phase = because, None, "loading"
        before, self._stock.default = self._shelf.default, name
        self._say(f"{name}{_REASONS[because]}")
        place = self._shelf.default
        if place is not before:
            await self._shelf.unload(before)  # it could not be had
        await self._load(place)
        if keep:
            self._keep(name)
        self.phase, self._problem = "settled", None

    async def _load(self, place: Place) -> None:
        assert self._shelf is not None
        with self._shelf.lease(place) as lease:
            while await lease.ready(0.5) is None:
                state = place.llm.engine.state() if place.llm is not None else None
                self._problem = None if state is None or state.error is None else state.error.problem
                self.phase = "nothing" if self._problem and self._because == "index" else "loading"

    async def _get(self, name: str) -> None:
        """Fetches a model behind the one that answers, loads it, and goes over to it between two answers."""
        assert self._shelf is not None
        if self._stock.path(name) is None:
            await self._agree(name)
            self._keep(name)
            self.phase = "fetching"
            await self._fetch(name)
        self._keep(name)
        self._fetching = None
        before = self._serves
        if before is None:
            await self._serve(name, "yours")
            return
        if before == name:
            self.phase = "settled"
            return
        self.phase = "loading"
        await self._load(self._shelf.place(name))
        self._stock.default, old = name, self._shelf.default
        self._shelf.place(None)
        self._switched, self.phase, self._because = (before, name), "settled", "yours"
        self._say(f"{name} answers from now on, in place of {before}.")
        while old.num_leases:
            await old.idle.wait()
        await self._shelf.unload(old)
        await self._look()

    async def _agree(self, name: str) -> None:
        """Raises DownloadError where the hub does not have what was offered, or it is much larger than was said and nobody wants it so."""
        before = next((offer for offer in self._offers if offer.name == name), None)
        if before is None or before.verified:
            return
        now = await self._verified(name)
        if now.problem is not None:
            raise _as_before(now.problem)
        if now.download > _SURPRISE * before.download:
            answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._put_question(now, answer)
            self.phase = "asking"
            agreed = await answer
            self._asked = None
            if not agreed:
                raise DownloadError(f"{name} was not fetched.", code="not_fetched")

    async def _fetch(self, name: str) -> None:
        pace, settings, task = Pace(), self._stock.settings, self._job

        def report(phase: Literal["fetching", "verifying"], done: int, total: int) -> None:
            if self._closed.is_set() or self._job is not task:
                raise Closed
            self._fetching = name, pace.state(phase, done / total if total else 0.0, done_bytes=done, total_bytes=total)

        self._fetching = name, EngineState("fetching")
        self._say(f"{name} is being fetched.")
        for attempt in range(_ATTEMPTS):
            try:
                await _beside(lambda: pull(find(name), settings, report))
                return
            except DownloadError as error:
                self._fetching = name, replace(self._fetching[1], error=error)
                if error.retry_after is None or attempt == _ATTEMPTS - 1:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)

    def _keep(self, name: str) -> None:
        path = self._stock.given.get(name)
        try:
            keep_setting(self._stock.settings.state_dir, "model", name if path is None else str(path.absolute()))
        except UsageError as error:
            self._say(error.message)

    # --- for the page -------------------------------------------------------------------------------------------------

    async def get(self, _: Request) -> Response:
        return JSONResponse(self.view())

    async def post(self, request: Request) -> Response:
        """A decision; the answer is what `get` says then. Raises RequestError, or why what is named cannot be had."""
        asked = validate(ChoiceRequest, await read_body(request))
        given = [name for name in ChoiceRequest.model_fields if getattr(asked, name) is not None]
        if len(given) != 1:
            raise RequestError(f"one of {', '.join(ChoiceRequest.model_fields)} is needed.", param=given[1] if given else "model")
        if given[0] in ("path", "folder", "endpoint") and not (self._stock.settings.remote_choice or is_from_here(request.scope)):
            raise RequestError(
                f"{given[0]}: files, folders and mirrors can be named on the service's own machine only (http://127.0.0.1 in a browser there); "
                "QWENBOX_REMOTE_CHOICE=1 lets whoever has the key.",
                param=given[0],
                status=403,
                code="not_from_here",
            )
        if asked.yes is not None:
            if self._asked is None:
                raise RequestError("Nothing was asked.", param="yes", status=409)
            self._settle(self._asked[1], asked.yes)
        elif asked.model is not None:
            if all(one.name != asked.model or one.problem is not None for one in self._here):
                find(asked.model)
            self._replace(asked.model)
        elif asked.path is not None:
            await self._take_path(asked.path)
        elif asked.folder is not None:
            await self._take_folder(asked.folder)
        else:
            keep_setting(self._stock.settings.state_dir, "hub_endpoint", asked.endpoint)
            self._stock.settings = replace(self._stock.settings, hub_endpoint=asked.endpoint)
            self._offers = [offer._replace(verified=False, problem=None) for offer in self._offers]
            self._start(self._from_network(None))
        await asyncio.sleep(0)
        return JSONResponse(self.view())

    def _replace(self, name: str) -> None:
        self._asked = None
        self._start(self._get(name))

    async def _take_path(self, text: str) -> None:
        from qwenbox.model.load import stored_costs

        forms = self._stock.settings.forms
        path = local(text)
        if path is None or not path.is_absolute():
            raise RequestError(f"{text!r} is no directory and no .gguf file on the service's machine; give the whole path.", param="path")
        try:
            await _beside(lambda: stored_costs(path, **forms))
        except QwenboxError as error:
            raise RequestError(error.message, param="path") from None
        name = self._stock.name_of(text)
        await self._look()
        self._replace(name)

    async def _take_folder(self, text: str) -> None:
        folder = Path(text).expanduser()
        if not (folder.is_absolute() and folder.is_dir()):
            raise RequestError(f"{text!r} is no folder on the service's machine; give the whole path.", param="folder")
        keep_setting(self._stock.settings.state_dir, "models_dir", str(folder))
        self._stock.settings = replace(self._stock.settings, models_dir=folder)
        await self._look()
        await self._weigh()
        if all(folder not in one.path.parents for one in self._here):
            raise RequestError(f"No model is in {text}: a checkpoint, a .gguf file, or folders of them.", param="folder")

    def prediction(self) -> dict[str, Any]:
        """What will run the default model, and tokens a second at best; None is not known yet, or of a model without a shape."""
        costs = next((one.costs for one in self._here if one.name == self._stock.default), None)
        offered = next((offer.speed for offer in self._offers if offer.name == self._stock.default), None)
        return {"isa": self._isa, "threads": threads_of(self._stock.settings), "speed": _rounded(self._speed(costs) or offered)}

    def view(self) -> dict[str, Any]:
        """What a person sees who has to choose. Sizes in bytes, speeds in tokens a second at best."""
        entry = CATALOGUE.get(self._stock.default)
        here = {one.name for one in self._here if one.problem is None}
        return {
            "phase": self.phase,
            "because": self._because,
            **_told("problem", self._problem),
            "model": self._stock.default or None,
            "practice": entry is not None and isinstance(entry.source, Packages),
            **self.prediction(),
            "machine": None if self._machine is None else {"memory": self._machine.memory, "bandwidth": round(self._machine.bandwidth)},
            "here": [
                {
                    "name": one.name,
                    "origin": one.origin,
                    "bytes": _size(one),
                    "speed": _rounded(self._speed(one.costs)),
                    "fits": self._fits(one.costs),
                }
                | _told("problem", one.problem)
                for one in self._here
            ],
            "offers": [
                {"name": offer.name, "download": offer.download, "memory": offer.memory, "speed": _rounded(offer.speed), "fits": offer.fits}
                | {"suits": offer.suits, "verified": offer.verified, **_told("problem", offer.problem)}
                for offer in self._offers
                if offer.name not in here
            ],
            "asked": None if self._asked is None else self._asked[0].name,
            "fetching": None if self._fetching is None else _progress(*self._fetching),
            "switched": None if self._switched is None else {"from": self._switched[0], "to": self._switched[1]},
        }


_REASONS = {
    "stated": " is what was chosen.",
    "disk": " is on this disk: nothing is fetched.",
    "hub": " is small and answers first; it is fetched from a model hub.",
    "index": ": practice model, for code, without thinking; a third party's upload to the package index, pinned by its sha256.",
    "yours": " is what was chosen.",
}


async def _beside(work: Callable[[], _T]) -> _T:
    """In a thread of its own, whose end nobody waits for when the service ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as failure:
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="qwenbox-choice", daemon=True).start()
    return await done


def _weighed(threads: int, forms: Mapping[str, str | None]) -> tuple[Machine, Sequence[Offer]]:
    from qwenbox.model.choice import measure, offers

    machine = measure(threads)
    return machine, offers(machine, **forms)


def _progress(name: str, state: EngineState) -> dict[str, Any]:
    return {
        "name": name,
        "state": state.name,
        "progress": state.progress,
        "bytes": state.done_bytes,
        "total_bytes": state.total_bytes,
        "seconds_left": _rounded(state.seconds_left),
        **_told("error", None if state.error is None else state.error.problem),
    }


def _told(name: str, problem: Problem | None) -> dict[str, str | None]:
    return {name: None, f"{name}_code": None} if problem is None else {name: problem.message, f"{name}_code": problem.code}


def _as_before(problem: Problem) -> DownloadError:
    return DownloadError(problem.message, code=problem.code)


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 1)


def _size(one: Here) -> int | None:
    return None if one.costs is None else one.costs.weights_bytes
