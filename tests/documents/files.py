"""Files to read, made byte by byte: whole ones, and ones that nobody should send."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def pdf(pages: Sequence[str], *, stream: bytes | None = None, trailer: str = "", meaning: dict[str, str] | None = None) -> bytes:
    """A page a text, in Helvetica. `stream` is, deflated, what every page holds instead; `trailer` is added to the last object.

    `meaning`: what letters of the font stand for.
    """
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica %b >>" % (b"/ToUnicode 4 0 R" if meaning else b"")
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", font]
    if meaning:
        pairs = "".join(f"<{ord(letter):02x}> <{text.encode('utf-16-be').hex()}>\n" for letter, text in meaning.items())
        spaces = "1 begincodespacerange <00> <ff> endcodespacerange"
        cmap = f"begincmap {spaces}\n{len(meaning)} beginbfchar\n{pairs}endbfchar endcmap".encode()
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(cmap), cmap))
    kids, shared = [], zlib.compress(stream or b"")
    for text in pages:
        lines = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)").splitlines()
        shown = "".join(f"({line}) Tj 0 -14 Td " for line in lines)
        content = zlib.compress(f"BT /F1 11 Tf 50 780 Td {shown}ET".encode("latin-1")) if stream is None else shared
        objects.append(b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(content), content))
        box = "/MediaBox [0 0 595 842] /Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R {box} /Contents {len(objects)} 0 R >>".encode())
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(kids)}] >>".encode()
    return assemble(objects, trailer)


def assemble(objects: Sequence[bytes], trailer: str = "") -> bytes:
    """A PDF of these objects; the first is its root."""
    out, places = io.BytesIO(), []
    out.write(b"%PDF-1.7\n")
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%b\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode())
    return out.getvalue()


def paragraph(text: str) -> str:
    return f'<w:p><w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def docx(body: str, *, head: str = "", name: str = "word/document.xml", notes: dict[str, str] | None = None) -> bytes:
    """A document of Word with this XML as its body. `notes`: the XML of its footnotes, endnotes, numbering and styles, by these names."""
    xml = f'<?xml version="1.0" encoding="UTF-8"?>{head}<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'
    more = {f"word/{kind}.xml": f'<w:{kind} xmlns:w="{WORD}">{text}</w:{kind}>'.encode() for kind, text in (notes or {}).items()}
    return archive({"[Content_Types].xml": b"<Types/>", name: xml.encode(), **more})


def note(kind: str, id: int, text: str, more: str = "") -> str:
    """A footnote or an endnote, as its part of the document holds it."""
    return f'<w:{kind} w:id="{id}" {more}><w:p><w:r><w:{kind}Ref/></w:r><w:r><w:t xml:space="preserve"> {text}</w:t></w:r></w:p></w:{kind}>'


def archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in files.items():
            zipped.writestr(name, data)
    return out.getvalue()
