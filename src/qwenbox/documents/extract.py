"""The program of the child process that reads one file: bytes on stdin, one JSON object on stdout, {kind, text} or {error, code}.

It knows no other part of the package but `confinement`, which takes everything from it before it looks at the first byte.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pkgutil
import re
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping
from xml.parsers import expat

MEMORY_BYTES = 768 * 1024 * 1024
CPU_SECONDS = 60
MAX_CHARACTERS = 8_000_000
MAX_PAGES = 5_000
MAX_ENTRIES = 4_096
"""Of an archive."""
MAX_XML_BYTES = 64 * 1024 * 1024
MAX_XML_DEPTH = 256
MAX_ODD_SHARE = 0.01
"""Of characters that no text has: with more of them a file is none."""

_ODD = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")
_LOOKALIKES = re.compile("[\u2e80-\u2fdf\ufb00-\ufb06]")
"""Radicals and ligatures, which programs that print write for the characters that look the same: no model knows such words."""
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_STRICT_WORD = "http://purl.oclc.org/ooxml/wordprocessingml/main"
_BODY = "word/document.xml"
_TEXTS = (_BODY, "word/footnotes.xml", "word/endnotes.xml")
_COMPATIBLE = "http://schemas.openxmlformats.org/markup-compatibility/2006"


class UnreadableError(Exception):
    """Why a file is not read, in a word for programs and as the end of a sentence that begins with its name."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def extract(data: bytes) -> tuple[str, str]:
    """Kind and text of a file. What it is its bytes say, not its name."""
    if not data.strip(b"\x00 \t\r\n"):
        raise UnreadableError("empty", "it is empty.")
    if b"%PDF-" in data[:1024]:
        kind, text = "pdf", _pdf(data)
    elif data.startswith(b"PK\x03\x04"):
        kind, text = "docx", _docx(data)
    elif data.startswith(b"\xd0\xcf\x11\xe0"):
        raise UnreadableError("locked", "it is a file of an older Word, or protected by a password; save it as docx without one.")
    else:
        kind, text = "text", _text(data)
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if kind != "text":
        text = re.sub("[ \t]+\n", "\n", text)
    if len(text) > MAX_CHARACTERS:
        raise UnreadableError("long", f"it has {len(text):,} characters; up to {MAX_CHARACTERS:,} are read.")
    return kind, text


# --- plain text ------------------------------------------------------------------------------------------------------


