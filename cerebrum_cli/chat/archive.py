"""A session with all its messages, as an object, as Markdown, and in the formats of other programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cerebrum_cli.chat.model_view import conversation_of, has_valid_tokens, without_last
from cerebrum_cli.chat.reply_params import settings_of
from cerebrum_cli.chat.session import CHAT_TEMPLATE, Messages, Session, StoredMessage, printable_name
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import SessionError, UsageError
from cerebrum_cli.core.files import atomic_write
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.messages import REASONING_KEYS, conversation_from_messages, wire_message
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.core.text import code_block, format_utc
from cerebrum_cli.formats.prompt_format import THINK
from cerebrum_cli.replies.interface import Model, open_source
from cerebrum_cli.replies.source import ModelSource

SUFFIX_FORMATS = {".md": "markdown", ".json": "json", ".sharegpt": "sharegpt", ".txt": "transcript"}
_SHAREGPT = {"human": "user", "gpt": "assistant"}
_SHAREGPT_NAMES = {role: name for name, role in _SHAREGPT.items()}
_MARKED = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)  # reasoning before an answer
_FENCE = re.compile("^```", re.MULTILINE)
_EXPECTED = 'expected OpenAI\'s {"messages": [...]} or ShareGPT\'s {"conversations": [...]}'


@frozen
class ArchivedSession:
    """A session with its messages, and those on other branches, each with its place in a conversation."""

    session: Session
    messages: Messages
    alternatives: list[tuple[int, StoredMessage]]

    @property
    def object(self) -> JsonDict:
        """The object of `sessions show --json`."""
        return {
            **self.session.fields,
            "system_prompt": self.session.system_prompt,
            "params": self.session.params,
            "messages": [_message_object(stored) for stored in self.messages],
            "alternatives": [{"place": place, **_message_object(stored)} for place, stored in self.alternatives],
        }

    @property
    def markdown_parts(self) -> Iterator[tuple[str, str]]:
        """The parts of its Markdown, each with the role of who wrote it, if anybody did."""
        yield "", f"# {printable_name(self.session.name)}"
        if self.session.system_prompt is not None:
            yield "", "## System"
            yield "system", self.session.system_prompt
        for stored in self.messages:
            yield "", f"## {stored.message.role.capitalize()}"
            yield from _message_parts(stored)
        if self.alternatives:
            yield "", "## Alternatives"
        for place, stored in self.alternatives:
            yield "", f"### {stored.message.role.capitalize()} (message {place})"
            yield from _message_parts(stored)

    def export(self, export_format: str) -> str:
        """The session with its alternatives as `markdown`, `json` (OpenAI messages) or `sharegpt`."""
        if export_format == "markdown":
            return "\n\n".join(text for _, text in self.markdown_parts) + "\n"
        names = {"name": self.session.name, "model": self.session.model}
        key, turns_of = "messages", _openai_turns
        if export_format == "sharegpt":
            names = {"id": self.session.name}
            key, turns_of = "conversations", _sharegpt_turns
        messages = tuple(stored.message for stored in self.messages)
        exported = {**names, key: turns_of(Conversation(messages, self.session.system_prompt))}
        others = []
        for place, stored in self.alternatives:
            others += [{"place": place, **turn} for turn in turns_of(Conversation((stored.message,)))]
        if others:
            exported["alternatives"] = others
        return json.dumps(exported, ensure_ascii=False, indent=2) + "\n"

    def transcript(self, source: ModelSource) -> str:
        """The exact prompt and last reply; loads only the model's vocabulary."""
        recorded = self.session.params.get(CHAT_TEMPLATE, source.settings.chat_template)
        template = recorded if self.session.format == EMBEDDED else None
        settings = replace(source.settings, format=self.session.format, chat_template=template)
        with open_source(replace(source, vocabulary_only=True, settings=settings)) as loaded:
            return self.transcript_by(loaded)

    def transcript_by(self, loaded: Model) -> str:
        """The exact prompt and last reply, by a model that is loaded."""
        settings = loaded.source.settings
        conversation = conversation_of(self.session, self.messages, loaded.model)
        if self.messages:
            last = self.messages[-1]
            settings = settings_of(last, settings)
            # Nothing follows the last reply, so its own tokens are exact even if it ended while reasoning.
            if has_valid_tokens(last, loaded.model):
                conversation = replace(conversation, messages=(*conversation.messages[:-1], last.message))
        return format_transcript(loaded, settings.applied_to(conversation))

    def write(self, path: Path, loaded: Model) -> None:
        """Export to a new file, in the format of its suffix. Raises UsageError if that is not possible."""
        export_format = SUFFIX_FORMATS.get(path.suffix)
        if export_format is None:
            raise UsageError(f"{path}: unsupported file type", f"use one of {', '.join(SUFFIX_FORMATS)}")
        text = self.transcript_by(loaded) if export_format == "transcript" else self.export(export_format)
        if path.exists():
            raise UsageError(f"{path} already exists", "choose another file")
        try:
            atomic_write(path, text.encode())  # a partial file would make the next attempt fail
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}", "choose another file") from error


