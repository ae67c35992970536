"""Documents and web pages as text, through commands with limits on time, memory and output."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import PromptTooLong, UsageError
from cerebrum_cli.core.files import decode_text, read_beginning, readable
from cerebrum_cli.core.text import Texts, pip_install, truncate

if TYPE_CHECKING:
    from cerebrum_cli.attachments.charsets import DecodedText

MAX_PROMPT_BYTES = 64_000_000  # of a file or of standard input: more than any context holds
TIMEOUT_S = 120.0  # of a command; markitdown takes a second to start, and up to a second for a page of a PDF
BEGINNING_BYTES = 64  # of a file that show what it is
PLACE = "$1"  # of the document in a command
# Shell scripts that run their arguments. Each process of a command has 240 s of CPU time, and writes files, and so
# output, of at most 128 MiB, or 64 MiB where blocks have 512 bytes; documents may unpack to gigabytes, so markitdown
# has 4 GiB of memory.
LIMITED = ("sh", "-c", 'ulimit -t 240 2> /dev/null; ulimit -f 131072 2> /dev/null; exec "$@"', "sh")
IN_MEMORY = ("sh", "-c", 'ulimit -v 4194304 2> /dev/null; exec "$@"', "sh")
# -P: do not import modules from the current directory, nor from that of the program.
PROGRAM = str(Path(__file__).with_name("print_document.py"))
MARKITDOWN = (*IN_MEMORY, sys.executable, "-P", "-X", "utf8", PROGRAM, PLACE)
HTML = ("html", "htm")
CONVERTED = ("pdf", "docx", "pptx", "xlsx", *HTML)  # by markitdown
INSTALL = pip_install('"cerebrum-cli[documents]"')


class MissingMarkitdown(UsageError):
    """No document can be converted, whichever it is."""


Commands = Mapping[str, Texts]
"""Programs of the user that convert documents, as words, by the ending of a file's name."""


def converts(source: Path | str, commands: Commands) -> bool:
    """Whether a source is a web address, or a file that is not read as it is."""
    return isinstance(source, str) or ending_of(source) in (*CONVERTED, *commands)


def read_page(address: str, commands: Commands) -> DecodedText:
    """The text of a web page. Raises UsageError, and PromptTooLong for more than a prompt can hold."""
    from cerebrum_cli.attachments.charsets import DecodedText, decode
    from cerebrum_cli.attachments.web_page import fetch

    page = fetch(address)
    if converts(Path(f"page{page.suffix}"), commands):
        with temporary_file(page.data, page.suffix) as path:
            return convert(path, address, commands, page.content_type)
    refuse_media(page.data, address)
    is_text = page.content_type.lower().startswith("text/") or "charset" in page.content_type.lower()
    decoded = decode(page.data, page.content_type, is_html=False) if is_text else None
    return decoded or DecodedText(decode_text(page.data, address, MAX_PROMPT_BYTES, PromptTooLong))


def convert(path: Path, name: str, commands: Commands, content_type: str = "") -> DecodedText:
    """The text of a document, of the type that a server states, if any.

    Raises UsageError, and PromptTooLong for more than a prompt can hold.
    """
    from cerebrum_cli.attachments.charsets import DecodedText, decode

    with readable(path):
        beginning = read_beginning(path, BEGINNING_BYTES)
    ending = ending_of(path)
    command = commands.get(ending, MARKITDOWN)
    if command is MARKITDOWN:
        refuse_media(beginning, name)
        require_markitdown(ending, name)
    decoded = None
    if ending in HTML and (command is MARKITDOWN or content_type):
        data = read_beginning(path, MAX_PROMPT_BYTES)
        decoded = decode(data, content_type, is_html=True) if len(data) <= MAX_PROMPT_BYTES else None
    if decoded is None:
        return DecodedText(converted(path, name, command))
    with temporary_file(decoded.text.encode("utf-8-sig"), path.suffix) as unicode:
        return DecodedText(converted(unicode, name, command), decoded.note)


def require_markitdown(ending: str, name: str) -> None:
    from importlib.util import find_spec

    if find_spec("markitdown") is None:
        hint = f"{INSTALL}; or set a command for {ending} in config.toml, below [documents]"
        raise MissingMarkitdown(f"{name}: reading .{ending} needs markitdown", hint)


def refuse_media(data: bytes, name: str) -> None:
    """Raise UsageError for a picture, sound, a film or a compressed file."""
    from cerebrum_cli.attachments.media import media_of

    if kind := media_of(data):
        raise UsageError(f"{name}: {kind.problem}", kind.hint)


def converted(path: Path, name: str, command: Texts) -> str:
    """The text that a command prints. Raises UsageError if there is none, and PromptTooLong."""
    output = output_of([word.replace(PLACE, str(path.absolute())) for word in command], name)
    text = decode_text(output, f"the text of {name}", MAX_PROMPT_BYTES, PromptTooLong)
    if not text.strip():
        raise UsageError(f"{name}: no text found", "if its pages are images, recognize their text first (OCR)")
    return text


@contextmanager
def temporary_file(data: bytes, suffix: str) -> Iterator[Path]:
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def ending_of(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def output_of(command: Sequence[str], name: str) -> bytes:
    """What a command prints, or slightly more than a prompt can hold of it. Raises UsageError if it fails."""
    from subprocess import TimeoutExpired
    from tempfile import TemporaryFile

    from cerebrum_cli.core.child_process import ChildProcess

    with TemporaryFile() as output, TemporaryFile() as messages:
        try:
            with ChildProcess([*LIMITED, *command], stdout=output, stderr=messages) as child:
                code = child.wait(TIMEOUT_S)
        except TimeoutExpired as error:
            hint = "split it, or set a faster command in config.toml, below [documents]"
            raise UsageError(f"{name}: not converted within {TIMEOUT_S:g} s", hint) from error
        output.seek(0)
        data = output.read(MAX_PROMPT_BYTES + 1)
        messages.seek(0)
        message = messages.read().decode(errors="replace").rstrip().rpartition("\n")[2]
        message = re.sub(r"^ - \w+ threw | with message", "", message)  # markitdown's
    if code and len(data) <= MAX_PROMPT_BYTES:
        reason = truncate(message.strip(" :"), 300) or f"{command[0]} failed"
        raise UsageError(f"{name} cannot be converted: {reason}", "check the file, or convert it to text")
    return data
