"""Saved sessions for `cerebrum sessions`: rows and objects, export, import and deletion."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.chat.history import (
    CHAT_TEMPLATE,
    History,
    has_valid_tokens,
    load_conversation,
    settings_of,
    with_thinking,
)
from cerebrum_cli.chat.session import (
    ReplyMetadata,
    Session,
    StoredMessage,
    printable_name,
    suggest_name,
    without_files,
)
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Conversation, conversation_from_messages
from cerebrum_cli.core.errors import SessionError, UsageError
from cerebrum_cli.core.files import atomic_write, remove
from cerebrum_cli.core.text import MATCH_BEGIN, MATCH_END, format_utc
from cerebrum_cli.engine.sequence import TOKEN_BYTES
from cerebrum_cli.engine.state_store import read_states
from cerebrum_cli.formats.plain import EMBEDDED
from cerebrum_cli.formats.thinking import REASONING_MARKUPS
from cerebrum_cli.replies.interface import open_source
from cerebrum_cli.replies.loaded_model import LoadedModel
from cerebrum_cli.replies.prompt_sources import read_text
from cerebrum_cli.replies.source import ModelSource

DAY_S = 86_400
MAX_IMPORT_BYTES = 1_000_000_000
MIN_REPLY_TOKENS = 8  # shorter ones may occur in any conversation
MAX_END_TOKENS = 4  # of a reply's last token and the end of its turn
SUFFIX_FORMATS = {".md": "markdown", ".json": "json", ".sharegpt": "sharegpt", ".txt": "transcript"}
_SHAREGPT = {"human": "user", "gpt": "assistant"}
_MARKED = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)  # reasoning before an answer
_AROUND = '" \n'  # a question, and text that the prompt takes as several lines
_TYPED = re.compile(r"\n# [^\n]*\n((?:\+[^\n]*\n)+)")  # a question in the prompt's history, after its time
_FENCE = re.compile("^```", re.MULTILINE)
_EXPECTED = 'expected OpenAI\'s {"messages": [...]} or ShareGPT\'s {"conversations": [...]}'


def session_rows(store: Store) -> list[dict[str, Any]]:
    return [
        {**_session_fields(summary.session), "messages": summary.messages, "first": without_files(summary.first)}
        for summary in store.summaries()
    ]


def session_object(store: Store, session: Session) -> dict[str, Any]:
    return {
        **_session_fields(session),
        "system_prompt": session.system_prompt,
        "params": session.params,
        "messages": [_message_object(stored) for stored in store.messages(session)],
        "alternatives": [{"place": place, **_message_object(stored)} for place, stored in store.alternatives(session)],
    }


def search_rows(store: Store, text: str, *, marks_words: bool) -> list[dict[str, Any]]:
    """Build the rows of `sessions search`, best match first; marked words are between MATCH_BEGIN and MATCH_END."""
    removed = str.maketrans("", "", "" if marks_words else MATCH_BEGIN + MATCH_END)
    return [
        {
            "session": hit.session.name,
            "role": hit.message.message.role,
            "excerpt": " ".join(hit.excerpt.translate(removed).split()),
        }
        for hit in store.search(text)
    ]


def export_session(store: Store, session: Session, export_format: str) -> str:
    """Export a session with its alternatives, as `markdown`, `json` (OpenAI messages) or `sharegpt`."""
    messages, alternatives = store.messages(session), store.alternatives(session)
    if export_format == "markdown":
        return to_markdown(session.name, session.system_prompt, messages, alternatives)
    is_sharegpt = export_format == "sharegpt"
    head = [] if session.system_prompt is None else [_turn("system", session.system_prompt, None, is_sharegpt)]
    turns = head + [_turn(*_texts(stored), is_sharegpt) for stored in messages]
    others = [{"place": place, **_turn(*_texts(stored), is_sharegpt)} for place, stored in alternatives]
    names: dict[str, Any] = {"id": session.name} if is_sharegpt else {"name": session.name, "model": session.model}
    key = "conversations" if is_sharegpt else "messages"
    return _format_json(names | {key: turns} | ({"alternatives": others} if others else {}))


def to_markdown(
    name: str,
    system_prompt: str | None,
    messages: Sequence[StoredMessage],
    alternatives: Sequence[tuple[int, StoredMessage]] = (),
) -> str:
    parts = [f"# {name}"]
    if system_prompt is not None:
        parts += ["## System", system_prompt]
    for stored in messages:
        parts += _markdown_parts(f"## {stored.message.role.capitalize()}", stored)
    if alternatives:
        parts.append("## Alternatives")
    for place, stored in alternatives:
        parts += _markdown_parts(f"### {stored.message.role.capitalize()} (message {place})", stored)
    return "\n\n".join(filter(None, parts)) + "\n"


def _markdown_parts(title: str, stored: StoredMessage) -> list[str]:
    content, end = stored.message.content.strip(), stored.early_end
    if end and len(_FENCE.findall(content)) % 2:  # the reply ended within a code block
        content += "\n```"
    return [title, content, f"*({end})*" if end else ""]


def _texts(stored: StoredMessage) -> tuple[str, str, str | None]:
    return stored.message.role, stored.message.content, stored.metadata.reasoning


def _turn(role: str, content: str, reasoning: str | None, is_sharegpt: bool) -> dict[str, Any]:
    """A message of ShareGPT, or of OpenAI's API, with the key that servers add for reasoning."""
    if is_sharegpt:
        name = next((name for name, named in _SHAREGPT.items() if named == role), role)
        return {"from": name, "value": REASONING_MARKUPS[0].wrap(reasoning) + content if reasoning else content}
    return {"role": role, "content": content} | ({"reasoning_content": reasoning} if reasoning else {})