def _message_parts(stored: StoredMessage) -> Iterator[tuple[str, str]]:
    role, content, end = stored.message.role, stored.message.content.strip(), stored.early_end
    for picture in stored.message.pictures:
        if not picture.path:  # whose name is not in the text
            yield role, "[picture]"
    for part in stored.message.rounds:
        if part.content:
            yield role, part.content
        for call in part.calls:
            yield "", code_block(f"{call}\n-> {call.result}")
    if end and len(_FENCE.findall(content)) % 2:  # the reply ended within a code block
        content += "\n```"
    if content:
        yield role, content
    if end:
        yield "", f"*({end})*"


def _openai_turns(conversation: Conversation) -> list[JsonDict]:
    """Messages of OpenAI's API, with the key that servers add for reasoning."""
    messages = []
    for turn in conversation.turns:
        message = wire_message(turn)
        if reasoning := getattr(turn.value, "reasoning", None):
            message["reasoning_content"] = reasoning
        messages.append(message)
    return messages


def _sharegpt_turns(conversation: Conversation) -> list[JsonDict]:
    """Messages of ShareGPT, with the keys of OpenAI's API for function calls."""
    turns = []
    for message in _openai_turns(conversation):
        role, content = message.pop("role"), message.pop("content")
        if reasoning := message.pop("reasoning_content", None):
            content = THINK.wrap(reasoning) + content
        turns.append({"from": _SHAREGPT_NAMES.get(role, role), "value": content, **message})
    return turns


def parse_conversation(text: str, source: str) -> tuple[str | None, Conversation]:
    """Parse either JSON format into a name, if there is one, and a conversation. Raises SessionError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SessionError(f"{source} is not JSON: {error}", _EXPECTED) from error
    match value:
        case [{"conversations": _}, *others]:  # ShareGPT files are lists of conversations
            if others:
                raise SessionError(f"{source} holds {len(value)} conversations", "import them one at a time")
            value = value[0]
    outer = value if isinstance(value, dict) else {"messages": value}
    items = outer.get("messages") or outer.get("conversations")
    if not isinstance(items, list):
        raise SessionError(f"{source} holds no conversation", _EXPECTED)
    try:
        conversation = conversation_from_messages([*map(_openai_message, items)], source, is_request=False)
    except UsageError as error:
        raise SessionError(error.message, _EXPECTED) from error
    if not conversation.messages:
        raise SessionError(f"{source} holds no turns", _EXPECTED)
    name = outer.get("name") or outer.get("id")
    if not isinstance(name, str):
        return None, conversation
    return printable_name(name) or None, conversation


def format_transcript(model: Model, conversation: Conversation) -> str:
    if not (conversation.messages and conversation.messages[-1].role == "assistant"):
        return f"{model.preview(conversation)[0]}\n"
    last = conversation.messages[-1]
    prompt, _ = model.preview(replace(without_last(conversation), thinks=last.thinks))
    if last.tokens is not None:
        return f"{prompt}{model.detokenize(last.tokens)}\n"
    if not prompt[-1:].isspace():
        prompt += " "
    return f"{prompt}{last.content}\n"


def _message_object(stored: StoredMessage) -> JsonDict:
    metadata = asdict(stored.metadata)
    del metadata["vocabulary"]
    if stored.message.rounds:
        metadata["calls"] = [asdict(call) for part in stored.message.rounds for call in part.calls]
    if stored.message.pictures:
        metadata["pictures"] = [picture.record for picture in stored.message.pictures]
    created = format_utc(stored.created)
    texts = {"role": stored.message.role, "content": stored.message.content, "reasoning": stored.message.reasoning}
    return {**texts, **metadata, "created": created}


def _openai_message(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    role = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    reasoning = next(filter(None, map(item.get, REASONING_KEYS)), None)
    role = _SHAREGPT.get(str(role), role)
    if isinstance(content, str) and role == "assistant" and not reasoning:
        marked = _MARKED.match(content)
        if marked:
            reasoning, content = marked[1].strip(), content[marked.end() :]
    return {**item, "role": role, "content": content, "reasoning_content": reasoning}
