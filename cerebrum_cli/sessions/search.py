"""Messages found by their words, best first: only those a session leads to, and only the first few are read."""

from __future__ import annotations

import contextlib
import sqlite3
from itertools import islice

from cerebrum_cli.core.text import well_formed
from cerebrum_cli.sessions.rows import SearchHit, message_from_row, session_from_row

_LEADING = (
    "WITH RECURSIVE path (at, leading) AS (SELECT leaf, id FROM sessions WHERE leaf IS NOT NULL UNION ALL"
    " SELECT parent, leading FROM path JOIN messages ON messages.id = at WHERE parent IS NOT NULL)"
    " SELECT at, leading FROM path JOIN sessions ON sessions.id = leading ORDER BY sessions.updated, sessions.id"
)
_EXCERPT = (
    "SELECT messages.*, snippet(texts, 0, '', '', ' ... ', 16) AS excerpt FROM texts"
    " JOIN messages ON messages.id = texts.rowid WHERE texts MATCH ? AND texts.rowid = ?"
)


def search_messages(database: sqlite3.Connection, text: str, limit: int) -> list[SearchHit]:
    """Return the messages that hold all words of a text, each in the session last changed that leads to it."""
    words = fts_query(text)
    if not words:
        return []
    within = {row["at"]: row["leading"] for row in database.execute(_LEADING)}
    ranked = database.execute("SELECT rowid FROM texts WHERE texts MATCH ? ORDER BY rank", (words,))
    with contextlib.closing(ranked):
        best = list(islice((row["rowid"] for row in ranked if row["rowid"] in within), limit))
    hits = []
    for message in best:
        session = database.execute("SELECT * FROM sessions WHERE id = ?", (within[message],)).fetchone()
        row = database.execute(_EXCERPT, (words, message)).fetchone()
        if session and row:  # another process may just have removed it
            hits.append(SearchHit(session_from_row(session), message_from_row(row), row["excerpt"]))
    return hits


def fts_query(text: str) -> str:
    """Return a text's words as FTS5 takes them for nothing but words."""
    words = well_formed(text).replace("\0", " ").split()
    return " ".join(f'"{word.replace(chr(34), chr(34) * 2)}"' for word in words)
