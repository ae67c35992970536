"""Documents and web pages of a prompt: what they are converted to, and what is refused, in one line."""

import gzip
import os
import shlex
import socket
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from html import escape
from io import BytesIO
from pathlib import Path
from random import Random
from threading import Event
from typing import Any, ClassVar

import pytest
from command_line import PYTHON
from documents import ENCRYPTED, pdf, write_docx
from loopback import Loopback, LoopbackHandler

from cerebrum_cli.attachments import documents, web_page
from cerebrum_cli.attachments.prompt_sources import AttachmentReader, compose_prompt, read_piped
from cerebrum_cli.core.errors import PromptTooLong, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.pictures import Picture

pytestmark = pytest.mark.slow

HTML = b"<html><head><title>T</title></head><body><h1>Fruit</h1><p>A <b>pear</b>.</p></body></html>"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name == "HF_HUB_OFFLINE"]:
        monkeypatch.delenv(name)
    return tmp_path


def read(source: Path | str, **commands: str) -> str:
    """The text of a source; a notice states its size."""
    notices: list[str] = []
    reader = AttachmentReader({ending: tuple(shlex.split(command)) for ending, command in commands.items()})
    [(name, text)] = reader.read([source], lambda notice: notices.append(notice.message))
    assert isinstance(text, str)
    assert name == str(source)
    assert notices == [f"{source}: about {max(1, len(text.encode()) // 4):,} tokens"]
    return text


def notices_of(pattern: str) -> list[str]:
    notices: list[str] = []
    AttachmentReader().read([Path(pattern)], lambda notice: notices.append(notice.message))
    return notices


def refusal(source: Path | str, **commands: str) -> str:
    with pytest.raises((UsageError, PromptTooLong)) as raised:
        read(source, **commands)
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
        "image.pdf": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }.items():
        Path(name).write_bytes(content)
    assert refusal(Path("truncated.pdf")) == "truncated.pdf cannot be converted: PSEOF: Unexpected EOF"
    assert refusal(Path("encrypted.pdf")) == "encrypted.pdf cannot be converted: PDFPasswordIncorrect"
    assert refusal(Path("scanned.pdf")) == "scanned.pdf: no text found"
    assert refusal(Path("old.docx")) == "old.docx cannot be converted: BadZipFile: File is not a zip file"
    assert refusal(Path("image.pdf")) == "image.pdf: images are not supported"
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
    book.active.append(["file_name", "file_name", None])
    book.active.append([EXACT[1], "NA", "two\nlines"])
    book.active.append([])
    book.active.append([3.14159265358979, None, 1_234_567.891])
    book.create_sheet("Empty_one")
    book.save("a.xlsx")
    Path("a.xlsx").rename("a.pdf")  # whatever it is called
    table = f"| file_name | file_name |  |\n| --- | --- | --- |\n| {EXACT[1]} | NA | two lines |"
    assert read(Path("a.pdf")) == f"## Sheet\n{table}\n| 3.14159265358979 |  | 1234567.891 |\n\n## Empty_one\n"


MARKUP = r"_*#\[]()<>{}|`~^$&%@!?+-=:;,./'" + '"'


def test_random_words_of_a_document_are_unchanged() -> None:
    rng = Random(1)
    words = ["".join(rng.choices(MARKUP + "ab1é中", k=rng.randint(1, 12))) for _ in range(1000)]
    paragraphs = [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(300)]
    assert docx_of(paragraphs) == html_of(paragraphs) == "\n\n".join(paragraphs) + "\n"


def test_document_of_another_kind_than_its_name() -> None:
    Path("a.pdf").write_bytes(HTML)
    assert read(Path("a.pdf")) == "# Fruit\n\nA **pear**.\n"
    write_docx(Path("b.xlsx"), "A pear.")
    assert read(Path("b.xlsx")) == "A pear.\n"


