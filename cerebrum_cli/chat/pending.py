"""Pieces of a reply that is being generated: appended while it grows, and folded into its message when it is complete.

So the bytes written are proportional to the reply's length, and its text is indexed once. Of a killed process, readers
join the pieces, and the next process that can write folds them. Folding the pieces of a running one changes nothing
either: a message is its row and the pieces after it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace

from cerebrum_cli.chat.rows import (
    COLUMNS,
    StoredMessage,
    message_from_row,
    message_values,
    pack_tokens,
    read_tokens,
)
from cerebrum_cli.core.conversation import Message


def append_piece(database: sqlite3.Connection, message_id: int | None, piece: Message, reasoning: str) -> None:
    database.execute(
        "INSERT INTO pending (message, content, reasoning, tokens) VALUES (?, ?, ?, ?)",
        (message_id, piece.content, reasoning, pack_tokens(piece.tokens or ())),
    )


def with_pieces(database: sqlite3.Connection, stored: StoredMessage) -> StoredMessage:
    """Join a message and its pieces. Raises sqlite3.DatabaseError if one is damaged."""
    message, metadata = stored.message, stored.metadata
    if message.role == "user" or metadata.finish_reason is not None:
        return stored
    pieces = database.execute(
        "SELECT content, reasoning, tokens FROM pending WHERE message = ? ORDER BY id", (stored.id,)
    ).fetchall()
    if not pieces:
        return stored
    try:
        content = "".join([message.content, *(piece[0] for piece in pieces)])
        reasoning = "".join([metadata.reasoning or "", *(piece[1] for piece in pieces)]) or None
        tokens = (message.tokens or ()) + read_tokens(b"".join(piece[2] for piece in pieces))
    except (TypeError, ValueError) as error:
        raise sqlite3.DatabaseError(f"malformed message {stored.id}") from error
    return replace(
        stored,
        message=replace(message, content=content, tokens=tokens),
        metadata=replace(metadata, reasoning=reasoning),
    )


def fold_pieces(database: sqlite3.Connection) -> None:
    """Fold all pieces into their messages; left for later where the database is busy, full or damaged.

    Reading does not depend on it, so it neither waits for another process nor fails.
    """
    with contextlib.suppress(sqlite3.Error):
        if database.execute("SELECT 1 FROM pending LIMIT 1").fetchone() is None:
            return
        (timeout_ms,) = database.execute("PRAGMA busy_timeout").fetchone()
        database.execute("PRAGMA busy_timeout = 0")
        try:
            database.execute("BEGIN IMMEDIATE")
            for row in database.execute("SELECT DISTINCT message FROM pending").fetchall():
                _fold(database, row["message"])
            database.execute("COMMIT")
        finally:
            if database.in_transaction:
                database.execute("ROLLBACK")
            database.execute(f"PRAGMA busy_timeout = {timeout_ms}")


def _fold(database: sqlite3.Connection, message_id: int) -> None:
    """Fold the pieces of one message; a damaged one keeps them."""
    database.execute("SAVEPOINT fold")
    try:
        row = database.execute("SELECT * FROM messages WHERE id = ?", (message_id,)).fetchone()
        if row is not None:
            stored = with_pieces(database, message_from_row(row))
            update_message(database, stored.id, message_values(stored.message, stored.metadata))
    except sqlite3.Error:
        if not database.in_transaction:  # SQLite has ended it where the disk is full
            raise
        database.execute("ROLLBACK TO fold")
    database.execute("RELEASE fold")


def update_message(database: sqlite3.Connection, message_id: int | None, values: tuple[object, ...]) -> None:
    """Replace the values of COLUMNS of a message, its pieces included."""
    columns = ", ".join(f"{column} = ?" for column in COLUMNS)
    database.execute(f"UPDATE messages SET {columns} WHERE id = ?", (*values, message_id))
    database.execute("DELETE FROM pending WHERE message = ?", (message_id,))