def _text(data: bytes) -> str:
    for encoding in _encodings(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if len(_ODD.findall(text)) <= MAX_ODD_SHARE * len(text):
            return text.removeprefix("\ufeff")
    raise UnreadableError("unknown", "it is neither text nor a pdf or docx.")


def _encodings(data: bytes) -> list[str]:
    """How a text may be written, the likeliest first."""
    if data.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return ["utf-32"]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ["utf-16"]
    head = data[:4096]
    zeros = [head[start::2].count(0) for start in (0, 1)]
    if max(zeros) > len(head) // 8:  # one half of each Latin letter
        return ["utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"]
    return ["utf-8", "gb18030", "cp1252"]


# --- pdf -------------------------------------------------------------------------------------------------------------


def _pdf(data: bytes) -> str:
    import pypdf
    from pypdf.errors import DependencyError

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableError("locked", "it is protected by a password; save it without one.")
        count = len(reader.pages)
        if count > MAX_PAGES:
            raise UnreadableError("long", f"it has {count:,} pages; up to {MAX_PAGES:,} are read.")
        pages, length = [], 0
        for page in reader.pages:
            pages.append(page.extract_text().strip())
            length += len(pages[-1])
            if length > MAX_CHARACTERS:
                raise UnreadableError("long", f"it has more than {MAX_CHARACTERS:,} characters.")
    except DependencyError:
        raise UnreadableError("locked", "it is encrypted in a way that is not read here; save it without encryption.") from None
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:  # whatever a library meets in the files of this world
        raise UnreadableError("damaged", f"it is a damaged pdf ({type(error).__name__}).") from None
    text = _LOOKALIKES.sub(lambda found: unicodedata.normalize("NFKC", found[0]), "\n\n".join(filter(None, pages)))
    text = re.sub(" {2,}", " ", text)
    if not text:
        raise UnreadableError("pictures", "its pages are pictures without text; a program that recognises text can add it.")
    return text


# --- docx ------------------------------------------------------------------------------------------------------------


def _docx(data: bytes) -> str:
    """The text, and behind it the notes at the foot of its pages and at its end, as Markdown marks them."""
    parts = _word_parts(data)
    body = _Word()
    text = body.read(parts.pop(_BODY))
    notes: dict[tuple[str, str], str] = {}
    for xml in parts.values():
        part = _Word()
        part.read(xml)
        notes |= part.notes
    told = [f"[^{number}]: {notes.get(reference, '')}" for number, reference in enumerate(body.references, 1)]
    return "\n".join([text, *told])


def _word_parts(data: bytes) -> dict[str, bytes]:
    """The XML of a docx that holds text, by name."""
    parts: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise UnreadableError("unknown", f"it is an archive of {len(entries):,} files, not a docx.")
            found = {entry.filename: entry for entry in entries if entry.filename in _TEXTS}
            if _BODY not in found:
                raise UnreadableError("unknown", "it is an archive, but no docx.")
            if any(entry.flag_bits & 1 for entry in found.values()):
                raise UnreadableError("locked", "it is protected by a password; save it without one.")
            left = MAX_XML_BYTES
            for name, entry in found.items():
                with archive.open(entry) as file:
                    parts[name] = file.read(left + 1)  # what the archive says of its size nobody has to believe
                if (left := left - len(parts[name])) < 0:
                    raise UnreadableError("long", f"its text takes more than {MAX_XML_BYTES:,} bytes unpacked.")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UnreadableError("damaged", f"it is a damaged docx ({type(error).__name__}).") from None
    return parts


class _Word:
    """Text of a document's XML: paragraphs are lines, cells of a table stand between tabs."""

    def __init__(self) -> None:
        self.references: list[tuple[str, str]] = []
        """The notes that the text points to, in its order: footnote or endnote, and its id."""
        self.notes: dict[tuple[str, str], str] = {}
        """Of a part that holds notes: the text of each."""
        self._pieces: list[str] = []
        self._note: tuple[str, str] = ("", "")
        self._begun = 0
        self._depth = self._skipped = self._cells = 0
        self._in_text = False

    def read(self, xml: bytes) -> str:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = self._start, self._end, self._characters
        parser.StartDoctypeDeclHandler = self._refuse  # with it go entities: none is ever declared, so none can grow or reach outside
        try:
            parser.Parse(xml, True)
        except expat.ExpatError:
            raise UnreadableError("damaged", "it is a damaged docx (its XML is not well-formed).") from None
        return self._joined()

    def _joined(self, start: int = 0) -> str:
        return re.sub(" *\t", "\t", re.sub("\n{3,}", "\n\n", "".join(self._pieces[start:])))

    def _refuse(self, *_: object) -> None:
        raise UnreadableError("damaged", "it declares types of its own, which no docx does.")

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_XML_DEPTH:
            raise UnreadableError("damaged", "its XML is nested too deep.")
        space, _, tag = name.rpartition(" ")
        if self._skipped or (space == _COMPATIBLE and tag == "Fallback"):  # the same text once more, for older programs
            self._skipped += 1
        elif space in (_WORD, _STRICT_WORD):
            self._in_text = tag == "t"
            self._cells += tag == "tc"
            if tag in ("tab", "br", "cr"):
                self._pieces.append("\t" if tag == "tab" else "\n")
            elif tag in ("footnoteReference", "endnoteReference"):
                self.references.append((tag.removesuffix("Reference"), attributes.get(f"{space} id", "")))
                self._pieces.append(f"[^{len(self.references)}]")
            elif tag in ("footnote", "endnote"):
                self._note, self._begun = (tag, attributes.get(f"{space} id", "")), len(self._pieces)

    def _end(self, name: str) -> None:
        self._depth -= 1
        if self._skipped:
            self._skipped -= 1
            return
        self._in_text = False
        space, _, tag = name.rpartition(" ")
        if space not in (_WORD, _STRICT_WORD):
            return
        self._cells -= tag == "tc"
        if tag in ("footnote", "endnote"):
            self.notes[self._note] = " ".join(self._joined(self._begun).split())
        ending = {"p": " " if self._cells else "\n", "tc": "\t", "tr": "\n"}.get(tag)
        if ending is not None:
            self._pieces.append(ending)

    def _characters(self, text: str) -> None:
        if self._in_text and not self._skipped:
            self._pieces.append(text)


# --- the process -----------------------------------------------------------------------------------------------------


def load_modules() -> None:
    """Loads what is otherwise loaded when a file asks for it, and lets the search for what is not installed end in memory."""
    for package in ("pypdf", "encodings"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for late in ("Crypto.Cipher._mode_ecb", "Crypto.Cipher._mode_cbc", "PIL", "fontTools", "brotli"):
        with contextlib.suppress(ImportError):
            importlib.import_module(late)


def main() -> None:
    from qwenbox.confinement import give_up

    load_modules()
    data = sys.stdin.buffer.read()
    give_up(memory_bytes=MEMORY_BYTES, cpu_seconds=CPU_SECONDS, strictly=False)
    try:
        kind, text = extract(data)
        answer = json.dumps({"kind": kind, "text": text.encode("utf-8", "replace").decode().replace("\x00", "")})
    except UnreadableError as error:
        answer = json.dumps({"error": str(error), "code": error.code})
    except MemoryError:
        answer = '{"error": "it takes too much memory to read.", "code": "hard"}'
    sys.stdout.write(answer)


if __name__ == "__main__":
    sys.path[:0] = sys.argv[1:]
    main()
