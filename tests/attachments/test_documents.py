"""Documents and web pages of a prompt: what they are converted to, and what is refused, in one line."""

import gzip
import os
from collections.abc import Iterator
from contextlib import suppress
from html import escape
from pathlib import Path
from random import Random
from threading import Event
from typing import ClassVar

import pytest
from command_line import PYTHON
from documents import ENCRYPTED, pdf, write_docx, write_epub
from loopback import Loopback, LoopbackHandler

from cerebrum_cli.attachments import prompt_sources, web_page
from cerebrum_cli.attachments.prompt_sources import compose_prompt, read_files
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent

pytestmark = pytest.mark.slow

HTML = b"<html><head><title>T</title></head><body><h1>Fruit</h1><p>A <b>pear</b>.</p></body></html>"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name == "HF_HUB_OFFLINE"]:
        monkeypatch.delenv(name)
    return tmp_path


def read(source: Path | str) -> str:
    """The text of a source; a notice states its size."""
    notices: list[str] = []
    [(name, text)] = read_files([source], lambda notice: notices.append(notice.message))
    assert isinstance(text, str)
    assert name == str(source)
    assert notices == [f"{source}: about {max(1, len(text.encode()) // 4):,} tokens"]
    return text


def refusal(source: Path | str) -> str:
    with pytest.raises(UsageError) as raised:
        read(source)
    assert raised.value.hint
    assert "\n" not in raised.value.message
    return raised.value.message


def test_document_is_converted_to_text(folder: Path) -> None:
    import openpyxl
    from pptx import Presentation

    Path("a.PDF").write_bytes(pdf("A pear."))
    assert read(Path("a.PDF")).strip() == "A pear."
    assert read(write_docx(Path("a.docx"), "A pear.")) == "A pear.\n"
    book = openpyxl.Workbook()
    book.active.append(["fruit", "count"])
    book.active.append(["pear", 3])
    book.save("a.xlsx")
    assert "| pear | 3 |" in read(Path("a.xlsx"))
    slides = Presentation()
    slides.slides.add_slide(slides.slide_layouts[5]).shapes.title.text = "A pear."
    slides.save("a.pptx")
    assert "# A pear." in read(Path("a.pptx"))
    Path("a.html").write_bytes(HTML)
    assert read(Path("a.html")) == "# Fruit\n\nA **pear**.\n"
    Path("a.htm").write_bytes('<meta charset="koi8-r"><p>Груша</p>'.encode("koi8-r"))
    assert read(Path("a.htm")) == "Груша\n"
    write_epub(Path("a.epub"), "A pear.")
    assert "A pear." in read(Path("a.epub"))


def test_document_is_a_block_without_a_language() -> None:
    assert compose_prompt("Why?", [("a.pdf", "A pear."), ("http://a.com", "So.")], None) == (
        "a.pdf:\n```\nA pear.\n```\n\nhttp://a.com:\n```\nSo.\n```\n\nWhy?"
    )


def test_document_that_cannot_be_read_is_one_clear_line() -> None:
    for name, content in {
        "truncated.pdf": pdf("A pear.")[:100],
        "encrypted.pdf": pdf("A pear.", ENCRYPTED),
        "scanned.pdf": pdf(""),
        "old.docx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000),
    }.items():
        Path(name).write_bytes(content)
    assert (
        refusal(Path("truncated.pdf"))
        == "truncated.pdf cannot be converted: PdfConverter threw PSEOF with message: Unexpected EOF"
    )
    assert refusal(Path("encrypted.pdf")).endswith(
        " cannot be converted: PdfConverter threw PDFPasswordIncorrect with message"
    )
    assert refusal(Path("scanned.pdf")) == "scanned.pdf: no text found"
    assert refusal(Path("old.docx")).endswith(" BadZipFile with message: File is not a zip file")
    assert refusal(Path("none.pdf")) == "none.pdf: No such file or directory"


# Texts as the author wrote them, in which nothing is escaped.

EXACT = [
    "Annual_Report_2024.md has 5*6*7 = 210 and 1. no list",
    r"C:\_new\*.txt, \\server\share, \alpha_1 \times \frac{a}{b}, ^\d+\.\*$ and \_ or \*",
    "# no heading, - no item, + 1, > 2, [1](2), ![x], `code`, ~~x~~, <b>, &amp; and a|b",
]


