"""Documents and web pages of a prompt: what they are converted to, and what is refused, in one line."""

import gzip
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import ClassVar

import pytest
from documents import ENCRYPTED, pdf, write_docx
from loopback import Loopback, LoopbackHandler

from cerebrum_cli.attachments import documents, web_page
from cerebrum_cli.attachments.prompt_sources import AttachmentReader, compose_prompt
from cerebrum_cli.core.errors import PromptTooLong, UsageError

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
    assert name == str(source)
    assert notices == [f"{source}: about {max(1, len(text.encode()) // 4):,} tokens"]
    return text


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
    assert refusal(Path("image.pdf")).startswith("image.pdf cannot be converted: PDFSyntaxError: No /Root object!")
    assert refusal(Path("none.pdf")) == "none.pdf: No such file or directory"


def test_document_of_another_kind_than_its_name() -> None:
    Path("a.pdf").write_bytes(HTML)
    assert read(Path("a.pdf")) == "# Fruit\n\nA **pear**.\n"
    write_docx(Path("b.pdf"), "A pear.")
    assert read(Path("b.pdf")) == "A pear.\n"


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
        f'{sys.executable} -m pip install "cerebrum-cli[documents]"; '
        "or set a command for pdf in config.toml, below [documents]"
    )
    assert read(Path("a.pdf"), pdf="cat $1") == pdf("A pear.").decode()


def test_documents_of_a_pattern_are_read_and_those_of_a_directory_are_not(folder: Path) -> None:
    Path("in").mkdir()
    Path("in/a.pdf").write_bytes(pdf("A pear.") + b"\xff")
    Path("in/b.txt").write_text("b")
    files = AttachmentReader().read([Path("in/*.pdf")], lambda _: None)
    assert [(name, text.strip()) for name, text in files] == [("in/a.pdf", "A pear.")]
    notices: list[str] = []
    assert AttachmentReader().read([Path("in")], lambda notice: notices.append(notice.message)) == [("in/b.txt", "b")]
    assert notices == ["1 file skipped: in/a.pdf (binary)"]


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
    assert refusal(Path("a.epub"), epub=f"{sys.executable} fail.py $1") == "a.epub cannot be converted: it is broken"
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
    sleep = f'{sys.executable} -c \'import os, time; open("pid", "w").write(str(os.getpid())); time.sleep(60)\' $1'
    assert refusal(Path("a.epub"), epub=sleep) == "a.epub: not converted within 0.5 s"
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)


# Web pages.


class Site(LoopbackHandler):
    """Pages by their paths; the headers of each request are recorded."""

    seen: ClassVar[list[dict[str, str]]] = []
    released = Event()

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        name = self.path.strip("/").partition("?")[0]
        if target := {"loop": "/loop", "file": "file:///etc/passwd"}.get(name):
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
            "bomb": ("text/html", gzip.compress(bytes(10_000_000))),
            "program": ("application/octet-stream", b"\x7fELF\xff"),
        }[name]
        headers = [("Content-Type", media_type), ("Content-Length", str(len(content)))]
        if name == "bomb":
            headers.append(("Content-Encoding", "gzip"))
        self.write_head(200, headers)
        self.wfile.write(content)


@pytest.fixture
def site() -> Iterator[str]:
    Site.seen, Site.released = [], Event()
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
    assert refusal(f"{site}/image") == f"{site}/image is not UTF-8 text (byte 0)"
    assert refusal(f"{site}/bomb") == f"{site}/bomb: compressed, which was not requested"
    assert refusal(f"{site}/program") == f"{site}/program is not UTF-8 text (byte 4)"
    assert refusal(f"{site}/loop") == f"{site}/loop: Exceeded maximum allowed redirects."
    assert refusal(f"{site}/file") == f"{site}/file: Request URL has an unsupported protocol 'file://'."
    assert refusal("http://127.0.0.1:1/") == "http://127.0.0.1:1/: All connection attempts failed"
    assert refusal("http://").startswith("http://: Request URL is missing")
    assert refusal("http://[::1").startswith("http://[::1: Invalid")


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
