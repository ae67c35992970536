"""Documents and web pages of a prompt: what they are converted to, and what is refused, in one line."""

import gzip
import os
from collections.abc import Iterator
from contextlib import suppress
from html import escape
from pathlib import Path
from random import Random
from threading import Event
from typing import ClassVar, NamedTuple

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
SECRET, CUT = pdf("A plum.", ENCRYPTED), pdf("A pear.")[:100]
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000)  # as Word wrote before 2007


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


def test_document_is_a_block_without_a_language() -> None:
    assert compose_prompt("Why?", [("a.pdf", "A pear."), ("http://a.com", "So.")], None) == (
        "a.pdf:\n```\nA pear.\n```\n\nhttp://a.com:\n```\nSo.\n```\n\nWhy?"
    )


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("cut.pdf", CUT, " cannot be converted: PdfConverter threw PSEOF with message: Unexpected EOF"),
        ("key.pdf", SECRET, " cannot be converted: PdfConverter threw PDFPasswordIncorrect with message"),
        ("scanned.pdf", pdf(""), ": no text found"),
        ("old.docx", OLE, " cannot be converted: DocxConverter threw BadZipFile with message: File is not a zip file"),
        ("none.pdf", None, ": No such file or directory"),
    ],
)
def test_document_that_cannot_be_read_is_one_clear_line(name: str, content: bytes | None, problem: str) -> None:
    if content:
        Path(name).write_bytes(content)
    assert refusal(Path(name)) == name + problem


# Texts as the author wrote them, in which nothing is escaped.

EXACT = [
    "Annual_Report_2024.md has 5*6*7 = 210 and 1. no list",
    r"C:\_new\*.txt, \\server\share, \alpha_1 \times \frac{a}{b}, ^\d+\.\*$ and \_ or \*",
    "# no heading, - no item, + 1, > 2, [1](2), ![x], `code`, ~~x~~, <b>, &amp; and a|b",
]
MARKUP = r"_*#\[]()<>{}|`~^$&%@!?+-=:;,./'" + '"'


def test_document_is_converted_to_text_as_its_author_wrote_it(folder: Path) -> None:
    import openpyxl
    from pptx import Presentation
    from pptx.util import Inches

    Path("a.PDF").write_bytes(pdf("A_pear*."))
    assert read(Path("a.PDF")).strip() == "A_pear*."
    write_epub(Path("a.epub"), "A pear.")
    assert "A pear." in read(Path("a.epub"))
    Path("a.htm").write_bytes('<meta charset="koi8-r"><p>Груша</p>'.encode("koi8-r"))
    assert read(Path("a.htm")) == "Груша\n"
    Path("a.html").write_text(
        "<h1>Fruit</h1><p>A <b>pear</b>.</p><pre>C:\\_new * \\[1\\]\n\\#</pre><p>a <code>x_1 \\* y</code></p>"
        "<ul><li>my_file</li></ul>"
    )
    code = "```\nC:\\_new * \\[1\\]\n\\#\n```\n\na `x_1 \\* y`\n\n* my_file\n"
    assert read(Path("a.html")) == f"# Fruit\n\nA **pear**.\n\n{code}"
    slides = Presentation()
    slide = slides.slides.add_slide(slides.slide_layouts[5])
    slide.shapes.title.text = "my_title *"
    slide.shapes.add_table(1, 1, 0, 0, Inches(4), Inches(1)).table.cell(0, 0).text = EXACT[0]
    slides.save("a.pptx")
    text = read(Path("a.pptx"))
    assert "# my_title *" in text and EXACT[0] in text
    book = openpyxl.Workbook()
    for row in (["file_name", "b", "c"], [EXACT[1], "b", 1_234_567.891], [3.14159265358979, "c", 7]):
        book.active.append(row)
    book.save("a.xlsx")
    assert f"| {EXACT[1]} | b | 1234567.891 |\n| 3.14159265358979 | c | 7 |" in read(Path("a.xlsx"))


