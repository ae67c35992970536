"""Documents as text: markitdown converts them, in a process of its own with limits on time, memory and output."""

from __future__ import annotations

import sys
from pathlib import Path

from cerebrum_cli.core.errors import PromptTooLong, UsageError
from cerebrum_cli.core.files import decode_text, readable
from cerebrum_cli.core.text import pip_install, truncate

ENDINGS = (".pdf", ".docx", ".pptx", ".xlsx", ".epub", ".html", ".htm")
MAX_PROMPT_BYTES = 64_000_000  # of a file or of standard input: more than any context holds
MEMORY_BYTES = 2**32  # documents may unpack to gigabytes
TIMEOUT_S = 120.0  # markitdown takes a second to start, and up to a second for a page of a PDF
PROGRAM = Path(__file__).with_name("print_document.py")


class MissingMarkitdown(UsageError):
    """No document can be converted, whichever it is."""


def is_document(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS


def document_text(path: Path, name: str) -> str:
    """The text of a document as Markdown. Raises UsageError if it has none, or cannot be converted."""
    from importlib.util import find_spec

    with readable(path):
        path.stat()
    if find_spec("markitdown") is None:
        raise MissingMarkitdown(f"{name}: documents need markitdown", pip_install('"cerebrum-cli[documents]"'))
    text = decode_text(_converted(path, name), f"the text of {name}", MAX_PROMPT_BYTES, PromptTooLong)
    if not text.strip():
        raise UsageError(f"{name}: no text found", "if its pages are images, recognize their text first (OCR)")
    return text


def _converted(path: Path, name: str) -> bytes:
    from subprocess import TimeoutExpired
    from tempfile import TemporaryFile

    from cerebrum_cli.core.child_process import ChildProcess

    limits = (str(MEMORY_BYTES), str(MAX_PROMPT_BYTES))
    # -P: import no modules from the directory of the program, nor from the current one
    command = (sys.executable, "-P", "-X", "utf8", str(PROGRAM), str(path.absolute()), *limits)
    with TemporaryFile() as output, TemporaryFile() as messages:
        try:
            with ChildProcess(command, stdout=output, stderr=messages) as child:
                code = child.wait(TIMEOUT_S)
        except TimeoutExpired as error:
            raise UsageError(f"{name}: not converted within {TIMEOUT_S:g} s", "split it") from error
        output.seek(0)
        messages.seek(0)
        if code:
            last_line = messages.read().decode(errors="replace").rstrip().rpartition("\n")[2]
            problem = truncate(last_line.strip(" -:"), 300) or "the conversion failed"
            raise UsageError(f"{name} cannot be converted: {problem}", "check the file, or convert it to text")
        return output.read()
