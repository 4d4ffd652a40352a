"""`qwenbox verify MODEL`: whether a model is still what it was, or at least looks well."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenbox.errors import ModelFormatError, NumericalError

from .options import Isa, Json, Model, Threads
from .session import load_with_bar, note, progress_bar, resolve

if TYPE_CHECKING:
    from qwenbox.evaluate.fingerprint import Finding, Fingerprint
    from qwenbox.hub.verify import FileDigest
    from qwenbox.settings import Settings


def verify(
    model: Model,
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

    files = load_with_bar(lambda progress: prints.digests(path, progress), f"{model} from the disk")
    tell(_files(known, path, files, kept))
    if not quick:
        try:
            tell(_loaded(model, path, settings, known, files, kept if store else None))
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


def _files(known: Fingerprint | None, path: Path, files: dict[str, FileDigest], kept: Path) -> Iterable[Finding]:
    from qwenbox.evaluate.fingerprint import Finding, check_files
    from qwenbox.hub.verify import read_manifest

    manifest = read_manifest(path if path.is_dir() else path.parent)
    if known is not None:
        yield check_files(known.files, files, f"the fingerprint of {known.made[:10]}")
    elif manifest is not None:
        here = manifest.files if path.is_dir() else {name: digest for name, digest in manifest.files.items() if name == path.name}
        yield check_files(here, files, f"the download from {manifest.source}")
    else:
        yield Finding("files", None, f"{len(files)} read; there are no digests to compare them with")


def _loaded(
    model: str, path: Path, settings: Settings, known: Fingerprint | None, files: dict[str, FileDigest], keep: Path | None
) -> Iterable[Finding]:
    """What needs the model in memory. `keep`: where to store its fingerprint."""
    from qwenbox.evaluate import fingerprint as prints
    from qwenbox.llm import model_name, open_chat

    weights = settings.weights if known is None else known.weights
    chat = open_chat(path)
    try:
        with closing(load_with_bar(lambda progress: _open(path, settings, weights, progress), model_name(model))) as loaded, progress_bar() as bar:
            loaded.vocab_limit = min(loaded.vocab_size, chat.tokenizer.vocab_limit)
            line = bar.add_task("asking", total=1.0)

            def advance(part: float) -> None:
                bar.update(line, completed=part)

            if known is not None:
                yield from prints.check(known, loaded, chat, advance)
                return
            for one in prints.sanity(loaded, chat):
                # Who stores a fingerprint says that the model is well, even if it cannot write.
                yield one if keep is None or one.well is not False else one._replace(well=None)
            if keep is None:
                yield prints.Finding("fingerprint", None, "there is none; `qwenbox verify --store` keeps one of a model that is well")
                return
            prints.write(prints.take(loaded, chat, weights, files, advance), keep)
            yield prints.Finding("fingerprint", True, f"stored in {keep}")
    finally:
        chat.close()


def _open(path: Path, settings: Settings, weights: str | None, progress: Callable[[float], None]) -> Any:
    from qwenbox.evaluate.fingerprint import NUM_PAGES
    from qwenbox.model.load import load_model

    sizes: dict[str, Any] = {"threads": settings.threads, "isa": settings.isa, "num_pages": NUM_PAGES}
    return load_model(path, weights=weights, max_batch_tokens=settings.max_batch_tokens, progress=progress, **sizes)


def _way_out(model: str, path: Path) -> str:
    from qwenbox import hub

    if model in hub.CATALOGUE:
        return f"`qwenbox pull {model}` fetches it again if its files have changed."
    return f"Copy {path.name} again from where it came; if the change was wanted, `qwenbox verify {model} --store`."
