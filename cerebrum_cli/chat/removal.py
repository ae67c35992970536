"""Deletion of sessions: their rows, and all traces of them in the database file."""

from __future__ import annotations

import sqlite3


def remove_session(database: sqlite3.Connection, session_id: int) -> int:
    """Delete a session and its unshared messages; return the number of messages deleted."""
    database.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
    rows = database.execute("SELECT id, parent, session FROM messages").fetchall()
    alive = {row["id"] for row in database.execute("SELECT id FROM sessions")}
    leaves = [row["leaf"] for row in database.execute("SELECT leaf FROM sessions WHERE leaf IS NOT NULL")]
    parents = {row["id"]: row["parent"] for row in rows}
    needed: set[int] = set()
    for message in (*leaves, *(row["id"] for row in rows if row["session"] in alive)):
        while message is not None and message not in needed:
            needed.add(message)
            message = parents.get(message)
    unneeded = sorted(parents.keys() - needed, reverse=True)  # children first: their ids are higher
    database.executemany("DELETE FROM messages WHERE id = ?", [(each,) for each in unneeded])
    return len(unneeded)


def vacuum(database: sqlite3.Connection) -> None:
    """Erase all traces of deleted rows from the file.

    The full-text index marks words as deleted until its segments are merged. (FTS5's own secure-delete requires SQLite
    3.42, makes the index unreadable for older versions, and ignores earlier deletions.) Even with `secure_delete`,
    pages keep fragments of rows that moved to other pages, so the file is rewritten. The log holds old pages until it
    is truncated, which waits for current readers.
    """
    database.execute("INSERT INTO texts (texts) VALUES ('optimize')")
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
