"""Taking a session out of the database, and its words out of the file."""

from __future__ import annotations

import sqlite3


def remove_session(database: sqlite3.Connection, session: int) -> int:
    """Delete a session and the messages that only it led to; return how many went."""
    database.execute("DELETE FROM sessions WHERE id = ?", (session,))
    rows = database.execute("SELECT id, parent, session FROM messages").fetchall()
    alive = {row["id"] for row in database.execute("SELECT id FROM sessions")}
    leaves = [row["leaf"] for row in database.execute("SELECT leaf FROM sessions WHERE leaf IS NOT NULL")]
    parents = {row["id"]: row["parent"] for row in rows}
    kept: set[int] = set()
    for needed in (*leaves, *(row["id"] for row in rows if row["session"] in alive)):
        while needed is not None and needed not in kept:
            kept.add(needed)
            needed = parents[needed]
    gone = sorted(parents.keys() - kept, reverse=True)  # children first: they were said later
    database.executemany("DELETE FROM messages WHERE id = ?", [(each,) for each in gone])
    return len(gone)


def vacuum(database: sqlite3.Connection) -> None:
    """Leave nothing in the file of what was removed.

    The index marks words as gone until its parts are merged. (FTS5's own secure-delete wants SQLite 3.42, changes the
    index for older ones, and leaves what was removed before.) Pages keep pieces of rows that have moved to others, also
    under `secure_delete`: only a file written anew has none. The log holds pages as they were until it is emptied,
    which waits for who reads now.
    """
    database.execute("INSERT INTO texts (texts) VALUES ('optimize')")
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
