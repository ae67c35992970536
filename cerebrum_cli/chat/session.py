"""Sessions and messages as values, their names, and their conversion from and to database rows."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import lru_cache
from operator import index
from typing import Any, Literal, NamedTuple

from cerebrum_cli.core.conversation import Conversation, Message, Picture
from cerebrum_cli.core.declaration import LORA
from cerebrum_cli.core.errors import DAMAGE, SessionError
from cerebrum_cli.core.files import absolute_reference
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json
from cerebrum_cli.core.settings import SESSION, Layer, Settings, SourcedLayer
from cerebrum_cli.core.text import YEAR_1, YEAR_9999, format_utc, well_formed
from cerebrum_cli.core.tools import Round, ToolCall

Origin = Literal["chat", "ask", "script"]  # script: an answer that went to a pipe or a file
END_LABELS = {
    "cancelled": "interrupted",
    None: "interrupted",
    "length": "truncated",
    "context": "truncated",
    "repetition": "ended: repetition",
}


@frozen
class ReplyMetadata:
    """How a reply was generated, as far as that is known; `vocabulary` is the digest that its tokens belong to."""

    finish_reason: str | None = None
    model: str | None = None
    format: str | None = None
    vocabulary: str | None = None
    params: JsonObject | None = None
    seed: int | None = None
    timings: JsonObject | None = None


@frozen
class StoredMessage:
    """A message in the tree; `parent` is the preceding message's id, `created` seconds since 1970."""

    id: int
    parent: int | None
    message: Message
    metadata: ReplyMetadata
    created: float

    def continues(self, earlier: StoredMessage) -> bool:
        """Whether this reply begins with an earlier one to the same question."""
        answers_the_same = self.message.role == "assistant" and self.parent == earlier.parent
        return answers_the_same and self.message.content.startswith(earlier.message.content)

    @property
    def is_edited(self) -> bool:
        """Whether a user has written this reply."""
        return self.message.role == "assistant" and not (self.metadata.model or self.metadata.finish_reason)

    @property
    def early_end(self) -> str | None:
        """Why a reply is incomplete; None for a complete one, and for one that was edited."""
        if self.message.role != "assistant" or self.is_edited:
            return None
        return END_LABELS.get(self.metadata.finish_reason)


@frozen
class Session:
    """A named branch of the message tree that ends at `leaf`, with its settings; times in seconds since 1970.

    `first` is the oldest message still in the model's context, if older ones were dropped.
    """

    id: int
    name: str
    origin: Origin
    params: JsonObject
    created: float
    updated: float
    system_prompt: str | None = None
    model: str | None = None
    format: str | None = None
    leaf: int | None = None
    first: int | None = None

    @property
    def fields(self) -> JsonDict:
        """The fields of its row in `sessions list`."""
        return {
            "name": self.name,
            "origin": self.origin,
            "model": self.model,
            "format": self.format,
            "created": format_utc(self.created),
            "updated": format_utc(self.updated),
        }

    def add_defaults(self, overrides: Layer, is_remote: bool = False) -> Layer:
        """Add the model, format and adapters to the overrides, unless these name another model.

        A chat's sampling settings are added too; those of `ask` applied to one question. A server has adapters of its
        own.
        """
        named = overrides.get("model")
        if named is not None and absolute_reference(named) != self.model:
            return overrides
        defaults = {"model": self.model, "format": self.format}
        for key, value in self.params.items():
            if self.origin == "chat" or key == LORA:
                defaults[key] = value
        if is_remote:
            defaults.pop(LORA, None)
        return SourcedLayer(SourcedLayer(defaults, origin=SESSION), overrides)


Messages = list[StoredMessage]


class SessionSummary(NamedTuple):
    session: Session
    messages: int
    first: str


class SearchHit(NamedTuple):
    session: Session
    message: StoredMessage
    excerpt: str