def docx_of(paragraphs: list[str]) -> str:
    """The text of a Word document with these paragraphs."""
    between = '</w:t></w:r></w:p><w:p><w:r><w:t xml:space="preserve">'
    return read(write_docx(Path("exact.docx"), between.join(map(escape, paragraphs))))


def html_of(paragraphs: list[str]) -> str:
    Path("exact.html").write_text("".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs))
    return read(Path("exact.html"))


def test_document_has_no_backslashes_that_its_author_did_not_write(folder: Path) -> None:
    import openpyxl
    from pptx import Presentation
    from pptx.util import Inches

    assert docx_of(EXACT) == html_of(EXACT) == "\n\n".join(EXACT) + "\n"
    Path("a.html").write_text(
        "<pre>C:\\_new * \\[1\\]\n\\#</pre><p>a <code>x_1 \\* y</code></p><ul><li>my_file</li></ul>"
    )
    assert read(Path("a.html")) == "```\nC:\\_new * \\[1\\]\n\\#\n```\n\na `x_1 \\* y`\n\n* my_file\n"
    slides = Presentation()
    slide = slides.slides.add_slide(slides.slide_layouts[5])
    slide.shapes.title.text = "my_title *"
    slide.shapes.add_table(1, 1, 0, 0, Inches(4), Inches(1)).table.cell(0, 0).text = EXACT[0]
    slides.save("a.pptx")
    text = read(Path("a.pptx"))
    assert "# my_title *" in text
    assert EXACT[0] in text
    book = openpyxl.Workbook()
    book.active.append(["file_name", "b", "c"])
    book.active.append([EXACT[1], "b", 1_234_567.891])
    book.active.append([3.14159265358979, "c", 7])
    book.save("a.xlsx")
    assert f"| {EXACT[1]} | b | 1234567.891 |\n| 3.14159265358979 | c | 7 |" in read(Path("a.xlsx"))


MARKUP = r"_*#\[]()<>{}|`~^$&%@!?+-=:;,./'" + '"'


def test_random_words_of_a_document_are_unchanged() -> None:
    rng = Random(1)
    words = ["".join(rng.choices(MARKUP + "ab1é中", k=rng.randint(1, 12))) for _ in range(1000)]
    paragraphs = [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(300)]
    assert docx_of(paragraphs) == html_of(paragraphs) == "\n\n".join(paragraphs) + "\n"


def test_document_of_another_kind_than_its_name() -> None:
    Path("a.pdf").write_bytes(HTML)
    assert read(Path("a.pdf")) == "# Fruit\n\nA **pear**.\n"
    write_docx(Path("b.pdf"), "A pear.")
    assert read(Path("b.pdf")) == "A pear.\n"


def test_document_that_unpacks_to_gigabytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_sources, "MEMORY_BYTES", 1_000_000_000)  # 4 GiB take long to fill
    write_docx(folder / "bomb.docx", "A pear.", padding=1000)
    assert "bomb.docx cannot be converted: DocxConverter threw MemoryError" in refusal(Path("bomb.docx"))


def test_document_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("slow.py").write_text("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)")
    monkeypatch.setattr(prompt_sources, "PROGRAM", Path("slow.py").absolute())
    monkeypatch.setattr(prompt_sources, "TIMEOUT_S", 0.5)
    Path("a.pdf").write_bytes(pdf("A pear."))
    assert refusal(Path("a.pdf")) == "a.pdf: not converted within 0.5 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)


def test_document_without_markitdown_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    Path("a.pdf").write_bytes(pdf("A pear."))
    with pytest.raises(UsageError, match="documents need markitdown") as raised:
        read(Path("a.pdf"))
    assert raised.value.hint == f'{PYTHON} -m pip install "cerebrum-cli[documents]"'
    assert refusal(Path("*.pdf")) == "*.pdf: documents need markitdown"


def test_documents_of_a_pattern_are_read_and_those_of_a_directory_are_not(folder: Path) -> None:
    Path("in").mkdir()
    Path("in/a.pdf").write_bytes(pdf("A pear.") + b"\xff")
    Path("in/b.txt").write_text("b")
    files = read_files([Path("in/*.pdf")], lambda _: None)
    assert [(name, str(text).strip()) for name, text in files] == [("in/a.pdf", "A pear.")]
    notices: list[str] = []
    assert read_files([Path("in")], lambda notice: notices.append(notice.message)) == [("in/b.txt", "b")]
    assert notices == ["1 file skipped: in/a.pdf (binary)"]


