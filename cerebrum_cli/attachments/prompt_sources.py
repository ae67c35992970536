"""The sources of a prompt: the argument, files, web pages, standard input or a messages list."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.conversation import Conversation, Picture, Pictures, conversation_from_messages
from cerebrum_cli.core.declaration import is_address
from cerebrum_cli.core.environment import is_hub_offline
from cerebrum_cli.core.errors import PromptTooLong, UsageError
from cerebrum_cli.core.events import NoticeEvent, OnNotice
from cerebrum_cli.core.files import decode_text, read_beginning, read_text, readable
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import (
    code_block,
    format_count,
    format_names,
    format_size,
    one_line,
    pip_install,
    truncate,
    well_formed,
)

if TYPE_CHECKING:
    from _typeshed import SupportsRead

    from cerebrum_cli.attachments.file_search import FileSearch, Skipped
    from cerebrum_cli.core.saved_prompts import SavedPrompt

ENDINGS = (".pdf", ".docx", ".pptx", ".xlsx", ".epub", ".html", ".htm")
MAX_PROMPT_BYTES = 64_000_000  # of a file or of standard input: more than any context holds
MEMORY_BYTES = 2**32  # documents may unpack to gigabytes
TIMEOUT_S = 120.0  # markitdown takes a second to start, and up to a second for a page of a PDF
PROGRAM = Path(__file__).with_name("print_document.py")
STANDARD_INPUT = Path("-")  # to other programs
MAX_PICTURE_BYTES = 20_000_000
PICTURE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
MAX_FOUND_BYTES = 1_000_000  # of a file that was not named itself: larger ones are data, and fill most contexts
PromptFile = tuple[str, str | Picture]  # the name of a file, and its text, or the picture that it is
BYTES_PER_TOKEN = 4  # about, in many languages
LEFT_OUT = "binary files, hidden ones and those in .gitignore are left out; PATH/*.pdf takes documents"


def read_files(sources: Sequence[Path | str], on_notice: OnNotice, offline: bool = False) -> list[PromptFile]:
    """Read files and pages as names and texts, in the given order; those of a directory or a pattern are sorted.

    A directory or pattern adds each file once, and only text, except that a pattern such as `*.pdf` or `*.png` adds
    documents or pictures; a notice counts the others. Raises UsageError if a named file cannot be read, or a
    directory or pattern leads to no file that can be; PromptTooLong for more than a prompt can hold.
    """
    if not sources:
        return []
    from cerebrum_cli.attachments.file_search import search_of

    searches = {source: search_of(source) if isinstance(source, Path) else None for source in sources}
    seen = {os.path.realpath(source) for source, search in searches.items() if search is None}
    files = []
    skipped: list[Skipped] = []
    for source, search in searches.items():
        if source == STANDARD_INPUT:
            raise UsageError("- is not a file", "piped text is added to the prompt without -f")
        if isinstance(source, str):
            files.append(_with_size_noted(source, read_page(source, offline), on_notice))
        elif search:
            files += _read_found(source, search, seen, skipped, on_notice)
        else:
            files.append(_read_named(source, on_notice))
    if skipped:
        on_notice(NoticeEvent(f"{format_count(len(skipped), 'file')} skipped: {listed(skipped)}"))
    return files


def _read_named(path: Path, on_notice: OnNotice) -> PromptFile:
    """Read a file, a picture or a document, the last with a notice. Raises UsageError, PromptTooLong."""
    name = well_formed(str(path))
    if is_document(path):
        return _with_size_noted(name, document_text(path, str(path)), on_notice)
    if is_picture(path):
        return name, read_picture(path)
    with readable(path):
        data = read_beginning(path, MAX_PROMPT_BYTES)
    text = decode_text(data, str(path), MAX_PROMPT_BYTES, PromptTooLong)
    if not text.strip():
        on_notice(NoticeEvent(f"{name} is empty"))
    return name, text


def _with_size_noted(name: str, text: str, on_notice: OnNotice) -> PromptFile:
    """The text of a document or a page, with a notice of its size, which its file does not show."""
    tokens = max(1, len(text.encode()) // BYTES_PER_TOKEN)
    on_notice(NoticeEvent(f"{well_formed(name)}: about {tokens:,} tokens"))
    return well_formed(name), text


def read_page(address: str, offline: bool) -> str:
    """The text of a web page. Raises UsageError, and PromptTooLong for more than a prompt can hold."""
    if offline or is_hub_offline():
        problem = f"{address} cannot be read: the network is disabled"
        raise UsageError(problem, "omit --offline, or unset HF_HUB_OFFLINE")
    from cerebrum_cli.attachments.web_page import fetch

    page = fetch(address)
    if not is_document(Path(f"page{page.suffix}")):
        return decode_text(page.data, address, MAX_PROMPT_BYTES, PromptTooLong)
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile(suffix=page.suffix) as file:
        file.write(page.data)
        file.flush()
        return document_text(Path(file.name), address)


def _read_found(
    path: Path, search: FileSearch, seen: set[str], skipped: list[Skipped], on_notice: OnNotice
) -> list[PromptFile]:
    """The texts that a directory or pattern leads to, other than those already `seen`; adds to both collections.

    Raises UsageError if it leads to no text file, and PromptTooLong.
    """
    from cerebrum_cli.attachments.file_search import Skipped

    with readable(path):
        matches = search.find(skipped)
    new = [match for match in matches if os.path.realpath(match) not in seen]
    seen.update(map(os.path.realpath, new))
    if new and is_document(path):
        require_markitdown(path.name)
    files: list[PromptFile] = []
    left_out: list[Skipped] = []
    size = 0
    for match in new:
        shown = match.relative_to(Path.cwd()) if match.is_relative_to(Path.cwd()) else match
        try:
            files.append(_read_match(shown, match.suffix == path.suffix, on_notice))
        except UsageError as error:
            reason = error.message.removeprefix(str(shown)).lstrip(": ")
            left_out.append(Skipped(shown, reason))
            continue
        size += len(fence_file(*files[-1]))
        if size > MAX_PROMPT_BYTES:
            problem = f"the files in {path} exceed {format_size(MAX_PROMPT_BYTES)} in total"
            raise PromptTooLong(problem, "name fewer files")
    if not files and len(new) == len(matches):
        problem = f"{path}: no text files found"
        raise UsageError(f"{problem}: {listed(left_out)}" if left_out else problem, LEFT_OUT)
    skipped += left_out
    return files


def _read_match(path: Path, is_meant: bool, on_notice: OnNotice) -> PromptFile:
    """Read a file that was found, also a document or picture if files of its type are meant. Raises UsageError."""
    if is_meant and (is_document(path) or is_picture(path)):
        return _read_named(path, on_notice)
    return well_formed(str(path)), found_text(path)


@frozen
class PromptSources:
    """The sources of a question: the argument (`-` is standard input), files, or a messages list.

    They are the input of a saved prompt, if there is one; of a messages list, its last message.
    `files` may be directories, patterns and web addresses; `on_notice` receives what was left out of them.
    """

    prompt: str | None
    files: Sequence[Path | str]
    messages: Path | None
    raw: bool
    on_notice: OnNotice
    saved: SavedPrompt | None = None
    offline: bool = False

    def validate(self, piped: SupportsRead[bytes] | None) -> None:
        """Raise UsageError for sources that cannot give a question, such as a missing file. Reads nothing."""
        if self.messages is not None and (self.prompt is not None or self.files or self.raw):
            raise UsageError("--messages cannot be combined with a prompt, --file or --raw", "omit them")
        if self.prompt and well_formed(self.prompt) != self.prompt:
            raise UsageError("the prompt is not UTF-8 text", "convert it to UTF-8")
        if self.files:
            from cerebrum_cli.attachments.file_search import search_of

            for path in self.files:
                if isinstance(path, Path) and path != STANDARD_INPUT and search_of(path) is None:
                    with readable(path):
                        path.stat()
        if piped is not None:
            return
        if self.messages == STANDARD_INPUT:
            raise UsageError("--messages is `-`, but nothing is piped in", "pipe the list in, or name a file")
        if self.prompt == "-":
            raise UsageError("the prompt is `-`, but nothing is piped in", "pipe it in, or give it as an argument")
        if self.messages is None and not self.files:
            fill(self.saved, self.prompt or "")

    def read(self, piped: SupportsRead[bytes] | None, settings: Settings, system: str | None) -> Conversation:
        """Read all sources. Raises UsageError for a source that cannot be read, PromptTooLong for one without end.

        A question gets the system prompt of the settings; a messages list only one given on the command line.
        """
        if self.messages is not None:
            if self.messages == STANDARD_INPUT and piped is not None:
                conversation = parse_messages(read_piped(piped), "standard input")
            else:
                text = read_text(self.messages, MAX_PROMPT_BYTES, PromptTooLong)
                conversation = parse_messages(text, str(self.messages))
            if self.saved:
                conversation = conversation.with_question(self.saved.fill(conversation.question))
            return conversation if system is None else replace(conversation, system_prompt=system)
        appended = read_piped(piped) if piped else None
        prompt = None if self.prompt == "-" else self.prompt
        files = read_files(self.files, self.on_notice, self.offline)
        pictures = pictures_of(files)
        if self.raw:
            texts = [*(content for _, content in files if isinstance(content, str)), prompt or "", appended or ""]
            return Conversation().user(fill(self.saved, "".join(texts)), pictures)
        question = compose_prompt(prompt, files, appended, self.saved)
        return Conversation(system_prompt=settings.system).user(question, pictures)


def compose_prompt(
    prompt: str | None, files: Sequence[PromptFile], piped: str | None, saved: SavedPrompt | None = None
) -> str:
    """Join the parts of a question: files first, so that further questions about them reuse the prefix.

    They are the input of a `saved` prompt. Raises UsageError for an empty question.
    """
    blocks = []
    for name, content in files:
        blocks.append(fence_file(name, content).rstrip("\n"))
    for given in (prompt, piped):
        if given and given.strip():
            blocks.append(given.rstrip("\n"))
    return fill(saved, "\n\n".join(blocks))


def fill(saved: SavedPrompt | None, input: str) -> str:
    """The question that a saved prompt makes of an input, without one the input. Raises UsageError if it is empty."""
    prompt = saved.fill(input) if saved else input
    if not prompt:
        raise UsageError("no prompt given", 'give one: cerebrum ask "...", or pipe one in')
    return prompt


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_TYPES


def read_picture(path: Path) -> Picture:
    from base64 import b64encode

    with readable(path):
        data = read_beginning(path, MAX_PICTURE_BYTES)
    if len(data) > MAX_PICTURE_BYTES:
        raise UsageError(f"{path} is larger than {format_size(MAX_PICTURE_BYTES)}", "make the picture smaller")
    return Picture(f"data:{PICTURE_TYPES[path.suffix.lower()]};base64,{b64encode(data).decode()}")


def pictures_of(files: Sequence[PromptFile]) -> Pictures:
    return tuple(content for _, content in files if isinstance(content, Picture))


def fence_file(name: str, content: str | Picture) -> str:
    """Format a file as its name and a code block; a picture, which is sent apart, only as its name."""
    if isinstance(content, Picture):
        return f"[picture {one_line(name)}]"
    language = Path(name).suffix.lstrip(".")
    if is_address(name) or is_document(Path(name)):
        language = ""
    return f"{name}:\n{code_block(content, language)}"


def parse_messages(text: str, name: str) -> Conversation:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{name} is not JSON: {error}", 'it must be a list like [{"role": "user", "content": "..."}]'
        ) from error
    if isinstance(items, dict):
        items = items.get("messages")
    return conversation_from_messages(items, name)


def found_text(path: Path) -> str:
    """The text of a file. Raises UsageError with the reason why it is left out."""
    try:
        data = read_beginning(path, MAX_FOUND_BYTES)
    except OSError as error:
        raise UsageError(error.strerror or "unreadable") from error
    if len(data) > MAX_FOUND_BYTES:
        raise UsageError(f"over {format_size(MAX_FOUND_BYTES)}: name it to include it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError("binary") from error
    if "\0" in text:
        raise UsageError("binary")
    return text


def listed(skipped: Sequence[Skipped]) -> str:
    return format_names([f"{well_formed(str(file.path))} ({file.reason})" for file in skipped])


def read_piped(piped: SupportsRead[bytes]) -> str:
    return decode_text(piped.read(MAX_PROMPT_BYTES + 1), "standard input", MAX_PROMPT_BYTES, PromptTooLong)


def is_document(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS


def document_text(path: Path, name: str) -> str:
    """The text of a document as Markdown. Raises UsageError if it has none, or cannot be converted."""
    with readable(path):
        path.stat()
    require_markitdown(name)
    text = decode_text(_converted(path, name), f"the text of {name}", MAX_PROMPT_BYTES, PromptTooLong)
    if not text.strip():
        raise UsageError(f"{name}: no text found", "if its pages are images, recognize their text first (OCR)")
    return text


def require_markitdown(name: str) -> None:
    from importlib.util import find_spec

    if find_spec("markitdown") is None:
        raise UsageError(f"{name}: documents need markitdown", pip_install('"cerebrum-cli[documents]"'))


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
