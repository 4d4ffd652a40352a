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
_NUMBERING, _STYLES = "word/numbering.xml", "word/styles.xml"
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
    body = _Word(_Lists(parts.pop(_NUMBERING, None), parts.pop(_STYLES, None)))
    text = body.read(parts.pop(_BODY))
    notes: dict[tuple[str, str], str] = {}
    for xml in parts.values():
        part = _Word(_Lists(None, None))
        part.read(xml)
        notes |= part.notes
    told = [f"[^{number}]: {notes.get(reference, '')}" for number, reference in enumerate(body.references, 1)]
    return "\n".join([text, *told])


def _word_parts(data: bytes) -> dict[str, bytes]:
    """The XML of a docx that holds text and the numbers of its lists, by name."""
    parts: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise UnreadableError("unknown", f"it is an archive of {len(entries):,} files, not a docx.")
            found = {entry.filename: entry for entry in entries if entry.filename in (*_TEXTS, _NUMBERING, _STYLES)}
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


class _Xml:
    """Reads a part of a docx: `_start` and `_end` get the names of Word's own elements, those of others do not come."""

    def __init__(self) -> None:
        self._depth = self._skipped = 0

    def _parse(self, xml: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = self._open, self._close, self._said
        parser.StartDoctypeDeclHandler = self._refuse  # with it go entities: none is ever declared, so none can grow or reach outside
        try:
            parser.Parse(xml, True)
        except expat.ExpatError:
            raise UnreadableError("damaged", "it is a damaged docx (its XML is not well-formed).") from None

    def _refuse(self, *_: object) -> None:
        raise UnreadableError("damaged", "it declares types of its own, which no docx does.")

    def _open(self, name: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_XML_DEPTH:
            raise UnreadableError("damaged", "its XML is nested too deep.")
        space, _, tag = name.rpartition(" ")
        # The same text once more, for older programs; and how a paragraph was before somebody changed it.
        if self._skipped or (space == _COMPATIBLE and tag == "Fallback") or tag == "pPrChange":
            self._skipped += 1
        elif space in (_WORD, _STRICT_WORD):
            self._start(tag, {name.rpartition(" ")[2]: value for name, value in attributes.items()})

    def _close(self, name: str) -> None:
        self._depth -= 1
        if self._skipped:
            self._skipped -= 1
            return
        space, _, tag = name.rpartition(" ")
        if space in (_WORD, _STRICT_WORD):
            self._end(tag)

    def _said(self, text: str) -> None:
        if not self._skipped:
            self._characters(text)

    def _start(self, tag: str, values: Mapping[str, str]) -> None: ...
    def _end(self, tag: str) -> None: ...
    def _characters(self, text: str) -> None: ...


class _Lists(_Xml):
    """The numbers that Word shows before the paragraphs of lists, which stand nowhere in their text.

    A paragraph, or its style, names a list (`num`); that has the levels of an abstract one, which lists share and go on counting in, and perhaps
    numbers of its own from which they start.
    """

    def __init__(self, numbering: bytes | None, styles: bytes | None) -> None:
        super().__init__()
        self._levels: dict[tuple[str, int], dict[str, str]] = {}
        """Format, text and start of a level of an abstract list."""
        self._abstract: dict[str, str] = {}
        self._starts: dict[tuple[str, int], int] = {}
        self._styles: dict[str, dict[str, str]] = {}
        """List, level and basis of a style."""
        self._counts: dict[str, list[int]] = {}
        self._begun: set[tuple[str, int]] = set()
        self._inside: dict[str, str] = {}
        for xml in (numbering, styles):
            if xml is not None:
                self._parse(xml)

    def _start(self, tag: str, values: Mapping[str, str]) -> None:
        inside, value = self._inside, values.get("val", "")
        if tag in ("abstractNum", "num", "style"):
            self._inside = {tag: values.get({"style": "styleId"}.get(tag, f"{tag}Id"), "")}
        elif tag in ("lvl", "lvlOverride"):
            inside["level"] = values.get("ilvl", "")
        elif tag in ("numFmt", "lvlText", "start") and "abstractNum" in inside:
            self._levels.setdefault((inside["abstractNum"], _number(inside.get("level"))), {})[tag] = value
        elif tag == "abstractNumId" and "num" in inside:
            self._abstract[inside["num"]] = value
        elif tag == "startOverride" and "num" in inside:
            self._starts[inside["num"], _number(inside.get("level"))] = _number(value)
        elif tag in ("basedOn", "numId", "ilvl") and "style" in inside:
            self._styles.setdefault(inside["style"], {})[tag] = value

    def label(self, style: str, own: Mapping[str, str]) -> str:
        """What stands before the next paragraph of this style, whose own list and level come first; "" for one of no list."""
        found: dict[str, str] = dict(own)
        for _ in range(16):  # a basis has a basis
            more = self._styles.get(style, {})
            found = {**{name: more[name] for name in ("numId", "ilvl") if name in more}, **found}
            style = more.get("basedOn", "")
        if found.get("numId", "0") not in self._abstract:
            return ""
        return self._next(found["numId"], min(_number(found.get("ilvl")), 8))

    def _next(self, list: str, level: int) -> str:
        abstract = self._abstract[list]
        counts = self._counts.setdefault(abstract, [0] * 9)
        shapes = [self._levels.get((abstract, each), {}) for each in range(9)]
        if (list, level) in self._starts and (list, level) not in self._begun:
            counts[level] = self._starts[list, level]
        else:
            counts[level] = counts[level] + 1 if counts[level] else _number(shapes[level].get("start", "1"))
        self._begun.add((list, level))
        counts[level + 1 :] = [0] * (8 - level)
        indent = "  " * level
        if shapes[level].get("numFmt") == "bullet":
            return f"{indent}- "

        def shown(found: re.Match[str]) -> str:
            each = int(found[1]) - 1
            return _counted(counts[each] or _number(shapes[each].get("start", "1")), shapes[each].get("numFmt", "decimal"))

        text = re.sub("%([1-9])", shown, shapes[level].get("lvlText", ""))
        return f"{indent}{text} " if text else ""


def _number(text: str | None) -> int:
    return int(text) if text is not None and re.fullmatch("[0-9]{1,6}", text) else 0


def _counted(number: int, form: str) -> str:
    """As the names of Word's formats say it; in figures where a number is too large for them, or the format is none of these."""
    if form in ("upperLetter", "lowerLetter") and 0 < number <= 780:  # a ... z, aa, bb ...
        letters = chr(ord("a") + (number - 1) % 26) * (1 + (number - 1) // 26)
        return letters.upper() if form == "upperLetter" else letters
    if form in ("upperRoman", "lowerRoman") and 0 < number < 4000:
        letters = ""
        for value, sign in _ROMAN:
            letters += sign * (number // value)
            number %= value
        return letters.upper() if form == "upperRoman" else letters
    if form in ("chineseCounting", "chineseCountingThousand", "taiwaneseCounting", "japaneseCounting") and 0 < number < 100:
        tens, ones = divmod(number, 10)
        return (_CHINESE[tens] if tens > 1 else "") + ("十" if tens else "") + (_CHINESE[ones] if ones else "")
    return f"{number:02}" if form == "decimalZero" else "" if form == "none" else str(number)


_ROMAN = (
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"),
    (1, "i"),
)  # fmt: skip
_CHINESE = "〇一二三四五六七八九"


class _Word(_Xml):
    """Text of a document's XML: paragraphs are lines, with their numbers where they are of a list; cells of a table stand between tabs."""

    def __init__(self, lists: _Lists) -> None:
        super().__init__()
        self._lists = lists
        self._style = ""
        self._numbered: dict[str, str] = {}
        """The list and the level of a paragraph, where it says them itself."""
        self.references: list[tuple[str, str]] = []
        """The notes that the text points to, in its order: footnote or endnote, and its id."""
        self.notes: dict[tuple[str, str], str] = {}
        """Of a part that holds notes: the text of each."""
        self._pieces: list[str] = []
        self._note: tuple[str, str] = ("", "")
        self._begun = 0
        self._cells = 0
        self._in_text = False

    def read(self, xml: bytes) -> str:
        self._parse(xml)
        return self._joined()

    def _joined(self, start: int = 0) -> str:
        return re.sub(" *\t", "\t", re.sub("\n{3,}", "\n\n", "".join(self._pieces[start:])))

    def _start(self, tag: str, values: Mapping[str, str]) -> None:
        self._in_text = tag == "t"
        self._cells += tag == "tc"
        if tag in ("tab", "br", "cr"):
            self._pieces.append("\t" if tag == "tab" else "\n")
        elif tag == "pPr":
            self._style, self._numbered = "", {}
        elif tag == "pStyle":
            self._style = values.get("val", "")
        elif tag in ("numId", "ilvl"):
            self._numbered[tag] = values.get("val", "")
        elif tag in ("footnoteReference", "endnoteReference"):
            self.references.append((tag.removesuffix("Reference"), values.get("id", "")))
            self._pieces.append(f"[^{len(self.references)}]")
        elif tag in ("footnote", "endnote"):
            self._note, self._begun = (tag, values.get("id", "")), len(self._pieces)

    def _end(self, tag: str) -> None:
        self._in_text = False
        self._cells -= tag == "tc"
        if tag == "pPr":
            self._pieces.append(self._lists.label(self._style, self._numbered))
        if tag in ("footnote", "endnote"):
            self.notes[self._note] = " ".join(self._joined(self._begun).split())
        ending = {"p": " " if self._cells else "\n", "tc": "\t", "tr": "\n"}.get(tag)
        if ending is not None:
            self._pieces.append(ending)

    def _characters(self, text: str) -> None:
        if self._in_text:
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
