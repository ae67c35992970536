"""What `cerebrum sessions` tells of kept conversations, writes and reads of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.application.chat.history import load_conversation, suggest_name
from cerebrum_cli.application.inference.loading import BackendFactory, LoadedModel, open_model
from cerebrum_cli.application.inference.question import read_text
from cerebrum_cli.application.inference.responder import LocalResponder
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import format_utc
from cerebrum_cli.sessions.exports import parse_conversation, to_markdown, to_openai_messages, to_sharegpt
from cerebrum_cli.sessions.names import printable_name
from cerebrum_cli.sessions.rows import Session, StoredMessage
from cerebrum_cli.sessions.store import Store

SUFFIX_FORMATS = {".md": "markdown", ".json": "json", ".sharegpt": "sharegpt", ".txt": "transcript"}


def session_rows(store: Store) -> list[dict[str, Any]]:
    """Return what `sessions list --json` prints, the last changed first."""
    return [
        {
            **_session_fields(summary.session),
            "messages": summary.messages,
            "first": summary.first,
        }
        for summary in store.summaries()
    ]


def session_object(store: Store, session: Session) -> dict[str, Any]:
    """Return what `sessions show --json` prints: what the session is led with, and all that is kept of its messages."""
    return {
        **_session_fields(session),
        "system_prompt": session.system_prompt,
        "params": session.params,
        "messages": [_message_object(stored) for stored in store.messages(session)],
    }


def search_rows(store: Store, text: str) -> list[dict[str, Any]]:
    """Return the messages that hold all words of a text, the best first."""
    return [
        {"session": hit.session.name, "role": hit.message.message.role, "excerpt": " ".join(hit.excerpt.split())}
        for hit in store.search(text)
    ]


def export_session(store: Store, session: Session, shape: str) -> str:
    """Return a session as Markdown, as OpenAI's messages (`json`) or as ShareGPT."""
    if shape == "markdown":
        return to_markdown(session.name, session.system_prompt, store.messages(session))
    conversation = store.conversation(session)
    if shape == "sharegpt":
        return _pretty(to_sharegpt(session.name, conversation))
    return _pretty({"name": session.name, "model": session.model, "messages": to_openai_messages(conversation)})


def export_transcript(factory: BackendFactory, model: Model, settings: Settings, store: Store, session: Session) -> str:
    """Return the exact text the model has read and said, with no more of it loaded than that takes."""
    opened = open_model(factory, model, replace(settings, format=session.format), vocabulary_only=True)
    try:
        return _transcript(opened, store, session)
    finally:
        opened.engine.close()


def _transcript(opened: LoadedModel, store: Store, session: Session) -> str:
    model = opened.model.reference
    conversation, last = load_conversation(store, session, model), store.messages(session)[-1:]
    if (
        last and last[0].metadata.model == model
    ):  # nothing follows it: its tokens are what was said, also of a mere thought
        conversation = replace(conversation, messages=(*conversation.messages[:-1], last[0].message))
    return format_transcript(opened.responder, conversation)


def format_transcript(responder: LocalResponder, conversation: Conversation) -> str:
    """Return a conversation in the exact format of a model: the prompt of the last reply, and that reply."""
    replied = bool(conversation.messages) and conversation.messages[-1].role == "assistant"
    if not replied:
        return f"{responder.preview(conversation).prompt}\n"
    last = conversation.messages[-1]
    prompt = responder.preview(replace(conversation, messages=conversation.messages[:-1])).prompt
    if last.tokens is not None:
        return f"{prompt}{responder.detokenize(last.tokens)}\n"
    return f"{prompt}{'' if prompt[-1:].isspace() else ' '}{last.content}\n"


def export_to_file(path: Path, store: Store, session: Session, opened: LoadedModel) -> None:
    """Write a session to a new file, in the shape its name asks for. UsageError where that cannot be."""
    shape = SUFFIX_FORMATS.get(path.suffix)
    if shape is None:
        raise UsageError(f"{path}: its ending names no shape", f"end it in {', '.join(SUFFIX_FORMATS)}")
    text = _transcript(opened, store, session) if shape == "transcript" else export_session(store, session, shape)
    try:
        file = path.open("x", encoding="utf-8")
        try:
            with file:
                file.write(text)
        except BaseException:
            path.unlink(missing_ok=True)  # a part of it would be there already when it is tried again
            raise
    except FileExistsError as error:
        raise UsageError(f"{path} is there already", "name another file") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", "name another file") from error


def import_session(store: Store, file: Path, name: str | None) -> Session:
    """Keep the conversation in a file, under its own name, the file's or a given one."""
    own, conversation = parse_conversation(read_text(file), str(file))
    if name is None:
        name = store.unused_name(own or printable_name(file.stem) or suggest_name(conversation))
    with store.transaction():
        session = store.create(name, "import", system_prompt=conversation.system_prompt)
        for message in conversation.messages:
            session = store.add_message(session, message)
    return session


def _session_fields(session: Session) -> dict[str, Any]:
    return {
        "name": session.name,
        "origin": session.origin,
        "model": session.model,
        "format": session.format,
        "created": format_utc(session.created),
        "updated": format_utc(session.updated),
    }


def _message_object(stored: StoredMessage) -> dict[str, Any]:
    said = stored.metadata
    return {
        "role": stored.message.role,
        "content": stored.message.content,
        "reasoning": said.reasoning,
        "finish_reason": said.finish_reason,
        "model": said.model,
        "format": said.format,
        "params": said.params,
        "seed": said.seed,
        "timings": said.timings,
        "created": format_utc(stored.created),
    }


def _pretty(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
