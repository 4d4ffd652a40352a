"""Files become text, in a process that a hostile one cannot use."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pypdf
import pytest

from qwenbox.documents import Document, read_document, reader
from qwenbox.errors import EngineError, RequestError
from tests.documents.files import archive, assemble, docx, note, paragraph, pdf

LINES = "\n".join(f"Line {number} of a page, as long as lines are." for number in range(40))
CHINESE = "你好，世界。这是一个测试。\n第二行"


CODES = [f"file_{code}" for code in ("empty", "locked", "damaged", "pictures", "long", "hard", "unknown")]


def refused(name: str, data: bytes, code: str | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        read_document(name, data)
    assert caught.value.param == "file" and caught.value.message.startswith(name)
    assert caught.value.error_code == f"file_{code}" if code else caught.value.error_code in CODES
    return caught.value.message


def test_a_pdf_of_three_hundred_pages_is_read_whole():
    text = read_document("book.pdf", pdf([f"Page {number}\n{LINES}" for number in range(300)])).text
    assert [f"Page {number}\n" in text for number in range(300)] == [True] * 300
    assert text.count("Line 39 of a page") == 300


def test_radicals_and_ligatures_of_a_pdf_become_the_characters_that_people_read():
    printed = pdf(["AB  CD E"], meaning={"A": "⾃", "B": "⼰", "C": "ﬁ", "D": "le", "E": "自己"})
    assert read_document("a.pdf", printed).text == "自己 file 自己"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030"])
def test_text_is_read_in_the_encodings_that_people_have(encoding):
    assert read_document("notes.md", CHINESE.encode(encoding)) == Document("notes.md", "text", CHINESE)


def test_western_text_and_text_without_a_mark_of_its_encoding_are_read():
    assert read_document("a.txt", "Café olé, naïve, Straße\r\nend".encode("cp1252")).text == "Café olé, naïve, Straße\nend"
    for encoding in ("utf-16-le", "utf-16-be"):
        assert read_document("a.txt", "Plain letters".encode(encoding)).text == "Plain letters"


def test_a_docx_gives_its_paragraphs_and_tables_once():
    compatible = "http://schemas.openxmlformats.org/markup-compatibility/2006"
    cells = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("a", "b"))
    twice = f"<mc:Choice>{paragraph('in a box')}</mc:Choice><mc:Fallback>{paragraph('in a box')}</mc:Fallback>"
    body = (
        f"{paragraph('First &amp; best')}<w:p><w:r><w:t>one</w:t><w:tab/><w:t>two</w:t><w:br/><w:t>three</w:t></w:r></w:p>"
        f"<w:p><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p><w:tbl><w:tr>{cells}</w:tr><w:tr>{cells}</w:tr></w:tbl>"
        f'<mc:AlternateContent xmlns:mc="{compatible}">{twice}</mc:AlternateContent>{paragraph("你好")}'
    )
    assert read_document("a.docx", docx(body)).text == "First & best\none\ttwo\nthree\n\na\tb\na\tb\nin a box\n你好"


def test_the_notes_of_a_docx_stand_behind_its_text_where_the_text_points_to_them():
    def marked(text: str, kind: str, id: int) -> str:
        return f'<w:p><w:r><w:t>{text}</w:t></w:r><w:r><w:{kind}Reference w:id="{id}"/></w:r></w:p>'

    separator = note("footnote", -1, "never shown", 'w:type="separator"')
    notes = {
        "footnotes": separator + note("footnote", 2, "the first") + note("footnote", 7, "第二个") + note("footnote", 9, "points nowhere"),
        "endnotes": note("endnote", 2, "at the end"),
    }
    data = docx(marked("One", "footnote", 2) + marked("two", "endnote", 2) + marked("three", "footnote", 7), notes=notes)
    assert read_document("a.docx", data).text == "One[^1]\ntwo[^2]\nthree[^3]\n\n[^1]: the first\n[^2]: at the end\n[^3]: 第二个"


def listed(text: str, list: int | None = None, level: int | None = None, style: str = "") -> str:
    own = (f'<w:ilvl w:val="{level}"/>' if level is not None else "") + (f'<w:numId w:val="{list}"/>' if list is not None else "")
    return f'<w:p><w:pPr><w:pStyle w:val="{style}"/><w:numPr>{own}</w:numPr></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'


def test_the_lists_of_a_docx_are_numbered_as_word_shows_them():
    def level(number: int, form: str, text: str, start: int = 1) -> str:
        return f'<w:lvl w:ilvl="{number}"><w:start w:val="{start}"/><w:numFmt w:val="{form}"/><w:lvlText w:val="{text}"/></w:lvl>'

    numbering = (
        f'<w:abstractNum w:abstractNumId="7">{level(0, "decimal", "%1.")}{level(1, "lowerLetter", "%1.%2)")}</w:abstractNum>'
        f'<w:abstractNum w:abstractNumId="8">{level(0, "bullet", "")}{level(1, "bullet", "o")}</w:abstractNum>'
        f'<w:abstractNum w:abstractNumId="9">{level(0, "chineseCounting", "第%1条", 9)}{level(1, "upperRoman", "%2", 3)}</w:abstractNum>'
        '<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num><w:num w:numId="2"><w:abstractNumId w:val="8"/></w:num>'
        '<w:num w:numId="3"><w:abstractNumId w:val="9"/></w:num><w:num w:numId="4"><w:abstractNumId w:val="7"/>'
        '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="5"/></w:lvlOverride></w:num>'
    )
    styles = (
        '<w:style w:styleId="Clause"><w:pPr><w:numPr><w:numId w:val="3"/></w:numPr></w:pPr></w:style>'
        '<w:style w:styleId="Deep"><w:basedOn w:val="Clause"/><w:pPr><w:numPr><w:ilvl w:val="1"/></w:numPr></w:pPr></w:style>'
        '<w:style w:styleId="Round"><w:basedOn w:val="Round"/></w:style>'
    )
    changed = (
        '<w:p><w:pPr><w:pPrChange><w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr></w:pPrChange></w:pPr><w:r><w:t>no more</w:t></w:r></w:p>'
    )
    body = (
        *(listed("one", 1, 0), listed("a", 1, 1), listed("b", 1, 1), paragraph("between"), listed("two", 1, 0), listed("a again", 1, 1)),
        *(listed("dot", 2, 0), listed("circle", 2, 1), changed, listed("afresh", 4, 0), listed("goes on", 1, 0), listed("none", 0)),
        *(listed("甲", style="Clause"), listed("乙", style="Deep"), listed("丙", style="Clause"), listed("x", style="Round"), listed("y", 99, 3)),
    )
    shown = [
        *(
            "1. one",
            "  1.a) a",
            "  1.b) b",
            "between",
            "2. two",
            "  2.a) a again",
            "- dot",
            "  - circle",
            "no more",
            "5. afresh",
            "6. goes on",
            "none",
        ),
        *("第九条 甲", "  III 乙", "第十条 丙", "x", "y"),
    ]
    data = docx("".join(body), notes={"numbering": numbering, "styles": styles})
    assert read_document("a.docx", data).text.split("\n") == shown


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256-R5", "AES-256"])
def test_an_encrypted_pdf_is_read_where_it_opens_without_a_password(algorithm):
    def encrypted(password: str) -> bytes:
        writer, out = pypdf.PdfWriter(io.BytesIO(pdf(["Nobody may print this."]))), io.BytesIO()
        writer.encrypt(password, "of its owner", algorithm=algorithm)
        writer.write(out)
        return out.getvalue()

    assert read_document("a.pdf", encrypted("")).text == "Nobody may print this."
    assert "password" in refused("a.pdf", encrypted("of its readers"), "locked")


def test_what_a_file_is_its_bytes_say():
    assert read_document("letter.txt", pdf(["Hello there"])) == Document("letter.txt", "pdf", "Hello there")
    assert read_document("letter.pdf", b"Hello there").kind == "text"
    assert "neither text" in refused("photo.txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
    assert "no docx" in refused("sheet.docx", archive({"xl/workbook.xml": b"<x/>"}))
    assert "older Word" in refused("old.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))


@pytest.mark.parametrize(
    ("name", "shown"), [("../../etc/passwd", "passwd"), ("C:\\a\\b.txt", "b.txt"), ("a\x00\u202etxt.md\n", "atxt.md"), ("", "file")]
)
def test_a_name_is_only_shown(name, shown):
    assert read_document(name, b"text").name == shown


def test_empty_and_protected_files_say_what_they_are():
    for data in (b"", b" \n\n", b"\x00" * 50):
        assert "empty" in refused("a.txt", data, "empty")
    assert "pictures" in refused("scan.pdf", pdf([""]), "pictures")
    locked = f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O ({'x' * 32}) /U ({'y' * 32}) >> /ID [(a) (a)]"
    assert "password" in refused("locked.pdf", pdf(["secret"], trailer=locked), "locked")


ENTITIES = "".join(f'<!ENTITY {chr(98 + depth)} "{f"&{chr(97 + depth)};" * 10}">' for depth in range(9))
BOMBS = {
    "zip.docx": lambda: docx(paragraph("a" * 100_000_000)),
    "notes.docx": lambda: docx(paragraph("a" * 30_000_000), notes={"footnotes": note("footnote", 1, "a" * 40_000_000)}),
    "entities.docx": lambda: docx(paragraph("&j;"), head=f'<!DOCTYPE z [<!ENTITY a "aaaaaaaaaa">{ENTITIES}]>'),
    "outside.docx": lambda: docx(paragraph("&x;"), head='<!DOCTYPE z [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
    "deep.docx": lambda: docx("<w:p>" * 100_000 + "</w:p>" * 100_000),
    "slip.docx": lambda: docx(paragraph("x"), name="../../word/document.xml"),
    "files.docx": lambda: archive({f"{number}": b"" for number in range(5000)}),
    "damaged.docx": lambda: docx(paragraph("x"))[:-60],
    "stream.pdf": lambda: pdf(["x"], stream=b" " * 100_000_000),
    "pages.pdf": lambda: pdf(["x"] * 6000),
    "circle.pdf": lambda: assemble([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 5 /Kids [2 0 R] >>"]),
    "reference.pdf": lambda: assemble([b"<< /Type /Catalog /Pages 2 0 R >>", b"2 0 R"]),
    "nested.pdf": lambda: assemble([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Kids " + b"[" * 200_000 + b" >>"]),
    "damaged.pdf": lambda: pdf(["x"])[:300],
    "letters.txt": lambda: b"word " * 2_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_seconds_and_is_refused(name):
    data = BOMBS[name]()
    began = time.monotonic()
    assert refused(name, data)
    assert time.monotonic() - began < 60


def test_what_never_ends_is_ended(monkeypatch):
    monkeypatch.setattr(reader, "DEADLINE_SECONDS", 2.0)
    slow = pdf(["x"] * 2000, stream=b"BT /F1 11 Tf " + b"(a) Tj 0 -1 Td " * 20_000 + b" ET")
    assert "longer than 2 seconds" in refused("slow.pdf", slow)


def test_the_process_can_open_nothing_and_its_own_failure_is_ours(monkeypatch, tmp_path: Path):
    """Instead of the program one that tries, under the limits of the real one."""
    program = tmp_path / "extract.py"
    source = Path(reader.extract.__file__).read_text("utf-8")
    fails = source.replace("\nif __name__ ==", "\ndef extract(data):\n    raise TypeError\n\n\nif __name__ ==")
    program.write_text(fails, "utf-8")
    monkeypatch.setattr(reader.extract, "__file__", str(program))
    with pytest.raises(EngineError, match="failed"):
        read_document("a.txt", b"x")
    tries = """
def extract(data):
    import socket
    told = []
    for name, act in (
        ("file", lambda: open("/etc/passwd")), ("write", lambda: open("/tmp/x", "w")), ("socket", lambda: socket.socket()),
        ("pipe", lambda: os.pipe()), ("memory", lambda: bytearray(MEMORY_BYTES)),
    ):
        try:
            act()
            told.append(name)
        except (OSError, MemoryError):
            pass
    return "text", "could: " + ", ".join(told)
"""
    program.write_text(
        source.replace("\nif __name__ ==", f"{tries}\nif __name__ ==").replace("import io\n", "import io\nimport os\nimport socket\n"), "utf-8"
    )
    assert read_document("a.txt", b"x").text == "could: "
