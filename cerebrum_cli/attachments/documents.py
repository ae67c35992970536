"""Documents and web pages as text, through commands with limits on time, memory and output."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cerebrum_cli.core.errors import PromptTooLong, UsageError
from cerebrum_cli.core.files import decode_text, readable
from cerebrum_cli.core.text import Texts, pip_install, truncate

MAX_PROMPT_BYTES = 64_000_000  # of a file or of standard input: more than any context holds
TIMEOUT_S = 120.0  # of a command; markitdown takes 2 s to start, and up to a second for a page of a PDF
PLACE = "$1"  # of the document in a command
# Shell scripts that run their arguments. A command writes files, and so output, of at most 128 MiB, or 64 MiB where
# blocks have 512 bytes; documents may unpack to gigabytes, so markitdown has 4 GiB of memory.
LIMITED = ("sh", "-c", 'ulimit -f 131072 2> /dev/null; exec "$@"', "sh")
IN_MEMORY = ("sh", "-c", 'ulimit -v 4194304 2> /dev/null; exec "$@"', "sh")
# -P: do not import modules from the current directory.
MARKITDOWN = (*IN_MEMORY, sys.executable, "-P", "-X", "utf8", "-m", "markitdown", PLACE)
CONVERTED = ("pdf", "docx", "pptx", "xlsx", "html", "htm")  # by markitdown
INSTALL = pip_install('"cerebrum-cli[documents]"')

Commands = Mapping[str, Texts]
"""Programs of the user that convert documents, as words, by the ending of a file's name."""


def converts(source: Path | str, commands: Commands) -> bool:
    """Whether a source is a web address, or a file that is not read as it is."""
    return isinstance(source, str) or ending_of(source) in (*CONVERTED, *commands)


def read_page(address: str, commands: Commands) -> str:
    """The text of a web page. Raises UsageError, and PromptTooLong for more than a prompt can hold."""
    from tempfile import NamedTemporaryFile

    from cerebrum_cli.attachments.web_page import fetch

    page = fetch(address)
    if not converts(Path(f"page{page.suffix}"), commands):
        return decode_text(page.data, address, MAX_PROMPT_BYTES, PromptTooLong)
    with NamedTemporaryFile(suffix=page.suffix) as file:
        file.write(page.data)
        file.flush()
        return convert(Path(file.name), address, commands)


def convert(path: Path, name: str, commands: Commands) -> str:
    """The text of a document. Raises UsageError, and PromptTooLong for more than a prompt can hold."""
    from importlib.util import find_spec

    with readable(path):
        path.open("rb").close()
    ending = ending_of(path)
    command = commands.get(ending, MARKITDOWN)
    if command is MARKITDOWN and find_spec("markitdown") is None:
        hint = f"{INSTALL}; or set a command for {ending} in config.toml, below [documents]"
        raise UsageError(f"{name}: reading .{ending} needs markitdown", hint)
    output = output_of([word.replace(PLACE, str(path.absolute())) for word in command], name)
    text = decode_text(output, f"the text of {name}", MAX_PROMPT_BYTES, PromptTooLong)
    if not text.strip():
        raise UsageError(f"{name}: no text found", "if its pages are images, recognize their text first (OCR)")
    return text


def ending_of(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def output_of(command: Sequence[str], name: str) -> bytes:
    """What a command prints, or slightly more than a prompt can hold of it. Raises UsageError if it fails."""
    from subprocess import DEVNULL, TimeoutExpired, run
    from tempfile import TemporaryFile

    with TemporaryFile() as output, TemporaryFile() as messages:
        try:  # in a session of its own: Ctrl-C interrupts only this process, which then kills the command
            done = run(
                [*LIMITED, *command],
                stdin=DEVNULL,
                stdout=output,
                stderr=messages,
                timeout=TIMEOUT_S,
                start_new_session=True,
            )
        except TimeoutExpired as error:
            hint = "split it, or set a faster command in config.toml, below [documents]"
            raise UsageError(f"{name}: not converted within {TIMEOUT_S:g} s", hint) from error
        output.seek(0)
        data = output.read(MAX_PROMPT_BYTES + 1)
        messages.seek(0)
        message = messages.read().decode(errors="replace").rstrip().rpartition("\n")[2]
        message = re.sub(r"^ - \w+ threw | with message", "", message)  # markitdown's
    if done.returncode and len(data) <= MAX_PROMPT_BYTES:
        reason = truncate(message.strip(" :"), 300) or f"{command[0]} failed"
        raise UsageError(f"{name} cannot be converted: {reason}", "check the file, or convert it to text")
    return data
