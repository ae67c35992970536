"""Saved sessions for `cerebrum sessions`: rows and objects, export, import and deletion."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cerebrum_cli.chat.history import (
    CHAT_TEMPLATE,
    History,
    has_valid_tokens,
    load_conversation,
    settings_of,
    with_thinking,
    without_last,
)
from cerebrum_cli.chat.session import ReplyMetadata, Session, StoredMessage, printable_name, suggest_name, without_files
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import SessionError, UsageError
from cerebrum_cli.core.files import atomic_write, read_text
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.messages import REASONING_KEYS, conversation_from_messages, wire_message
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.core.text import Match, code_block, format_utc, one_line
from cerebrum_cli.engine.local import clear_prompt_cache
from cerebrum_cli.formats.prompt_format import THINK
from cerebrum_cli.replies.interface import Model, open_source
from cerebrum_cli.replies.source import ModelSource

UNITS_S = {"d": 86_400, "w": 604_800}
MAX_IMPORT_BYTES = 1_000_000_000
SUFFIX_FORMATS = {".md": "markdown", ".json": "json", ".sharegpt": "sharegpt", ".txt": "transcript"}
_SHAREGPT = {"human": "user", "gpt": "assistant"}
_SHAREGPT_NAMES = {role: name for name, role in _SHAREGPT.items()}
_MARKED = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)  # reasoning before an answer
_AROUND = '" \n'  # a question, and text that the prompt takes as several lines
_TYPED = re.compile(r"\n# [^\n]*\n((?:\+[^\n]*\n)+)")  # a question in the prompt's history, after its time
_FENCE = re.compile("^```", re.MULTILINE)
_EXPECTED = 'expected OpenAI\'s {"messages": [...]} or ShareGPT\'s {"conversations": [...]}'


def session_rows(store: Store) -> list[JsonDict]:
    rows = []
    for session, messages, first in store.summaries():
        rows.append({**_session_fields(session), "messages": messages, "first": without_files(first)})
    return rows


def session_object(store: Store, session: Session) -> JsonDict:
    return {
        **_session_fields(session),
        "system_prompt": session.system_prompt,
        "params": session.params,
        "messages": [_message_object(stored) for stored in store.messages(session)],
        "alternatives": [{"place": place, **_message_object(stored)} for place, stored in store.alternatives(session)],
    }


def search_rows(store: Store, text: str) -> list[JsonDict]:
    """The rows of `sessions search`, best match first."""
    rows = []
    for session, stored, excerpt in store.search(text):
        fields = {"session": session.name, "role": stored.message.role, "created": format_utc(stored.created)}
        rows.append({**fields, "excerpt": one_line(excerpt)})
    return rows


def export_session(store: Store, session: Session, export_format: str) -> str:
    """Export a session with its alternatives, as `markdown`, `json` (OpenAI messages) or `sharegpt`."""
    if export_format == "markdown":
        return "\n\n".join(text for _, text in markdown_parts(store, session)) + "\n"
    messages, alternatives = store.messages(session), store.alternatives(session)
    names = {"name": session.name, "model": session.model}
    key, turns_of = "messages", _openai_turns
    if export_format == "sharegpt":
        names = {"id": session.name}
        key, turns_of = "conversations", _sharegpt_turns
    conversation = Conversation(tuple(map(with_thinking, messages)), session.system_prompt)
    exported = {**names, key: turns_of(conversation)}
    others = []
    for place, stored in alternatives:
        others += [{"place": place, **turn} for turn in turns_of(Conversation((with_thinking(stored),)))]
    if others:
        exported["alternatives"] = others
    return json.dumps(exported, ensure_ascii=False, indent=2) + "\n"


def markdown_parts(store: Store, session: Session) -> Iterator[tuple[str, str]]:
    """A session in parts, each with the role of who wrote it, if anybody did."""
    yield "", f"# {printable_name(session.name)}"
    if session.system_prompt is not None:
        yield "", "## System"
        yield "system", session.system_prompt
    for stored in store.messages(session):
        yield "", f"## {stored.message.role.capitalize()}"
        yield from _message_parts(stored)
    alternatives = store.alternatives(session)
    if alternatives:
        yield "", "## Alternatives"
    for place, stored in alternatives:
        yield "", f"### {stored.message.role.capitalize()} (message {place})"
        yield from _message_parts(stored)


def _message_parts(stored: StoredMessage) -> Iterator[tuple[str, str]]:
    role, content, end = stored.message.role, stored.message.content.strip(), stored.early_end
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


def export_transcript(source: ModelSource, store: Store, session: Session) -> str:
    """Export the exact prompt and last reply of a session; loads only the model's vocabulary."""
    recorded = session.params.get(CHAT_TEMPLATE, source.settings.chat_template)
    template = recorded if session.format == EMBEDDED else None
    settings = replace(source.settings, format=session.format, chat_template=template)
    with open_source(replace(source, vocabulary_only=True, settings=settings)) as loaded:
        return _transcript(loaded, store, session)