def test_document_that_unpacks_to_gigabytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = [word.replace("4194304", "1000000") for word in documents.MARKITDOWN]  # which takes long to fill
    assert limited != list(documents.MARKITDOWN)
    write_docx(folder / "bomb.docx", "A pear.", padding=1000)
    assert refusal(Path("bomb.docx"), docx=shlex.join(limited)).startswith(
        "bomb.docx cannot be converted: MemoryError:"
    )


def test_document_without_markitdown_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    Path("a.pdf").write_bytes(pdf("A pear."))
    with pytest.raises(UsageError, match="needs markitdown") as raised:
        read(Path("a.pdf"))
    assert raised.value.hint == (
        f'{PYTHON} -m pip install "cerebrum-cli[documents]"; or set a command for pdf in config.toml, below [documents]'
    )
    assert read(Path("a.pdf"), pdf="cat $1") == pdf("A pear.").decode()


def test_documents_of_a_pattern_are_read_and_those_of_a_directory_are_not(folder: Path) -> None:
    Path("in").mkdir()
    Path("in/a.pdf").write_bytes(pdf("A pear.") + b"\xff")
    Path("in/b.txt").write_text("b")
    files = AttachmentReader().read([Path("in/*.pdf")], lambda _: None)
    assert [(name, str(text).strip()) for name, text in files] == [("in/a.pdf", "A pear.")]
    notices: list[str] = []
    assert AttachmentReader().read([Path("in")], lambda notice: notices.append(notice.message)) == [("in/b.txt", "b")]
    assert notices == ["1 file skipped: in/a.pdf (binary)"]


def test_documents_of_a_pattern_that_cannot_be_read_are_skipped_with_a_notice() -> None:
    for name, content in {
        "a.pdf": pdf("A pear."),
        "b scan.pdf": pdf(""),
        "c.pdf": pdf("A plum.", ENCRYPTED),
        "d.pdf": b"\x89PNG\r\n\x1a\n" + bytes(9),
        "e.pdf": b"",
    }.items():
        Path(name).write_bytes(content)
    Path("d").mkdir()
    notices: list[NoticeEvent] = []
    files = AttachmentReader().read([Path("*.pdf")], notices.append)
    assert [(name, str(text).strip()) for name, text in files] == [("a.pdf", "A pear.")]
    assert [notice.message for notice in notices] == [
        "a.pdf: about 2 tokens",
        "4 files skipped: b scan.pdf (no text found), c.pdf (cannot be converted: PDFPasswordIncorrect), "
        "d.pdf (images are not supported), and 1 more",
    ]
    assert notices[-1].hint.startswith("if its pages are images, recognize their text first (OCR); check the file")
    problem = "a.pdf (cannot be converted: false failed), b scan.pdf (cannot be converted: false failed), "
    assert refusal(Path("[a-c]*.pdf"), pdf="false $1").startswith(f"[a-c]*.pdf: no text files found: {problem}c.pdf")
    Path("f.docx").write_bytes(write_docx(Path("whole.docx"), "A pear.").read_bytes()[:-30])
    assert refusal(Path("f*.docx")) == (
        "f*.docx: no text files found: f.docx (cannot be converted: BadZipFile: File is not a zip file)"
    )


def test_document_that_vanishes_from_a_pattern_is_skipped() -> None:
    for name in ("a.epub", "b.epub", "c.epub"):
        Path(name).write_text("A pear.")
    notices: list[str] = []
    remove = (
        sys.executable,
        "-c",
        "import os, sys; print(sys.argv[1][-6:]); os.path.exists('b.epub') and os.remove('b.epub')",
    )
    reader = AttachmentReader({"epub": (*remove, "$1")})
    files = reader.read([Path("*.epub")], lambda notice: notices.append(notice.message))
    assert [text for _, text in files] == ["a.epub\n", "c.epub\n"]
    assert notices[-1] == "1 file skipped: b.epub (No such file or directory)"


