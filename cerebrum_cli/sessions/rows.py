"""Sessions and messages as values, and their conversion from and to database rows."""

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
    """How a reply was generated, as far as that is known; `vocabulary` is the digest that its tokens belong to."""

    reasoning: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    format: str | None = None
    vocabulary: str | None = None
    params: Mapping[str, Any] | None = None
    seed: int | None = None
    timings: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message in the tree; `parent` is the preceding message's id, `created` seconds since 1970."""

    id: int
    parent: int | None
    message: Message
    metadata: ReplyMetadata
    created: float


@dataclass(frozen=True, slots=True)
class Session:
    """A named branch of the message tree that ends at `leaf`, with its settings; times in seconds since 1970.

    `first` is the oldest message still in the model's context, if older ones were dropped.
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
    """A session, its number of messages and its first question."""

    session: Session
    messages: int
    first: str


class SearchHit(NamedTuple):
    """A message that matches a search, and a session that contains it."""

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
    "vocabulary",
    "params",
    "seed",
    "timings",
)
PLACEHOLDERS = ", ".join("?" * len(COLUMNS))


def message_values(message: Message, metadata: ReplyMetadata) -> tuple[Any, ...]:
    """Convert a message to the values of COLUMNS."""
    tokens = None if message.tokens is None else struct.pack(f"<{len(message.tokens)}i", *message.tokens)
    return (
        message.role,
        message.content,
        tokens,
        metadata.reasoning,
        metadata.finish_reason,
        metadata.model,
        metadata.format,
        metadata.vocabulary,
        None if metadata.params is None else json.dumps(metadata.params),
        metadata.seed,
        None if metadata.timings is None else json.dumps(metadata.timings),
    )


def message_from_row(row: sqlite3.Row) -> StoredMessage:
    tokens, role = row["tokens"], row["role"]
    ids = None if tokens is None else struct.unpack(f"<{len(tokens) // 4}i", tokens)
    metadata = ReplyMetadata(
        reasoning=row["reasoning"],
        finish_reason=row["finish_reason"],
        model=row["model"],
        format=row["format"],
        vocabulary=row["vocabulary"],
        params=row["params"] and json.loads(row["params"]),
        seed=row["seed"],
        timings=row["timings"] and json.loads(row["timings"]),
    )
    return StoredMessage(row["id"], row["parent"], Message(role, row["content"], ids), metadata, row["created"])


def session_from_row(row: sqlite3.Row) -> Session:
    values = dict(row)
    return Session(**{**values, "params": json.loads(values["params"] or "{}")})