def _transcript(loaded: Model, store: Store, session: Session) -> str:
    messages, settings = store.messages(session), loaded.source.settings
    if not messages:
        return format_transcript(loaded, load_conversation(store, session, loaded.model, settings))
    last = messages[-1]
    conversation = load_conversation(store, session, loaded.model, settings_of(last, settings))
    # Nothing follows the last reply, so its own tokens are exact even if it ended while reasoning.
    if has_valid_tokens(last, loaded.model):
        conversation = replace(conversation, messages=(*conversation.messages[:-1], with_thinking(last)))
    return format_transcript(loaded, conversation)


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


def export_to_file(path: Path, store: Store, session: Session, loaded: Model) -> None:
    """Export a session to a new file, in the format of its suffix. Raises UsageError if that is not possible."""
    export_format = SUFFIX_FORMATS.get(path.suffix)
    if export_format is None:
        raise UsageError(f"{path}: unsupported file type", f"use one of {', '.join(SUFFIX_FORMATS)}")
    if export_format == "transcript":
        text = _transcript(loaded, store, session)
    else:
        text = export_session(store, session, export_format)
    if path.exists():
        raise UsageError(f"{path} already exists", "choose another file")
    try:
        atomic_write(path, text.encode())  # a partial file would make the next attempt fail
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", "choose another file") from error


def import_session(store: Store, file: Path, name: str | None) -> Session:
    own_name, conversation = parse_conversation(read_text(file, MAX_IMPORT_BYTES), str(file))
    if name is None:
        name = store.unused_name(own_name or printable_name(file.stem) or suggest_name(conversation))
    with store.transaction():
        session = store.create(name, "import", system_prompt=conversation.system_prompt)
        for message in conversation.messages:
            session = store.add_message(session, message, ReplyMetadata(reasoning=message.reasoning))
    return session


def sessions_older_than(store: Store, age: str) -> list[Session]:
    """Sessions that have not changed for an age such as 30d or 8w. Raises UsageError."""
    match = re.fullmatch(r"(\d+)([dw])", age)
    if match is None:
        raise UsageError.invalid("--older-than", age, "days or weeks, such as 30d or 8w")
    limit = time.time() - int(match[1]) * UNITS_S[match[2]]
    return [summary.session for summary in store.summaries() if summary.session.updated < limit]


def delete_sessions(
    history: History, sessions: Sequence[Session], states: Path, typed: Path
) -> Iterator[tuple[Session, int]]:
    """Erase sessions and every trace of their text; yield each with the number of messages deleted.

    `states` is the directory of the prompt cache, which holds prompts and replies of any session and is emptied;
    `typed` is the file with the prompt's history. Raises SessionError for a session that is open in another process;
    those before it are erased.
    """
    before = history.store.questions()
    try:
        for session in sessions:
            history.lock(session)
            count = history.store.remove(session)
            history.release(removes=True)
            yield session, count
    finally:
        forget_questions(typed, before - history.store.questions())
        clear_prompt_cache(states)
        history.store.vacuum()


def forget_questions(path: Path, questions: Collection[str]) -> None:
    """Remove questions from the prompt's history, in the form that prompt_toolkit writes."""
    gone = [question.strip(_AROUND) for question in questions]

    def without(entry: Match) -> str:
        text = entry[1].replace("\n+", "\n")[1:-1]
        typed = re.sub(r"\A/votes \S+ ", "", text).strip(_AROUND)
        if typed and any(f"\n{question}".endswith(f"\n{typed}") for question in gone):
            return ""
        return entry[0]

    with suppress(FileNotFoundError):
        text = path.read_bytes().decode(errors="surrogateescape")
        kept = _TYPED.sub(without, text)
        if kept != text:
            atomic_write(path, kept.encode(errors="surrogateescape"))


def _session_fields(session: Session) -> JsonDict:
    return {
        "name": session.name,
        "origin": session.origin,
        "model": session.model,
        "format": session.format,
        "created": format_utc(session.created),
        "updated": format_utc(session.updated),
    }


def _message_object(stored: StoredMessage) -> JsonDict:
    metadata = asdict(stored.metadata)
    del metadata["vocabulary"]
    if stored.message.rounds:
        metadata["calls"] = [asdict(call) for part in stored.message.rounds for call in part.calls]
    created = format_utc(stored.created)
    return {"role": stored.message.role, "content": stored.message.content, **metadata, "created": created}


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
