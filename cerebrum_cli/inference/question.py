"""Read a question from the argument, files and standard input, or a conversation from a messages list."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cerebrum_cli.core.conversation import Conversation, conversation_from_messages
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.saved_prompt import SavedPrompt
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.inference.files import read_prompt_files
from cerebrum_cli.inference.text import Readable, read_piped, read_prompt


@dataclass(frozen=True, slots=True)
class Question:
    """The sources of a question: the argument (`-` is standard input), files, or a messages list.

    They are the input of a saved prompt, if there is one; of a messages list, its last message.
    `files` may be directories and patterns; `on_notice` receives what was left out of them.
    """

    prompt: str | None
    files: tuple[Path, ...]
    messages: Path | None
    raw: bool
    on_notice: Callable[[NoticeEvent], None]
    saved: SavedPrompt | None = None

    def validate(self, piped: Readable | None) -> None:
        """Raise UsageError for sources that cannot give a question. Reads nothing."""
        if self.messages is not None and (self.prompt is not None or self.files or self.raw):
            raise UsageError("--messages cannot be combined with a prompt, --file or --raw", "omit them")
        if piped is not None:
            return
        if self.messages == Path("-"):
            raise UsageError("--messages is `-`, but nothing is piped in", "pipe the list in, or name a file")
        if self.prompt == "-":
            raise UsageError("the prompt is `-`, but nothing is piped in", "pipe it in, or give it as an argument")
        if self.messages is None and not self.files:
            require_prompt(fill(self.saved, self.prompt or ""))

    def read(self, piped: Readable | None, settings: Settings, system: str | None) -> Conversation:
        """Read all sources. Raises UsageError for a source that cannot be read, PromptTooLong for one without end.

        A question gets the system prompt of the settings; a messages list only one given on the command line.
        """
        self.validate(piped)
        if self.messages is not None:
            return self._read_messages(self.messages, piped, system)
        text = read_piped(piped) if piped else None
        prompt = None if self.prompt in (None, "-") else well_formed(self.prompt)
        files = read_prompt_files(self.files, self.on_notice)
        if self.raw:
            texts = [*(content for _, content in files), prompt or "", text or ""]
            return Conversation().user(require_prompt(fill(self.saved, "".join(texts))))
        return Conversation(system_prompt=settings.system).user(compose_prompt(prompt, files, text, self.saved))

    def _read_messages(self, source: Path, piped: Readable | None, system: str | None) -> Conversation:
        if source == Path("-") and piped is not None:
            text, name = read_piped(piped), "standard input"
        else:
            text, name = read_prompt(source), str(source)
        conversation = parse_messages(text, name)
        if self.saved:
            conversation = conversation.with_question(self.saved.fill(conversation.question))
        return conversation if system is None else replace(conversation, system_prompt=system)


def compose_prompt(
    prompt: str | None, files: Sequence[tuple[str, str]], piped: str | None, saved: SavedPrompt | None = None
) -> str:
    """Join the parts of a question: files first, so that further questions about them reuse the prefix.

    They are the input of a `saved` prompt. Raises UsageError for an empty question.
    """
    blocks = [fence_file(name, text) for name, text in files]
    blocks += [text for text in (prompt, piped) if text and text.strip()]
    return require_prompt(fill(saved, "\n\n".join(block.rstrip("\n") for block in blocks)))


def fill(saved: SavedPrompt | None, input: str) -> str:
    """The question that a saved prompt makes of an input; without one, the input itself. Raises UsageError."""
    return saved.fill(input) if saved else input


def require_prompt(prompt: str) -> str:
    """Raise UsageError for an empty prompt; return any other."""
    if not prompt:
        raise UsageError("no prompt given", 'give one: cerebrum ask "..."  or pipe one in')
    return prompt


def fence_file(name: str, text: str) -> str:
    """Format a file as its name and a code block; the fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    language = Path(name).suffix.lstrip(".")
    return f"{name}:\n{fence}{language}\n{text.rstrip()}\n{fence}"


def parse_messages(text: str, name: str) -> Conversation:
    """Parse an OpenAI messages list, or an object with one, that ends with a question."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{name} is not JSON: {error}", 'it must be a list like [{"role": "user", "content": "..."}]'
        ) from error
    if isinstance(items, dict):
        items = items.get("messages")
    return conversation_from_messages(items, name)


def template_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE pairs; a value that is not JSON is text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"template_arg {pair!r}", "write it as KEY=VALUE")
        if key == "messages":
            raise UsageError("template_arg messages would replace the conversation", "use --messages FILE")
        try:
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = value
    return options