def test_pattern_of_documents_without_markitdown_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    Path("a.pdf").write_bytes(pdf("A pear."))
    assert refusal(Path("*.pdf")) == "a.pdf: reading .pdf needs markitdown"


# Pictures, sound and films.

PICTURES = {
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "jpg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "gif": b"GIF89a\x10\0\x10\0\xf0\0\0",
    "webp": b"RIFF\x24\0\0\0WEBPVP8 ",
}
OTHER_PICTURES = {
    "bmp": b"BM\x36\0\0\0\0\0\0\0",
    "tiff": b"II*\0\x08\0\0\0",
    "heic": b"\0\0\0\x18ftypheic",
    "avif": b"\0\0\0\x1cftypavif",
}
SOUND = {"mp3": b"ID3\x04\0\0", "wav": b"RIFF\x24\0\0\0WAVEfmt ", "ogg": b"OggS\0\2", "flac": b"fLaC\0\0\0\x22"}
FILMS = {"mp4": b"\0\0\0\x20ftypisom", "webm": b"\x1a\x45\xdf\xa3\x9f", "avi": b"RIFF\x24\0\0\0AVI LIST"}
KINDS = {
    "images are": OTHER_PICTURES,
    "audio is": SOUND,
    "video is": FILMS,
    "compressed files are": {"gz": b"\x1f\x8b\x08\0"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_file_that_is_no_text_is_named_by_its_kind(kind: str) -> None:
    for ending, content in KINDS[kind].items():
        for name in (f"a.{ending}", "b.txt", "c.pdf", "d"):  # whatever it is called
            Path(name).write_bytes(content + bytes(2_000_000))
            assert refusal(Path(name)) == f"{name}: {kind} not supported"
        with pytest.raises(UsageError, match=f"^standard input: {kind} not supported$"):
            read_piped(BytesIO(content))
        problem = f"no text files found: a.{ending} ({kind} not supported)"
        assert refusal(Path(f"*.{ending}")) == f"*.{ending}: {problem}"
        Path("e.txt").write_text("e")
        assert notices_of("*.txt") == [f"1 file skipped: b.txt ({kind} not supported)"]
        assert read(Path(f"a.{ending}"), **{ending: "echo A pear. $1"}).startswith("A pear.")  # by the user's command


@pytest.mark.parametrize("ending", PICTURES)
def test_pictures_that_servers_take_are_read_as_such(ending: str) -> None:
    for name in (f"a.{ending}", "b.txt", "d"):  # whatever it is called
        Path(name).write_bytes(PICTURES[ending] + bytes(2_000_000))
        [(_, picture)] = AttachmentReader().read([Path(name)], lambda _: None)
        assert isinstance(picture, Picture) and picture.path == str(Path(name).absolute())
    with pytest.raises(UsageError, match=r"^standard input: images are not supported$"):
        read_piped(BytesIO(PICTURES[ending]))
    assert read(Path(f"a.{ending}"), **{ending: "echo A pear. $1"}).startswith("A pear.")  # by the user's command


def test_text_that_begins_like_a_picture_is_text() -> None:
    for text in ("GIF89a is a format", "RIFF", "BMW is a maker", "ID3 tags", "II*, MM", "OggS"):
        Path("a.txt").write_text(text)
        assert AttachmentReader().read([Path("a.txt"), Path("*.tx?")], lambda _: None) == [("a.txt", text)]


# Commands of the user.


def test_command_of_an_ending_takes_precedence(folder: Path) -> None:
    Path("my page.html").write_bytes(HTML)
    assert read(Path("my page.html"), html="cat $1") == HTML.decode()
    Path("a.epub").write_bytes(b"A pear.")
    assert read(Path("a.epub"), epub="head -c 6 $1") == "A pear"
    assert read(Path("a.epub"), epub="echo '$1;ls'") == f"{folder}/a.epub;ls\n"  # without a shell


def test_command_that_fails_is_one_line() -> None:
    Path("fail.py").write_text("import sys\nprint('A' * 100_000, file=sys.stderr)\nsys.exit('\\nit is broken\\n')")
    Path("a.epub").write_bytes(b"A pear.")
    assert refusal(Path("a.epub"), epub=f"{PYTHON} fail.py $1") == "a.epub cannot be converted: it is broken"
    assert refusal(Path("a.epub"), epub="false $1") == "a.epub cannot be converted: false failed"
    assert refusal(Path("a.epub"), epub="no-such-command $1") == (
        "a.epub cannot be converted: sh: 1: exec: no-such-command: not found"
    )
    assert refusal(Path("a.epub"), epub="true $1") == "a.epub: no text found"
    assert refusal(Path("a.epub"), epub="printf '\\377' $1") == "the text of a.epub is not UTF-8 text (byte 0)"
    assert refusal(Path("a.epub"), epub="yes $1") == "the text of a.epub is larger than 64 MB"


def test_command_that_takes_too_long_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "TIMEOUT_S", 0.5)
    Path("a.epub").write_bytes(b"A pear.")
    sleep = f'{PYTHON} -c \'import os, time; open("pid", "w").write(str(os.getpid())); time.sleep(60)\' $1'
    assert refusal(Path("a.epub"), epub=sleep) == "a.epub: not converted within 0.5 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)


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
            "b": ("text/html", pdf("A pear.")),
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
    assert read(f"{site}/a.pdf").strip() == read(f"{site}/b").strip() == "A pear."
    assert read(f"{site}/c") == "# Fruit\n\nA **pear**.\n"
    assert read(f"{site}/page//a", html="cat $1") == HTML.decode()


def test_web_page_of_text_stays_as_it_is(site: str) -> None:
    assert read(f"{site}/code.py") == "print(1)\n"
    assert read(f"{site}/data") == "{}"
    assert read(f"{site}/notes.md?raw=1") == "# A pear"


def test_web_page_request_has_no_credentials(site: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(folder / ".netrc"))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert read(f"{site}/redirect", html="cat $1") == HTML.decode()
    assert len(Site.seen) == 2
    for headers in Site.seen:
        assert headers.keys() == {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert refusal("http://me:secret@127.0.0.1/") == "a web address contains a user name or password"


def test_web_page_that_cannot_be_read_is_one_line(site: str) -> None:
    assert refusal(f"{site}/missing") == f"{site}/missing: Client error '404 Not Found' for url '{site}/missing'"
    assert refusal(f"{site}/image") == f"{site}/image: images are not supported"
    assert refusal(f"{site}/program") == f"{site}/program is not UTF-8 text (byte 4)"
    assert refusal(f"{site}/loop") == f"{site}/loop: Exceeded maximum allowed redirects."
    assert refusal(f"{site}/file") == f"{site}/file: Request URL has an unsupported protocol 'file://'."
    assert refusal("http://127.0.0.1:1/") == "http://127.0.0.1:1/: All connection attempts failed"
    assert refusal("http://").startswith("http://: Request URL is missing")
    assert refusal("http://[::1").startswith("http://[::1: Invalid")


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("http://me:secret@127.0.0.1/", "redirects to an address with a user name or password"),
        ("http://127.0.0.1:99999/", ": "),
        ("http://\xff.example/", ": "),
        ("http://[::1", ": "),
        (f"http://{'a' * 64}.example/", ": "),
    ],
)
def test_redirect_to_an_invalid_address_is_one_line(
    target: str, problem: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Site, "redirects", {"bad": target})
    refused = refusal(f"{site}/bad")
    assert refused.startswith(f"{site}/bad{problem}" if problem == ": " else f"{site}/bad {problem}")
    assert "\n" not in refused
    assert "secret" not in refused