JSON_COLUMNS = ("params", "timings")
METADATA_COLUMNS = tuple(field.name for field in fields(ReplyMetadata))
COLUMNS = ("role", "content", "reasoning", "tokens", "rounds", "pictures", *METADATA_COLUMNS)
_MAX_WORDS, _MAX_CHARS = 5, 40  # of a session's name
# As in a prompt.
_QUOTED_FILE = re.compile(r"^[^\n]+:\n(`{3,})[^\n`]*\n.*?\n\1$|^\[picture [^\n]+\]$", re.DOTALL | re.MULTILINE)
sqlite3.register_adapter(dict, json.dumps)


def printable_name(name: str) -> str:
    return "".join(char if char.isprintable() else " " for char in well_formed(name)).strip()


def validated_name(name: str) -> str:
    """Normalize a session name as it is stored. Raises SessionError if it cannot be shown and typed on one line."""
    name = well_formed(name)
    if not name or name != printable_name(name):
        raise SessionError.invalid("session name", name, "one line of printable text without spaces around it")
    return name


def suggest_name(conversation: Conversation) -> str:
    """Derive a session's name from the first words of its first question, ignoring files quoted before it."""
    if not conversation.messages:
        return "session"
    question = without_files(conversation.messages[0].content).lower()
    letters = "".join(char if is_letter(char) or char == "+" else " " for char in question)
    words = [word for word in letters.split() if word.strip("+")]
    return "-".join(words[:_MAX_WORDS])[:_MAX_CHARS].strip("-") or "session"


def is_letter(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char).startswith("M")  # in many scripts, marks combine with letters


def without_files(question: str) -> str:
    return _QUOTED_FILE.sub("", question).strip() or question


def message_values(message: Message, metadata: ReplyMetadata) -> tuple[Any, ...]:
    """The values of COLUMNS."""
    tokens = None
    if message.tokens is not None:
        tokens = struct.pack(f"<{len(message.tokens)}i", *message.tokens)
    rounds = json.dumps([asdict(part) for part in message.rounds])
    pictures = json.dumps([picture.url for picture in message.pictures])
    own = message.role, message.content, message.reasoning, tokens, rounds, pictures
    return *own, *(getattr(metadata, column) for column in METADATA_COLUMNS)


def message_from_row(row: sqlite3.Row) -> StoredMessage:
    return _message(tuple(row.keys()), tuple(row))


@lru_cache(maxsize=512)  # each turn of a chat reads all its messages
def _message(columns: tuple[str, ...], contents: tuple[Any, ...]) -> StoredMessage:
    row = dict(zip(columns, contents, strict=True))
    with _reading("message", row):
        values = {column: row[column] for column in METADATA_COLUMNS}
        for column in JSON_COLUMNS:
            values[column] = json.loads(values[column] or "null")
        tokens, data = None, row["tokens"]
        if data is not None:
            tokens = struct.unpack(f"<{len(data) // 4}i", data)
        rounds = tuple(_round(**part) for part in json.loads(row["rounds"]))
        texts = {key: row[key] for key in ("role", "content", "reasoning")}
        pictures = tuple(map(Picture, json.loads(row["pictures"])))
        message = from_json(Message, {**texts, "tokens": tokens, "rounds": rounds, "pictures": pictures})
        metadata = from_json(ReplyMetadata, values)
        thinks = Settings(think=(metadata.params or {}).get("think")).thinks
        return StoredMessage(row["id"], row["parent"], replace(message, thinks=thinks), metadata, row["created"])


def _round(calls: list[JsonDict], tokens: list[int] | None, **texts: str) -> Round:
    token_ids = None if tokens is None else tuple(map(index, tokens))
    return from_json(Round, {**texts, "calls": tuple(from_json(ToolCall, call) for call in calls), "tokens": token_ids})


def session_from_row(row: sqlite3.Row) -> Session:
    values = dict(row)
    with _reading("session", values):
        values["params"] = json.loads(row["params"] or "{}") or {}
        return from_json(Session, values)


@contextmanager
def _reading(kind: str, row: JsonDict) -> Iterator[None]:
    try:
        if not YEAR_1 <= row["created"] <= YEAR_9999:
            raise ValueError("an invalid time")
        yield
    except (*DAMAGE, OSError, struct.error) as error:
        raise sqlite3.DatabaseError(f"malformed {kind} {row['id']}") from error
