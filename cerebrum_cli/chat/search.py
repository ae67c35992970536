"""Full-text search of the messages on a session's branch, best match first; only those returned are read."""

from __future__ import annotations

import contextlib
import sqlite3
from itertools import islice

from cerebrum_cli.chat.rows import SearchHit, message_from_row, session_from_row
from cerebrum_cli.core.text import MATCH_BEGIN, MATCH_END, well_formed

_SESSION_OF_MESSAGE = (
    "WITH RECURSIVE branch (message, session) AS (SELECT leaf, id FROM sessions WHERE leaf IS NOT NULL UNION ALL"
    " SELECT parent, branch.session FROM branch JOIN messages ON messages.id = message WHERE parent < messages.id)"
    " SELECT message, session FROM branch JOIN sessions ON sessions.id = session ORDER BY sessions.updated, sessions.id"
)
_EXCERPT = (
    f"SELECT messages.*, snippet(texts, 0, '{MATCH_BEGIN}', '{MATCH_END}', ' ... ', 16) AS excerpt FROM texts"
    " JOIN messages ON messages.id = texts.rowid WHERE texts MATCH ? AND texts.rowid = ?"
)


def search_messages(database: sqlite3.Connection, text: str, limit: int) -> list[SearchHit]:
    """Find the messages that contain words beginning with all words of a text, each with its latest session."""
    words = fts_query(text)
    if not words:
        return []
    session_of = {row["message"]: row["session"] for row in database.execute(_SESSION_OF_MESSAGE)}
    ranked = database.execute("SELECT rowid FROM texts WHERE texts MATCH ? ORDER BY rank", (words,))
    with contextlib.closing(ranked):
        best = list(islice((row["rowid"] for row in ranked if row["rowid"] in session_of), limit))
    hits = []
    for message in best:
        session = database.execute("SELECT * FROM sessions WHERE id = ?", (session_of[message],)).fetchone()
        row = database.execute(_EXCERPT, (words, message)).fetchone()
        if session and row:  # another process may have deleted it meanwhile
            hits.append(SearchHit(session_from_row(session), message_from_row(row), row["excerpt"]))
    return hits


def fts_query(text: str) -> str:
    """Query for prefixes: each word of a text is quoted, so that FTS5 reads none of it as query syntax."""
    words = well_formed(text).replace("\0", " ").split()
    return " ".join(f'"{word.replace(chr(34), chr(34) * 2)}"*' for word in words)
