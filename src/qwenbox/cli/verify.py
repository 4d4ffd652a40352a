"""`qwenbox verify MODEL`: whether a model is still what it was, or at least looks well."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from qwenbox.errors import ModelFormatError, NumericalError, UsageError

from .options import Isa, Json, Threads
from .options import Model as ModelName
from .session import bar_of, load_with_bar, note, resolve

if TYPE_CHECKING:
    from qwenbox.chat.chat import ChatFormat
    from qwenbox.evaluate.fingerprint import Finding, Fingerprint
    from qwenbox.hub.manifest import FileDigest
    from qwenbox.model.load import Model
    from qwenbox.settings import Settings


def verify(
    model: ModelName,
    store: Annotated[bool, typer.Option("--store", help="Take the model as it is for well, and keep its fingerprint for later.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Only compare the files' digests; load nothing.")] = False,
    json: Json = False,
    threads: Threads = None,
    isa: Isa = None,
) -> None:
    """Find a damaged file, a foreign template, weights that are read wrongly.

    Compares the files with their digests, and what the model says to fixed prompts with its fingerprint; without one (see --store) it can only
    say whether the model looks well. Ends with 1 if something is wrong.
    """
    from qwenbox.evaluate import fingerprint as prints
    from qwenbox.settings import load_settings

    settings = load_settings({"threads": threads, "isa": isa})
    path = resolve(model, settings)
    kept = prints.place(path, settings.state_dir)
    known = prints.read(kept) if kept.is_file() and not store else None
    findings: list[Finding] = []

    def tell(found: Iterable[Finding]) -> None:
        for one in found:
            findings.append(one)
            if not json:
                typer.echo(f"{_SIGNS[one.well]} {one.name:21} {one.text}")

    missing = prints.missing_shards(path) if path.is_dir() else []
    files = {} if missing else read_digests(model, path)
    if missing:
        tell([prints.Finding("files", False, f"{', '.join(missing)} is missing, which the index names")])
    else:
        tell(_files(known, path, files))
    try:
        if store and all(one.well is not False for one in findings):
            with opened(model, path, settings, settings.forms) as loaded:
                write_fingerprint(loaded, files, kept)
            tell([prints.Finding("fingerprint", True, f"stored in {kept}")])
        elif not (quick or store):
            with opened(model, path, settings, settings.forms if known is None else known.forms) as loaded, bar_of("asking") as progress:
                tell(_asked(known, loaded, progress))
    except (ModelFormatError, NumericalError) as error:
        tell([prints.Finding("loading", False, error.message)])
    wrong = [one.name for one in findings if one.well is False]
    if json:
        told = [one._asdict() for one in findings]
        shown = str(kept) if kept.is_file() else None
        typer.echo(json_module.dumps({"model": model, "path": str(path), "fingerprint": shown, "well": not wrong, "findings": told}))
    elif wrong:
        note(f"{model} is not well: {', '.join(wrong)}. {_way_out(model, path)}")
    if wrong:
        raise typer.Exit(1)


_SIGNS = {True: "ok  ", False: "BAD ", None: "-   "}


def _files(known: Fingerprint | None, path: Path, files: dict[str, FileDigest]) -> Iterable[Finding]:
    from qwenbox.evaluate.fingerprint import Finding, check_files, is_read
    from qwenbox.hub.manifest import FileDigest, read_manifest
    from qwenbox.quantize.quantize import written_digests

    def concerned(digests: Mapping[str, FileDigest]) -> dict[str, FileDigest]:
        """Without those of files that nobody reads of a directory."""
        return {name: digest for name, digest in digests.items() if not path.is_dir() or is_read(name)}

    manifest = read_manifest(path if path.is_dir() else path.parent)
    if known is not None:
        whose = "the fingerprint that came with it" if known.made is None else f"the fingerprint of {known.made[:10]}"
        yield check_files(concerned(known.files), files, whose)
    elif manifest is not None:
        here = {name: digest for name, digest in manifest.files.items() if path.is_dir() or name == path.name}
        yield check_files(concerned(here), files, f"the download from {manifest.source}")
    elif written := written_digests(path):
        here = {name: FileDigest(files[name].size if name in files else 0, digest) for name, digest in written.items()}
        yield check_files(here, files, "quantize.json")
    else:
        yield Finding("files", None, f"{len(files)} read; there are no digests to compare them with")


def _asked(known: Fingerprint | None, loaded: Opened, progress: Callable[[float], None]) -> Iterable[Finding]:
    """What the model in memory says."""
    from qwenbox.evaluate import fingerprint as prints

    if known is not None:
        yield from prints.check(known, loaded.model, loaded.chat, progress)
        return
    yield from prints.sanity(loaded.model, loaded.chat)
    yield prints.Finding("fingerprint", None, "there is none; `qwenbox verify --store` keeps one of a model that is well")


class Opened(NamedTuple):
    """A model in memory, with pages for the prompts of a fingerprint, and the kinds that were asked for, as `Settings.forms`."""

    model: Model
    chat: ChatFormat
    forms: Mapping[str, Any]


@contextmanager
def opened(name: str, path: Path, settings: Settings, forms: Mapping[str, Any]) -> Iterator[Opened]:
    from qwenbox.evaluate.fingerprint import NUM_PAGES
    from qwenbox.llm import model_name, open_chat
    from qwenbox.model.load import load_model

    sizes: dict[str, Any] = {"threads": settings.threads, "isa": settings.isa, "max_batch_tokens": settings.max_batch_tokens}

    def load(progress: Callable[[float], None]) -> Model:
        return load_model(path, num_pages=NUM_PAGES, progress=progress, **forms, **sizes)

    with closing(open_chat(path)) as chat, closing(load_with_bar(load, model_name(name))) as model:
        model.vocab_limit = min(model.vocab_size, chat.tokenizer.vocab_limit)
        yield Opened(model, chat, forms)


def read_digests(name: str, path: Path) -> dict[str, FileDigest]:
    from qwenbox.evaluate.fingerprint import digests

    found: dict[str, FileDigest] = load_with_bar(lambda progress: digests(path, progress), f"{name} from the disk")
    return found


def write_fingerprint(loaded: Opened, files: Mapping[str, FileDigest], target: Path, *, dated: bool = True) -> None:
    """Takes the model for well. `files`: its digests. Raises ModelFormatError where what it says are no numbers."""
    from qwenbox.evaluate.fingerprint import take, write

    with bar_of("asking") as progress:
        taken = take(loaded.model, loaded.chat, files=files, progress=progress, dated=dated, **loaded.forms)
    try:
        write(taken, target)
    except OSError as error:
        raise UsageError(f"the fingerprint {target} cannot be written: {error.strerror}") from None


def _way_out(model: str, path: Path) -> str:
    from qwenbox import hub

    if model in hub.CATALOGUE:
        return f"`qwenbox pull {model}` fetches it again if its files have changed."
    return f"Copy {path.name} again from where it came; if the change was wanted, `qwenbox verify {model} --store`."
