"""The tables of the session database, as the steps that lead from each version to the next."""

from __future__ import annotations

import sqlite3
import time

# A message hangs on the one it answers, so undoing, retrying and forking take nothing away: a session is a name for
# the message it has come to (`leaf`). `session` is the one a message was said in, which may be gone. Times are seconds
# since 1970, `params` and `timings` JSON, `tokens` the ids a reply was sampled as, four bytes each, little-endian. A
# reply without a finish_reason is being said, or was when its process was killed.
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
    # `first` is the oldest message its model still reads, once those before it have been dropped from the context.
    "ALTER TABLE sessions ADD COLUMN first INTEGER;",
)


def migrate(database: sqlite3.Connection) -> int:
    """Bring a database to the newest version, one step at a time, and return the version it then has.

    A step happens whole or not at all, and once, however many processes open the database at the same time.
    """
    while (version := schema_version(database)) < len(MIGRATIONS):
        database.execute("BEGIN IMMEDIATE")
        try:
            if schema_version(database) == version:  # nobody was faster
                for statement in _statements(MIGRATIONS[version]):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {version + 1}")
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise
    return version


def schema_version(database: sqlite3.Connection) -> int:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def enable_wal(database: sqlite3.Connection, timeout_s: float) -> None:
    """Turn the write-ahead log on. Where another process does so now, SQLite does not wait by itself."""
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
    """Return the statements of a script: `executescript` would commit what is open."""
    statements, begun = [], ""
    for line in script.splitlines(keepends=True):
        begun += line
        if sqlite3.complete_statement(begun):
            statements.append(begun)
            begun = ""
    return statements