def test_random_words_of_a_document_are_unchanged() -> None:
    rng = Random(1)
    words = ["".join(rng.choices(MARKUP + "ab1é中", k=rng.randint(1, 12))) for _ in range(1000)]
    paragraphs = [*EXACT, *(" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(300))]
    between = '</w:t></w:r></w:p><w:p><w:r><w:t xml:space="preserve">'
    write_docx(Path("a.docx"), between.join(map(escape, paragraphs)))
    Path("a.html").write_text("".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs))
    assert read(Path("a.docx")) == read(Path("a.html")) == "\n\n".join(paragraphs) + "\n"


def test_page_of_a_login_that_was_saved_as_a_document_is_read() -> None:
    Path("a.pdf").write_bytes(b"\xef\xbb\xbf\n" + HTML)
    assert read(Path("a.pdf")) == "# Fruit\n\nA **pear**.\n"
    write_docx(Path("b.pdf"), "A pear.")
    problem = "b.pdf cannot be converted: PdfConverter threw PDFSyntaxError with message: No /Root object! - Is this"
    assert refusal(Path("b.pdf")) == f"{problem} really a PDF?"


def test_document_that_unpacks_to_gigabytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_sources, "MEMORY_BYTES", 400_000_000)  # 4 GiB take long to fill
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


def test_documents_of_a_pattern_are_read_and_others_skipped_with_a_notice(folder: Path) -> None:
    Path("in").mkdir()
    Path("in/d.txt").write_text("d")
    for name, content in {"a": pdf("A pear."), "b scan": pdf(""), "c": SECRET}.items():
        Path(f"in/{name}.pdf").write_bytes(content + b"\xff")
    notices: list[NoticeEvent] = []
    [(name, text)] = read_files([Path("in/*.pdf")], notices.append)
    assert (name, str(text).strip()) == ("in/a.pdf", "A pear.")
    assert [notice.message for notice in notices] == [
        "in/a.pdf: about 2 tokens",
        "2 files skipped: in/b scan.pdf (no text found), in/c.pdf (cannot be converted: PdfConverter threw "
        "PDFPasswordIncorrect with message)",
    ]
    assert refusal(Path("in/b*.pdf")) == "in/b*.pdf: no text files found: in/b scan.pdf (no text found)"
    notices.clear()
    assert read_files([Path("in")], notices.append) == [("in/d.txt", "d")]  # of a directory, no documents
    [notice] = notices
    assert notice.message == "3 files skipped: in/a.pdf (binary), in/b scan.pdf (binary), in/c.pdf (binary)"


# Web pages.


class Page(NamedTuple):
    media_type: str = "text/plain"
    content: bytes = b""
    encoding: str = ""
    location: str = ""


PAGES = {
    "page/": Page("text/html; charset=utf-8", HTML),
    "page//a": Page("text/html; charset=utf-8", HTML),
    "code.py": Page(content=b"print(1)\n"),
    "data": Page("application/ld+json", b"{}"),
    "a.pdf": Page("application/octet-stream", pdf("A pear.")),
    "c": Page("application/pdf", HTML),
    "notes.md": Page("application/octet-stream", b"# A pear"),
    "a.svg": Page("image/svg+xml", b"<svg/>"),
    "image": Page("image/png", b"\x89PNG"),
    "program": Page("application/octet-stream", b"\x7fELF\xff"),
    "redirect": Page(location="/page//a"),
    "loop": Page(location="/loop"),
    "file": Page(location="file:///etc/passwd"),
}