def parse_conversation(text: str, source: str) -> tuple[str | None, Conversation]:
    """Parse either JSON format into a name, if there is one, and a conversation. Raises SessionError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SessionError(f"{source} is not JSON: {error}", _EXPECTED) from error
    if isinstance(value, list) and value and isinstance(value[0], dict) and "conversations" in value[0]:
        if len(value) > 1:
            raise SessionError(f"{source} holds {len(value)} conversations", "import them one at a time")
        value = value[0]  # ShareGPT files are lists of conversations
    outer = value if isinstance(value, dict) else {"messages": value}
    name = outer.get("name") or outer.get("id")
    items = outer.get("messages") or outer.get("conversations")
    if not isinstance(items, list):
        raise SessionError(f"{source} holds no conversation", _EXPECTED)
    try:
        conversation = conversation_from_messages([*map(_openai_message, items)], source, is_request=False)
    except UsageError as error:
        raise SessionError(error.message, _EXPECTED) from error
    if not conversation.messages:
        raise SessionError(f"{source} holds no turns", _EXPECTED)
    return (printable_name(name) or None if isinstance(name, str) else None), conversation


def export_transcript(source: ModelSource, store: Store, session: Session) -> str:
    """Export the exact prompt and last reply of a session; loads only the model's vocabulary."""
    recorded = session.params.get(CHAT_TEMPLATE, source.settings.chat_template)
    template = recorded if session.format == EMBEDDED else None
    settings = replace(source.settings, format=session.format, chat_template=template)
    loaded = open_source(replace(source, vocabulary_only=True, settings=settings))
    try:
        return _transcript(loaded, store, session)
    finally:
        loaded.engine.close()


def _transcript(loaded: LoadedModel, store: Store, session: Session) -> str:
    model = loaded.model
    last, settings = store.messages(session)[-1:], loaded.source.settings
    conversation = load_conversation(store, session, model, settings_of(last[0], settings) if last else settings)
    # Nothing follows the last reply, so its own tokens are exact even if it ended while reasoning.
    if last and has_valid_tokens(last[0], model):
        conversation = replace(conversation, messages=(*conversation.messages[:-1], with_thinking(last[0])))
    return format_transcript(loaded, conversation)


def format_transcript(model: LoadedModel, conversation: Conversation) -> str:
    if not (conversation.messages and conversation.messages[-1].role == "assistant"):
        return f"{model.preview(conversation)[0]}\n"
    last = conversation.messages[-1]
    prompt, _ = model.preview(replace(conversation, messages=conversation.messages[:-1], thinks=last.thinks))
    if last.tokens is not None:
        return f"{prompt}{model.detokenize(last.tokens)}\n"
    return f"{prompt}{'' if prompt[-1:].isspace() else ' '}{last.content}\n"