@pytest.mark.parametrize(
    ("proxy", "problem"),
    [
        ("gopher://127.0.0.1:1", "cannot use the proxy: Unknown scheme for proxy URL URL('gopher://127.0.0.1:1')"),
        ("http://127.0.0.1:99999", "cannot use the proxy: port numbers end at 65535"),
    ],
)
def test_invalid_proxy_is_one_line(proxy: str, problem: str, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    assert refusal(f"{site}/page/") == problem


def test_bug_of_a_web_page_is_not_an_error_of_its_address(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_page, "suffix_of", lambda *_: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        read(f"{site}/page//a")


# Hosts of the internet, reached by a proxy on a loopback port; addresses of the local network, in all spellings.
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]"]
)
def test_page_of_the_internet_does_not_redirect_into_the_local_network(
    host: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", site)
    monkeypatch.setattr(
        Site, "redirects", {"http://1.1.1.1/out": "http://8.8.8.8/page", "http://1.1.1.1/in": f"http://{host}/"}
    )
    Site.pages = {"http://8.8.8.8/page": ("text/plain", b"A pear.")}
    assert read("http://1.1.1.1/out") == "A pear."
    assert refusal("http://1.1.1.1/in") == "http://1.1.1.1/in redirects into the local network"
    assert len(Site.seen) == 3


@pytest.mark.parametrize("is_local_first", [False, True])
def test_name_whose_address_changes_does_not_lead_into_the_local_network(
    is_local_first: bool, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the check is an address of the internet, the answer to the connection a local one."""
    resolve, asked = socket.getaddrinfo, list[str]()

    def resolve_alternately(host: Any, *args: Any, **options: Any) -> Any:
        if host not in ("rebind.example", b"rebind.example"):
            return resolve(host, *args, **options)
        asked.append("rebind.example")
        addresses = ["8.8.8.8", "127.0.0.1"]
        return resolve(addresses[(len(asked) + is_local_first + 1) % 2], *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_alternately)
    monkeypatch.setenv("http_proxy", site)
    monkeypatch.setenv("no_proxy", "rebind.example")
    target = f"http://rebind.example:{site.rpartition(':')[2]}/data"
    monkeypatch.setattr(Site, "redirects", {"http://1.1.1.1/in": target})
    assert refusal("http://1.1.1.1/in") == "http://1.1.1.1/in redirects into the local network"
    assert len(Site.seen) == 1 and len(asked) == (1 if is_local_first else 2)


def test_content_of_a_redirect_is_not_read(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_page, "TIMEOUT_S", 2.0)
    assert read(f"{site}/moved", html="cat $1") == HTML.decode()


def test_web_page_has_limits_on_size_and_time(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(f"{site}/endless") == f"{site}/endless is larger than 50 MB"
    monkeypatch.setattr(web_page, "TIMEOUT_S", 0.3)
    assert refusal(f"{site}/slow") == f"{site}/slow: not complete within 0.3 s"
    assert refusal(f"{site}/slow-head") == f"{site}/slow-head: not complete within 0.3 s"


def test_web_page_is_not_requested_offline(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the network is disabled"):
        AttachmentReader(is_offline=True).read([site], lambda _: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refusal(site) == f"{site} cannot be read: the network is disabled"
    assert Site.seen == []


# Charsets and compression.

GREETING = "Größe: “süß” – 5 €\n"
RUSSIAN = "Груша и слива.\n"
JAPANESE = "①ナシと梨。\n"
# Media type, what the page is written in, its text.
CHARSETS = [
    ("text/plain; charset=iso-8859-1", "cp1252", GREETING),  # as browsers read it
    ('text/plain;format=flowed; Charset = "ISO-8859-15"', "iso8859-15", "Größe: 5 €\n"),
    ("text/plain; charset=windows-1252", "cp1252", GREETING),
    ("text/plain; charset=us-ascii", "utf-8", GREETING),
    ("text/plain; charset=ISO-8859-1", "utf-8", GREETING),  # the default of a server
    ("text/plain; charset=windows-1251", "cp1251", RUSSIAN),
    ("text/plain; charset=koi8-r", "koi8-r", RUSSIAN),
    ("text/plain; charset=shift_jis", "cp932", JAPANESE),
    ("text/plain; charset=x-sjis", "cp932", JAPANESE),
    ("text/plain; charset=euc-jp", "euc_jp", "ナシと梨。\n"),
    ("text/plain; charset=iso-2022-jp", "iso2022_jp", "ナシと梨。\n"),
    ("text/plain; charset=gb2312", "gb18030", "联通和梨。\n"),
    ("text/plain; charset=gbk", "gbk", "联通"),  # whose bytes are also UTF-8
    ("text/plain; charset=big5", "big5", "梨和李。\n"),
    ("text/plain; charset=euc-kr", "cp949", "배와 자두.\n"),
    ("text/plain; charset=utf-16", "utf-16", RUSSIAN),
    ("text/plain; charset=utf-16le", "utf-16-le", JAPANESE),
    ("text/plain; charset=utf-16be", "utf-16-be", GREETING),
    ("text/plain; charset=utf-16", "utf-8", GREETING),
    ("text/plain", "utf-16", RUSSIAN),  # with a mark
    ("text/plain; charset=iso-8859-1", "utf-8-sig", RUSSIAN),
    ("text/plain", "utf-32", RUSSIAN),
    ("text/plain; charset=nonsense", "utf-8", RUSSIAN),
    ("text/plain; charset=hex", "utf-8", RUSSIAN),  # of Python, for bytes
    ("text/plain; charset=", "utf-8", RUSSIAN),
    ("application/json; charset=cp1252", "cp1252", GREETING),
]


@pytest.mark.parametrize(("media_type", "charset", "text"), CHARSETS)
def test_web_page_is_read_in_its_charset(site: str, media_type: str, charset: str, text: str) -> None:
    Site.pages = {"text": (media_type, text.encode(charset))}
    assert read(f"{site}/text") == text


def test_web_page_in_another_charset_than_stated_has_a_note(site: str) -> None:
    def notes(media_type: str, content: bytes) -> tuple[str, str]:
        Site.pages = {"text": (media_type, content)}
        notices: list[str] = []
        [(_, text)] = AttachmentReader().read([f"{site}/text"], lambda notice: notices.append(notice.message))
        return str(text), notices[-1].removeprefix(f"{site}/text: ")

    lost = "characters that are not valid {} and were replaced by \ufffd: {}"
    assert notes("text/plain", b"caf\xe9") == ("café", "no charset stated, read as windows-1252")
    assert notes("text/plain; charset=x-y", b"caf\xe9") == ("café", "unknown charset x-y, read as windows-1252")
    assert notes("text/plain; charset=utf-8", b"caf\xe9 \xff") == ("caf\ufffd \ufffd", lost.format("utf-8", 2))
    assert notes("text/plain; charset=shift_jis", b"a\x85") == ("a\ufffd", lost.format("shift_jis", 1))
    assert notes("text/plain; charset=utf-16le", "a€".encode("utf-16-le") + b"x")[0] == "a€\ufffd"
    Site.pages = {"text": ("text/plain", b"\x7fELF\0\xff")}
    assert refusal(f"{site}/text") == f"{site}/text is not UTF-8 text (byte 5)"
    Site.pages = {"text": ("application/json", b"caf\xe9")}  # which is UTF-8 by its standard
    assert refusal(f"{site}/text") == f"{site}/text is not UTF-8 text (byte 3)"


def test_html_is_read_in_the_charset_of_its_header_or_its_own(site: str) -> None:
    def page(head: str, charset: str, text: str) -> bytes:
        return f"<html><head>{head}</head><body><p>{text}</p></body></html>".encode(charset)

    meta = '<meta charset="{}">'.format
    older = '<meta http-equiv="Content-Type" content="text/html; charset={}">'.format
    for name, (media_type, content, text) in enumerate(
        [
            ("text/html; charset=cp1251", page("", "cp1251", RUSSIAN), RUSSIAN),
            ("text/html; charset=cp1251", page(meta("utf-8"), "cp1251", RUSSIAN), RUSSIAN),  # converted by a server
            ("text/html", page(meta("cp1251"), "cp1251", RUSSIAN), RUSSIAN),
            ("text/html", page(older("Shift_JIS"), "cp932", JAPANESE), JAPANESE),
            ("text/html", page(meta("utf-16"), "utf-8", JAPANESE), JAPANESE),
            ("text/html", page("", "utf-16", JAPANESE), JAPANESE),
            ("text/html", page("", "utf-8", "süß"), "süß"),
            (
                "application/xhtml+xml",
                b'<?xml version="1.0" encoding="cp1251"?>' + page("", "cp1251", RUSSIAN),
                RUSSIAN,
            ),
        ]
    ):
        Site.pages = {f"page{name}": (media_type, content)}
        assert text in read(f"{site}/page{name}", html="cat $1")
        if "Shift" in content.decode("latin-1"):
            assert read(f"{site}/page{name}") == text
    Path("a.html").write_bytes(page(meta("koi8-r"), "koi8-r", RUSSIAN))
    assert read(Path("a.html")) == RUSSIAN
    assert read(Path("a.html"), html="wc -c $1").startswith(f"{Path('a.html').stat().st_size} ")  # as it is


def test_web_page_may_be_compressed(site: str) -> None:
    text = RUSSIAN.encode() * 1000
    raw = zlib.compressobj(wbits=-15)
    contents = {
        "gzip": gzip.compress(text),
        "x-gzip": gzip.compress(text[:999]) + gzip.compress(text[999:]),
        "GZIP": gzip.compress(text),
        "deflate": zlib.compress(text),
        "Deflate": raw.compress(text) + raw.flush(),
        "identity": text,
    }
    for encoding, content in contents.items():
        Site.pages = {"text": ("text/plain; charset=utf-8", content)}
        Site.encodings = {"text": encoding}
        assert read(f"{site}/text") == text.decode()
    assert {headers["accept-encoding"] for headers in Site.seen} == {"gzip, deflate"}
    Site.pages, Site.encodings = {"page": ("text/html", gzip.compress(HTML))}, {"page": "gzip"}
    assert read(f"{site}/page") == "# Fruit\n\nA **pear**.\n"


def test_web_page_that_is_compressed_in_a_wrong_way_is_one_line(site: str) -> None:
    text = RUSSIAN.encode() * 1000
    bomb = gzip.compress(bytes(50_000_001), compresslevel=1)
    for encoding, content, problem in (
        ("br", b"\x0b", ": compressed by br, which was not requested"),
        ("gzip, gzip", gzip.compress(gzip.compress(text)), ": compressed by gzip, gzip, which was not requested"),
        ("gzip", text, ": its content is not valid gzip"),
        ("gzip", gzip.compress(text)[:-20], ": its content is not valid gzip"),
        ("gzip", gzip.compress(text)[:-8] + bytes(8), ": its content is not valid gzip"),
        ("deflate", zlib.compress(text)[:-9], ": its content is not valid deflate"),
        ("deflate", b"\xff\xff", ": its content is not valid deflate"),
        ("gzip", bomb, " is larger than 50 MB"),
        ("deflate", zlib.compress(bytes(50_000_001), 1), " is larger than 50 MB"),
    ):
        Site.pages, Site.encodings = {"text": ("text/plain", content)}, {"text": encoding}
        assert refusal(f"{site}/text") == f"{site}/text{problem}"


def test_web_page_that_is_a_picture_is_named_so(site: str) -> None:
    for media_type in ("image/png", "text/html", "text/plain; charset=utf-8", "application/octet-stream"):
        Site.pages = {"a": (media_type, PICTURES["png"])}
        assert refusal(f"{site}/a") == f"{site}/a: images are not supported"
    Site.pages = {"a.svg": ("image/svg+xml", b"<svg/>")}
    assert read(f"{site}/a.svg") == "<svg/>"
