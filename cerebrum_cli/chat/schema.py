"""Schema of the session database."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from cerebrum_cli.core.errors import SessionError

# Messages form a tree, each row pointing to the message before it, so undo, retry and fork delete nothing: a session
# names the end of a branch (`leaf`). A message's `session` is the one it was added to, which may be deleted. Times are
# seconds since 1970, `params` and `timings` JSON, `tokens` the sampled ids of a reply, four bytes each, little-endian.
# A reply without a finish_reason is being generated, or its process was killed. `vocabulary` is a digest of the
# vocabulary that `tokens` are ids of. `first` is the oldest message still in the model's context, if earlier ones were
# dropped.
VERSION = 1
SCHEMA = """
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    parent INTEGER REFERENCES messages (id),
    session INTEGER NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    content TEXT NOT NULL,
    reasoning TEXT,
    tokens BLOB,
    finish_reason TEXT,
    model TEXT,
    format TEXT,
    vocabulary TEXT,
    params TEXT,
    seed INTEGER,
    timings TEXT,
    created REAL NOT NULL
);
CREATE INDEX children ON messages (parent);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    origin TEXT NOT NULL CHECK (origin IN ('chat', 'ask', 'import')),
    system_prompt TEXT,
    model TEXT,
    format TEXT,
    params TEXT,
    leaf INTEGER REFERENCES messages (id),
    first INTEGER,
    created REAL NOT NULL,
    updated REAL NOT NULL
);
CREATE INDEX recent ON sessions (updated);
CREATE VIRTUAL TABLE texts USING fts5 (content, content = 'messages', content_rowid = 'id');
CREATE TRIGGER said AFTER INSERT ON messages BEGIN
    INSERT INTO texts (rowid, content) VALUES (new.id, new.content);
END;
CREATE TRIGGER unsaid AFTER DELETE ON messages BEGIN
    INSERT INTO texts (texts, rowid, content) VALUES ('delete', old.id, old.content);
END;
CREATE TRIGGER said_on AFTER UPDATE OF content ON messages BEGIN
    INSERT INTO texts (texts, rowid, content) VALUES ('delete', old.id, old.content);
    INSERT INTO texts (rowid, content) VALUES (new.id, new.content);
END;
"""


def create_tables(database: sqlite3.Connection) -> None:
    """Create the tables of an empty database in one transaction, even if several processes open it concurrently."""
    if schema_version(database):
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        if not schema_version(database):  # no other process has created them meanwhile
            for statement in _statements(SCHEMA):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite has ended it where the disk is full
            database.execute("ROLLBACK")
        raise


def require_known_version(database: sqlite3.Connection, path: Path) -> int:
    """Version of the schema, 0 for an empty file. Raises SessionError for that of another version of cerebrum."""
    if (version := schema_version(database)) not in (0, VERSION):
        problem = f"{path}: written by another version of cerebrum"
        raise SessionError(problem, "use that version, or move the file elsewhere; a new one will be created")
    return version


def schema_version(database: sqlite3.Connection) -> int:
    """Version of the schema, 0 for an empty file. Raises sqlite3.DatabaseError if it cannot be one."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version < 0:
        raise sqlite3.DatabaseError(f"malformed version {version}")
    return int(version)


def enable_wal(database: sqlite3.Connection, timeout_s: float) -> None:
    """Turn on the write-ahead log, retrying since SQLite's busy timeout does not cover this change."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _statements(script: str) -> list[str]:
    """Split a script into statements: `executescript` would commit the open transaction."""
    statements, statement = [], ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            statements.append(statement)
            statement = ""
    return statements