class Site(LoopbackHandler):
    """Pages by their paths, and two that do not end; the headers of each request are recorded."""

    seen: ClassVar[list[dict[str, str]]] = []
    released = Event()
    pages: ClassVar[dict[str, Page]] = {}

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        name = self.path.removeprefix("/").partition("?")[0]
        if name in ("endless", "slow", "slow-head"):
            self.send_forever(name)
        elif page := self.pages.get(name):
            headers = {"Content-Type": page.media_type, "Content-Length": str(len(page.content))}
            headers |= {"Content-Encoding": page.encoding} if page.encoding else {}
            headers |= {"Location": page.location, "Set-Cookie": "id=1"} if page.location else {}
            self.write_head(302 if page.location else 200, headers.items())
            self.wfile.write(page.content)
        else:
            self.write_head(404, [("Content-Length", "0")])

    def send_forever(self, name: str) -> None:
        if name != "slow-head":
            self.write_head(200, [("Content-Type", "text/plain"), ("Connection", "close")])
        with suppress(OSError):
            while not self.released.wait(0 if name == "endless" else 0.02):
                self.wfile.write(b"A pear.\n" * 100_000 if name == "endless" else b"X")


@pytest.fixture
def site() -> Iterator[str]:
    Site.seen, Site.released, Site.pages = [], Event(), dict(PAGES)
    server = Loopback(Site)
    server.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Site.released.set()
    server.stop()
    assert server.bugs == []


def test_web_page_is_converted_to_text_and_text_stays_as_it_is(site: str) -> None:
    fruit = "# Fruit\n\nA **pear**.\n"
    assert (read(f"{site}/page//a"), read(f"{site}/c"), read(f"{site}/a.pdf").strip()) == (fruit, fruit, "A pear.")
    assert (read(f"{site}/code.py"), read(f"{site}/data"), read(f"{site}/a.svg")) == ("print(1)\n", "{}", "<svg/>")
    assert read(f"{site}/notes.md?raw=1") == "# A pear"


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


def test_redirect_to_an_invalid_address_is_one_line(site: str) -> None:
    for target in "http://127.0.0.1:99999/", "http://\xff.example/", "http://[::1", f"http://{'a' * 64}.example/":
        Site.pages["bad"] = Page(location=target)
        assert refusal(f"{site}/bad").startswith(f"{site}/bad: "), target


def test_invalid_proxy_is_one_line(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme, port = "gopher://127.0.0.1:1", "http://127.0.0.1:99999"
    for proxy, problem in (
        (scheme, f"Unknown scheme for proxy URL URL('{scheme}')"),
        (port, "connect(): port must be 0-65535."),
    ):
        monkeypatch.setenv("http_proxy", proxy)
        assert refusal(f"{site}/page/") == f"{site}/page/: {problem}"


def test_web_page_is_read_in_the_charset_that_its_server_or_itself_states(site: str) -> None:
    Site.pages |= {
        "stated": Page("text/html; charset=windows-1251", "<p>Груша".encode("cp1251")),
        "own": Page("text/html", '<meta charset="windows-1251"><p>Груша'.encode("cp1251")),
        "neither": Page("text/html", "<p>Груша".encode()),
        "text": Page("text/plain; charset=iso-8859-15", "süß: 5 €".encode("iso8859-15")),
        "unknown": Page("text/plain", "süß".encode("cp1252")),
    }
    assert [read(f"{site}/{name}") for name in ("stated", "own", "neither")] == ["Груша\n"] * 3
    assert read(f"{site}/text") == "süß: 5 €"
    assert refusal(f"{site}/unknown") == f"{site}/unknown is not UTF-8 text (byte 1)"


def test_web_page_that_is_compressed_has_the_same_limit(site: str) -> None:
    Site.pages["text"] = Page(content=gzip.compress(b"A pear." * 1000), encoding="gzip")
    assert read(f"{site}/text") == "A pear." * 1000
    Site.pages["text"] = Page(content=gzip.compress(bytes(50_000_001), compresslevel=1), encoding="gzip")
    assert refusal(f"{site}/text") == f"{site}/text is larger than 50 MB"
    Site.pages["text"] = Page(content=b"A pear.", encoding="gzip")
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