def test_documents_of_a_pattern_that_cannot_be_read_are_skipped_with_a_notice() -> None:
    for name, content in {"a.pdf": pdf("A pear."), "b scan.pdf": pdf(""), "c.pdf": pdf("A plum.", ENCRYPTED)}.items():
        Path(name).write_bytes(content)
    notices: list[NoticeEvent] = []
    files = read_files([Path("*.pdf")], notices.append)
    assert [(name, str(text).strip()) for name, text in files] == [("a.pdf", "A pear.")]
    assert [notice.message for notice in notices] == [
        "a.pdf: about 2 tokens",
        "2 files skipped: b scan.pdf (no text found), c.pdf (cannot be converted: PdfConverter threw "
        "PDFPasswordIncorrect with message)",
    ]
    assert refusal(Path("b*.pdf")) == "b*.pdf: no text files found: b scan.pdf (no text found)"


# Web pages.


class Site(LoopbackHandler):
    """Pages by their paths; the headers of each request are recorded."""

    seen: ClassVar[list[dict[str, str]]] = []
    released = Event()
    pages: ClassVar[dict[str, tuple[str, bytes]]] = {}  # of a test: media types and contents
    encodings: ClassVar[dict[str, str]] = {}
    redirects: ClassVar[dict[str, str]] = {"loop": "/loop", "file": "file:///etc/passwd"}

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        name = self.path.strip("/").partition("?")[0]
        if target := self.redirects.get(name):
            self.write_head(302, [("Location", target), ("Set-Cookie", "id=1"), ("Content-Length", "0")])
        elif name.startswith("redirect"):
            self.write_head(301, [("Location", "/page//a"), ("Set-Cookie", "id=1"), ("Content-Length", "0")])
        elif name == "missing":
            self.write_head(404, [("Content-Length", "0")])
        elif name in ("endless", "moved"):
            moved = [("Location", "/page//a")] if name == "moved" else []
            self.write_head(302 if moved else 200, [*moved, ("Content-Type", "text/plain"), ("Connection", "close")])
            with suppress(OSError):
                while True:
                    self.wfile.write(b"A pear.\n" * 100_000)
        elif name in ("slow", "slow-head"):
            if name == "slow":
                self.write_head(200, [("Content-Type", "text/plain"), ("Connection", "close")])
            with suppress(OSError):
                while not self.released.wait(0.02):
                    self.wfile.write(b"X")
        else:
            self.send_page(name)

    def send_page(self, name: str) -> None:
        media_type, content = {
            "page/": ("text/html; charset=utf-8", HTML),
            "page//a": ("text/html; charset=utf-8", HTML),
            "code.py": ("text/plain", b"print(1)\n"),
            "data": ("application/ld+json", b"{}"),
            "a.pdf": ("application/octet-stream", pdf("A pear.")),
            "c": ("application/pdf", HTML),
            "notes.md": ("application/octet-stream", b"# A pear"),
            "image": ("image/png", b"\x89PNG"),
            "program": ("application/octet-stream", b"\x7fELF\xff"),
            **self.pages,
        }[name]
        headers = [("Content-Type", media_type), ("Content-Length", str(len(content)))]
        if name in self.encodings:
            headers.append(("Content-Encoding", self.encodings[name]))
        self.write_head(200, headers)
        self.wfile.write(content)


@pytest.fixture
def site() -> Iterator[str]:
    Site.seen, Site.released, Site.pages, Site.encodings = [], Event(), {}, {}
    server = Loopback(Site)
    server.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Site.released.set()
    server.stop()
    assert server.bugs == []


def test_web_page_is_converted_to_text(site: str) -> None:
    assert read(f"{site}/page//a") == "# Fruit\n\nA **pear**.\n"
    assert read(f"{site}/a.pdf").strip() == "A pear."
    assert read(f"{site}/c") == "# Fruit\n\nA **pear**.\n"


def test_web_page_of_text_stays_as_it_is(site: str) -> None:
    assert read(f"{site}/code.py") == "print(1)\n"
    assert read(f"{site}/data") == "{}"
    assert read(f"{site}/notes.md?raw=1") == "# A pear"
    Site.pages = {"a.svg": ("image/svg+xml", b"<svg/>")}
    assert read(f"{site}/a.svg") == "<svg/>"


