"""What a question is made of: an argument, files, standard input, or a whole conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cerebrum_cli.core.conversation import Conversation, conversation_from_messages
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import well_formed

BYTES_PER_TOKEN = 4  # of English a token stands for, about


class Readable(Protocol):
    """Something whose bytes can be read to their end."""

    def read(self) -> bytes:
        """Return all of them."""


@dataclass(frozen=True, slots=True)
class Question:
    """Where a question comes from: the argument (`-` is standard input), files, or a messages list."""

    prompt: str | None
    files: tuple[Path, ...]
    messages: Path | None
    raw: bool

    def validate(self, piped: Readable | None) -> None:
        """Raise UsageError where there can be no question, whatever is read."""
        if self.messages is not None and (self.prompt is not None or self.files or self.raw):
            raise UsageError("--messages holds the whole conversation", "leave out the prompt, --file and --raw")
        if piped is not None:
            return
        if self.messages == Path("-"):
            raise UsageError("--messages is `-`, and nothing is piped in", "pipe the list in, or name a file")
        if self.prompt == "-":
            raise UsageError("the prompt is `-`, and nothing is piped in", "pipe it in, or give it as an argument")
        if self.messages is None and not self.files:
            require_prompt(self.prompt or "")

    def read(self, piped: Readable | None, settings: Settings, system: str | None) -> Conversation:
        """Read all of it; UsageError for what cannot be read, or does not fit together.

        A system prompt from the settings is for questions; a messages list yields only to a given one.
        """
        self.validate(piped)
        if self.messages is not None:
            return self._read_messages(self.messages, piped, system)
        text = decode_text(piped.read(), "standard input") if piped else None
        prompt = None if self.prompt in (None, "-") else well_formed(self.prompt)
        if self.raw:
            texts = [*(read_text(file) for file in self.files), prompt or "", text or ""]
            return Conversation().user(require_prompt("".join(texts)))
        files = [(str(file), read_text(file)) for file in self.files]
        return Conversation(system_prompt=settings.system).user(compose_prompt(prompt, files, text))

    def _read_messages(self, source: Path, piped: Readable | None, system: str | None) -> Conversation:
        if source == Path("-") and piped is not None:
            text, name = decode_text(piped.read(), "standard input"), "standard input"
        else:
            text, name = read_text(source), str(source)
        conversation = parse_messages(text, name)
        return conversation if system is None else replace(conversation, system_prompt=system)


def compose_prompt(prompt: str | None, files: Sequence[tuple[str, str]], piped: str | None) -> str:
    """Return the question: files first, so that asking again about them re-uses what was read; then prompt and pipe."""
    blocks = [fence_file(name, text) for name, text in files]
    blocks += [text for text in (prompt, piped) if text and text.strip()]
    return require_prompt("\n\n".join(block.rstrip("\n") for block in blocks))


def require_prompt(prompt: str) -> str:
    """Return a prompt that says something; UsageError for an empty one."""
    if not prompt:
        raise UsageError("there is no prompt", 'give one: cerebrum ask "..."  or pipe one in')
    return prompt


def fence_file(name: str, text: str) -> str:
    """Return a file's text under its name, in a fence longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    language = Path(name).suffix.lstrip(".")
    return f"{name}:\n{fence}{language}\n{text.rstrip()}\n{fence}"


def read_text(path: Path) -> str:
    """Return a file's text; UsageError if there is none or it is not UTF-8."""
    try:
        return decode_text(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", "check the path") from error


def decode_text(data: bytes, name: str) -> str:
    """Return bytes as text without a byte order mark; UsageError if they are not UTF-8."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})", "convert it, or leave it out") from error


def parse_messages(text: str, name: str) -> Conversation:
    """Return an OpenAI messages list, or an object that holds one, as a conversation that awaits a reply."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{name} is not JSON: {error}", 'it must be a list like [{"role": "user", "content": "..."}]'
        ) from error
    if isinstance(items, dict):
        items = items.get("messages")
    return conversation_from_messages(items, name)


def estimate_tokens(conversation: Conversation | None) -> int:
    """Return about how many tokens a question has, before there is a vocabulary: what came before it is kept, read."""
    messages = conversation.messages if conversation else ()
    answered = max((at for at, message in enumerate(messages) if message.role == "assistant"), default=-1)
    texts = [message.content for message in messages[answered + 1 :]]
    if conversation and conversation.system_prompt and answered < 0:
        texts.append(conversation.system_prompt)
    return sum(len(text.encode("utf-8", "replace")) for text in texts) // BYTES_PER_TOKEN


def template_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Return KEY=VALUE pairs as a mapping; a value that is JSON is read as that, any other is text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--template-arg {pair!r}", "write it as KEY=VALUE")
        if key == "messages":
            raise UsageError("--template-arg messages would replace the conversation", "use --messages FILE")
        try:
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = value
    return options
