"""Schema of the session database, as one migration per version."""

from __future__ import annotations

import sqlite3
import time

# Messages form a tree, each row pointing to the message before it, so undo, retry and fork delete nothing: a session
# names the end of a branch (`leaf`). A message's `session` is the one it was added to, which may be deleted. Times are
# seconds since 1970, `params` and `timings` JSON, `tokens` the sampled ids of a reply, four bytes each, little-endian.
# A reply without a finish_reason is being generated, or its process was killed.
MIGRATIONS = (
    """
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
    """,
    # `first` is the oldest message still in the model's context, if older ones were dropped.
    "ALTER TABLE sessions ADD COLUMN first INTEGER;",
    # `vocabulary` is a digest of the vocabulary that `tokens` are ids of.
    "ALTER TABLE messages ADD COLUMN vocabulary TEXT;",
)


def migrate(database: sqlite3.Connection) -> int:
    """Migrate a database to the latest version and return that version.

    Each migration is one transaction and runs once, even if several processes open the database concurrently.
    """
    while (version := schema_version(database)) < len(MIGRATIONS):
        database.execute("BEGIN IMMEDIATE")
        try:
            if schema_version(database) == version:  # no other process has migrated it meanwhile
                for statement in _statements(MIGRATIONS[version]):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {version + 1}")
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # SQLite has ended it where the disk is full
                database.execute("ROLLBACK")
            raise
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
