"""Sessions and messages as values, and as the rows of the database that they are kept in."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from cerebrum_cli.core.conversation import Message

Origin = Literal["chat", "ask", "import"]


@dataclass(frozen=True, slots=True)
class ReplyMetadata:
    """What is kept of a message beside who said what: how a reply came to be, as far as that is known."""

    reasoning: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    format: str | None = None
    params: Mapping[str, Any] | None = None
    seed: int | None = None
    timings: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message in the tree; `parent` is the one it answers, `created` in seconds since 1970."""

    id: int
    parent: int | None
    message: Message
    metadata: ReplyMetadata
    created: float


@dataclass(frozen=True, slots=True)
class Session:
    """A name for the message a conversation has come to, with what it was led with; times in seconds since 1970.

    `first` is the oldest message that is still in the model's context, where older ones have been dropped from it.
    """

    id: int
    name: str
    origin: Origin
    system_prompt: str | None
    model: str | None
    format: str | None
    params: Mapping[str, Any]
    leaf: int | None
    created: float
    updated: float
    first: int | None = None


class SessionSummary(NamedTuple):
    """A session as a list shows it: how many messages it has, and the first question."""

    session: Session
    messages: int
    first: str


class SearchHit(NamedTuple):
    """A message that a search has found, and a session it stands in."""

    session: Session
    message: StoredMessage
    excerpt: str


COLUMNS = (
    "role",
    "content",
    "tokens",
    "reasoning",
    "finish_reason",
    "model",
    "format",
    "params",
    "seed",
    "timings",
)
PLACEHOLDERS = ", ".join("?" * len(COLUMNS))


def message_values(message: Message, metadata: ReplyMetadata) -> tuple[Any, ...]:
    """Return what the columns of a message hold."""
    tokens = None if message.tokens is None else struct.pack(f"<{len(message.tokens)}i", *message.tokens)
    return (
        message.role,
        message.content,
        tokens,
        metadata.reasoning,
        metadata.finish_reason,
        metadata.model,
        metadata.format,
        None if metadata.params is None else json.dumps(metadata.params),
        metadata.seed,
        None if metadata.timings is None else json.dumps(metadata.timings),
    )


def message_from_row(row: sqlite3.Row) -> StoredMessage:
    """Return the message of a row."""
    tokens, role = row["tokens"], row["role"]
    ids = None if tokens is None else struct.unpack(f"<{len(tokens) // 4}i", tokens)
    said = ReplyMetadata(
        reasoning=row["reasoning"],
        finish_reason=row["finish_reason"],
        model=row["model"],
        format=row["format"],
        params=row["params"] and json.loads(row["params"]),
        seed=row["seed"],
        timings=row["timings"] and json.loads(row["timings"]),
    )
    return StoredMessage(row["id"], row["parent"], Message(role, row["content"], ids), said, row["created"])


def session_from_row(row: sqlite3.Row) -> Session:
    """Return the session of a row."""
    values = dict(row)
    return Session(**{**values, "params": json.loads(values["params"] or "{}")})