def export_to_file(path: Path, store: Store, session: Session, loaded: LoadedModel) -> None:
    """Export a session to a new file, in the format of its suffix. Raises UsageError if that is not possible."""
    export_format = SUFFIX_FORMATS.get(path.suffix)
    if export_format is None:
        raise UsageError(f"{path}: unsupported file type", f"use one of {', '.join(SUFFIX_FORMATS)}")
    is_transcript = export_format == "transcript"
    text = _transcript(loaded, store, session) if is_transcript else export_session(store, session, export_format)
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
    if not (match := re.fullmatch(r"(\d+)([dw])", age)):
        raise UsageError.invalid("--older-than", age, "days or weeks, such as 30d or 8w")
    limit = time.time() - int(match[1]) * DAY_S * (7 if match[2] == "w" else 1)
    return [summary.session for summary in store.summaries() if summary.session.updated < limit]


def delete_sessions(
    history: History, sessions: Sequence[Session], states: Path, typed: Path
) -> Iterator[tuple[Session, int]]:
    """Erase sessions and every trace of their text; yield each with the number of messages deleted.

    `states` is the directory of the prompt cache, `typed` the file with the prompt's history. Raises SessionError for a
    session that is open in another process; those before it are erased.
    """
    before, questions = history.store.sampled_tokens(), history.store.questions()
    try:
        for session in sessions:
            history.lock(session)
            count = history.store.remove(session)
            history.release(removes=True)
            yield session, count
    finally:
        kept, asked = history.store.sampled_tokens(), history.store.questions()
        forget_questions(typed, {*questions.values()} - {*asked.values()})
        deleted = [tokens for message, tokens in before.items() if message not in kept]
        for path in states_to_delete(read_states(states), deleted, kept.values()):
            remove(path)
        history.store.vacuum()


def forget_questions(path: Path, questions: Collection[str]) -> None:
    """Remove questions from the prompt's history, in the form that prompt_toolkit writes."""

    gone = [question.strip(_AROUND) for question in questions]

    def without(entry: re.Match[str]) -> str:
        text = "\n".join(line[1:] for line in entry[1].splitlines())
        typed = re.sub(r"\A/votes \S+ ", "", text).strip(_AROUND)
        return "" if typed and any(f"\n{text}".endswith(f"\n{typed}") for text in gone) else entry[0]

    with contextlib.suppress(FileNotFoundError):
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        kept = _TYPED.sub(without, text)
        if kept != text:
            atomic_write(path, kept.encode("utf-8", "surrogateescape"))


def states_to_delete(states: Mapping[Path, bytes], deleted: Iterable[bytes], kept: Iterable[bytes]) -> set[Path]:
    """Choose the states of the prompt cache that may hold text of deleted sessions.

    All values are packed tokens: `states` by file, and the replies of deleted and of kept messages. A state stays if it
    ends with a kept reply and holds no deleted one. So does one that such a state begins with. All others are deleted,
    since nothing shows whose prompt they end with.
    """
    gone = [reply[:-TOKEN_BYTES] for reply in deleted if len(reply) > TOKEN_BYTES]  # the last token is not evaluated
    ends = tuple(reply[:-TOKEN_BYTES] for reply in kept if len(reply) >= MIN_REPLY_TOKENS * TOKEN_BYTES)
    cuts = range(0, (MAX_END_TOKENS + 1) * TOKEN_BYTES, TOKEN_BYTES)
    staying = [
        held
        for held in states.values()
        if any(held[: max(0, len(held) - cut)].endswith(ends) for cut in cuts)
        and not any(reply in held for reply in gone)
    ]
    return {path for path, held in states.items() if not held or not any(state.startswith(held) for state in staying)}


def _session_fields(session: Session) -> dict[str, Any]:
    texts = {key: getattr(session, key) for key in ("name", "origin", "model", "format")}
    return {**texts, "created": format_utc(session.created), "updated": format_utc(session.updated)}


def _message_object(stored: StoredMessage) -> dict[str, Any]:
    keys = ("reasoning", "finish_reason", "model", "format", "params", "seed", "timings")
    return {
        "role": stored.message.role,
        "content": stored.message.content,
        **{key: getattr(stored.metadata, key) for key in keys},
        "created": format_utc(stored.created),
    }


def _format_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _openai_message(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    role, reasoning = _SHAREGPT.get(str(role), role), item.get("reasoning_content") or item.get("reasoning")
    if isinstance(content, str) and role == "assistant" and not reasoning and (marked := _MARKED.match(content)):
        reasoning, content = marked[1].strip(), content[marked.end() :]
    return {"role": role, "content": content, "reasoning_content": reasoning}
