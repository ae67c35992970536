"""The queries that find messages by their words."""

from __future__ import annotations

from cerebrum_cli.core.text import well_formed

MATCHES = (  # best first; FTS5 computes an excerpt when its row is read
    "SELECT messages.*, snippet(texts, 0, '', '', ' ... ', 16) AS excerpt FROM texts"
    " JOIN messages ON messages.id = texts.rowid WHERE texts MATCH :query ORDER BY rank"
)
# Thai to Burmese, Khmer, Chinese, Japanese and Korean: the index takes a text without spaces for one word.
_UNSPACED = "*[\u0e00-\u11ff\u1780-\u17ff\u3005-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]*"
UNSPACED_MATCHES = (  # latest first
    "SELECT *, substr(content, max(1, instr(lower(content), lower(:first)) - 30), 100) AS excerpt FROM messages"
    f" WHERE instr(lower(content), lower(:first)) AND content GLOB '{_UNSPACED}'"  # the cheapest first
    " AND id NOT IN (SELECT rowid FROM texts WHERE texts MATCH :query) AND NOT EXISTS"
    " (SELECT 1 FROM json_each(:words) WHERE NOT instr(lower(content), lower(value))) ORDER BY id DESC"
)


def search_words(text: str) -> str:
    """A query of FTS5 for the beginnings of all words; none of the text is read as its syntax."""
    words = []
    for word in well_formed(text).replace("\0", " ").split():
        quoted = word.replace('"', '""')
        words.append(f'"{quoted}"*')
    return " ".join(words)