def test_web_page_request_has_no_credentials(site: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(folder / ".netrc"))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert read(f"{site}/redirect") == "# Fruit\n\nA **pear**.\n"
    first, redirected = Site.seen
    assert first.keys() == {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert redirected.keys() == {*first, "cookie"}  # which the server has just set
    assert refusal("http://me:secret@127.0.0.1/") == "a web address contains a user name or password"


def test_web_page_that_cannot_be_read_is_one_line(site: str) -> None:
    assert refusal(f"{site}/missing") == f"{site}/missing: Client error '404 Not Found' for url '{site}/missing'"
    assert refusal(f"{site}/image") == f"{site}/image is not UTF-8 text (byte 0)"
    assert refusal(f"{site}/program") == f"{site}/program is not UTF-8 text (byte 4)"
    assert refusal(f"{site}/loop") == f"{site}/loop: Exceeded maximum allowed redirects."
    assert refusal(f"{site}/file") == f"{site}/file: Request URL has an unsupported protocol 'file://'."
    assert refusal("http://127.0.0.1:1/") == "http://127.0.0.1:1/: All connection attempts failed"
    assert refusal("http://").startswith("http://: Request URL is missing")
    assert refusal("http://[::1").startswith("http://[::1: Invalid")


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:99999/", "http://\xff.example/", "http://[::1", f"http://{'a' * 64}.example/"]
)
def test_redirect_to_an_invalid_address_is_one_line(target: str, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Site, "redirects", {"bad": target})
    assert refusal(f"{site}/bad").startswith(f"{site}/bad: ")


@pytest.mark.parametrize(
    ("proxy", "problem"),
    [
        ("gopher://127.0.0.1:1", "Unknown scheme for proxy URL URL('gopher://127.0.0.1:1')"),
        ("http://127.0.0.1:99999", "connect(): port must be 0-65535."),
    ],
)
def test_invalid_proxy_is_one_line(proxy: str, problem: str, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    assert refusal(f"{site}/page/") == f"{site}/page/: {problem}"


def test_web_page_is_read_in_the_charset_that_its_server_or_itself_states(site: str) -> None:
    def page(content_type: str, head: str, charset: str) -> str:
        Site.pages = {"page": (content_type, f"<html><head>{head}</head><p>Груша</p></html>".encode(charset))}
        return read(f"{site}/page")

    assert page("text/html; charset=windows-1251", "", "cp1251") == "Груша\n"
    assert page("text/html", '<meta charset="windows-1251">', "cp1251") == "Груша\n"
    assert page("text/html", "", "utf-8") == "Груша\n"
    Site.pages = {"text": ("text/plain; charset=iso-8859-15", "süß: 5 €".encode("iso8859-15"))}
    assert read(f"{site}/text") == "süß: 5 €"
    Site.pages = {"text": ("text/plain", "süß".encode("cp1252"))}
    assert refusal(f"{site}/text") == f"{site}/text is not UTF-8 text (byte 1)"


def test_web_page_that_is_compressed_has_the_same_limit(site: str) -> None:
    Site.encodings = {"text": "gzip"}
    Site.pages = {"text": ("text/plain", gzip.compress(b"A pear." * 1000))}
    assert read(f"{site}/text") == "A pear." * 1000
    Site.pages = {"text": ("text/plain", gzip.compress(bytes(50_000_001), compresslevel=1))}
    assert refusal(f"{site}/text") == f"{site}/text is larger than 50 MB"
    Site.pages = {"text": ("text/plain", b"A pear.")}
    assert refusal(f"{site}/text").startswith(f"{site}/text: Error -3")


def test_web_page_has_limits_on_size_and_time(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(f"{site}/endless") == f"{site}/endless is larger than 50 MB"
    monkeypatch.setattr(web_page, "TIMEOUT_S", 0.3)
    assert refusal(f"{site}/slow") == f"{site}/slow: not complete within 0.3 s"
    assert refusal(f"{site}/slow-head") == f"{site}/slow-head: not complete within 0.3 s"


def test_web_page_is_not_requested_offline(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the network is disabled"):
        read_files([site], lambda _: None, offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refusal(site) == f"{site} cannot be read: the network is disabled"
    assert Site.seen == []
