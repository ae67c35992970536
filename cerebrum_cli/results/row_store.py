"""The store of finished rows: a SQLite database beside the result, written by one process at a time.

Rows are committed together, each time with a sync: immediately, or within a second if a commit takes long. A process
that is killed, or a power cut, loses the rows of the last second at most, which are then answered again.

Between two transactions the store holds SQLite's lock for writing, so that other processes can read it, and none can
write. Its rollback journal exists only during a commit.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from operator import index, itemgetter
from pathlib import Path
from time import monotonic
from typing import Any

from cerebrum_cli.core.errors import DAMAGE, BatchError
from cerebrum_cli.core.files import lock_file
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.results.record import REPLACE, RESUME, output_errors
from cerebrum_cli.results.rows import FinishedRows, ResultRows, Table, is_answer, to_json_line

COMMIT_SHARE = 0.1  # of the time is spent in commits, at most, unless a row would wait longer than this:
MAX_WAIT_S = 1.0
RESTART = "move it elsewhere, choose another -o, or use --restart to start over"
TOKENS = "tokens"  # of an interrupted reply
_READER_S = 60.0  # that a commit waits for a process that reads the rows
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB)
_NO_ACCESS = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY)
# Rows that are no longer in the input have negative positions, and replies that were interrupted have no flags.
# Metadata: what identifies the input.
_TABLES = """
PRAGMA page_size = 16384;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS rows (position INTEGER PRIMARY KEY, flags INTEGER, object TEXT);
CREATE TABLE IF NOT EXISTS metadata (key TEXT PRIMARY KEY, value TEXT);
COMMIT;
"""
_INSERT = "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)"
_STATES = "SELECT position, flags, CASE WHEN NOT flags THEN object END FROM rows WHERE position >= 0"
_OBJECTS = "SELECT position, object FROM rows WHERE position >= 0 AND flags ORDER BY position"
# The stored rows by their new positions, negative for those that get none. Of stored and input rows with the same key,
# those that were at the same position come first, then rows with an answer.
_MATCHES = """
WITH same AS (SELECT key, position FROM stored JOIN input USING (key, position) WHERE is_answer)
SELECT ifnull(new_position, -row_number() OVER (ORDER BY new_position, position)), position FROM (
    SELECT *, row_number() OVER (
        PARTITION BY key ORDER BY (key, position) NOT IN same, NOT is_answer, position
    ) AS place FROM stored
) LEFT JOIN (
    SELECT key, position AS new_position, row_number() OVER (
        PARTITION BY key ORDER BY (key, position) NOT IN same, position
    ) AS place FROM input
) USING (key, place)
"""
_LOST = "SELECT 1 FROM stored WHERE is_answer AND NOT EXISTS (SELECT 1 FROM moved WHERE position >= 0)"


class DamagedStore(BatchError):
    """The file is no store, or not a whole one."""


class RowStore:
    """An open and locked store. Raises BatchError if another process has it open, or it is damaged.

    `then` ends the hints of later errors, and `if_busy` is the hint if it is locked.
    """

    def __init__(self, path: Path, then: str = RESUME, if_busy: str = "wait for it, or choose another -o") -> None:
        self.path = path
        self._then = then
        self._if_busy = if_busy
        self._pending: list[tuple[int, int, str]] = []
        self._has_pending = threading.Event()
        self._is_closing = threading.Event()
        self._lock = threading.Lock()  # of the transaction
        self._error: BatchError | None = None
        with self._errors():
            self._database = self._connect()
        self._thread = threading.Thread(target=self._flush_periodically, name="commit", daemon=True)
        self._thread.start()

    def _connect(self) -> sqlite3.Connection:
        with output_errors(self.path, self._then):
            lock_file(self.path, self._is_busy()).close()  # to SQLite, a missing lock looks like a busy one
        database = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            database.text_factory = bytes
            database.executescript(_TABLES)
            database.execute("BEGIN IMMEDIATE")
            database.execute(f"PRAGMA busy_timeout = {_READER_S * 1000:.0f}")
        except BaseException:
            database.close()
            raise
        return database

    @property
    def is_empty(self) -> bool:
        return self._first("SELECT 1 FROM rows") is None

    @property
    def input(self) -> Any:
        """What identifies the input whose positions the rows have; None before it is set."""
        with self._errors():
            found = self._first("SELECT value FROM metadata WHERE key = 'input'")
            return found and json.loads(found[0])

    @input.setter
    def input(self, identity: Any) -> None:
        with self._transaction():
            self._write_input(identity)

    def load(self, size: int) -> tuple[FinishedRows, dict[int, TokenIds]]:
        """Which of so many rows are finished, and the tokens of interrupted replies by position."""
        flags = bytearray(size)
        tokens = {}
        with self._errors():
            for position, row_flags, interrupted in self._database.execute(_STATES):
                flags[position] = row_flags
                if interrupted:
                    tokens[position] = tuple(map(index, json.loads(interrupted)[TOKENS]))
        return FinishedRows(flags), tokens

    def objects(self) -> Iterator[tuple[int, bytes]]:
        """Yield the positions and the JSON of the rows, in the order of the input."""
        with self._errors():
            # `yield from` would close the cursor, which fails once the store is closed.
            for row in self._database.execute(_OBJECTS):  # noqa: UP028
                yield row

    def lines(self, table: Table | None) -> Iterator[bytes]:
        """Yield the lines of the result: those of a table, or the JSON of the rows. Raises BatchError."""
        with self._errors():
            if table:
                yield from table(json.loads(text) for _, text in self.objects())
                return
            for _, text in self.objects():
                yield text + b"\n"

    def append(self, position: int, text: str, flags: int) -> None:
        """Store the JSON of a row within a second. Raises BatchError if earlier rows could not be stored."""
        error, self._error = self._error, None
        if error:
            raise error
        self._pending.append((position, flags, text))
        self._has_pending.set()

    def flush(self) -> None:
        """Store the rows that wait for it now. Raises BatchError; they then wait for the next try."""
        with self._lock:
            self._has_pending.clear()
            rows = sorted(self._pending, key=itemgetter(0))  # of two for a position, the later one stays the later
            if not rows:
                return
            with self._transaction():
                self._database.executemany(_INSERT, rows)
            del self._pending[: len(rows)]  # more may have been appended

    def move(self, rows: ResultRows, identity: Any, source: Path, lines: Iterable[bytes] = ()) -> None:
        """Move the stored rows, and those in lines of a result, to their positions in an input, with its fields.

        A row stays at its position if the input still has it there, or else goes to the first one like it that has no
        answer. The others are kept, but are not finished rows. Raises BatchError if all answers, which came from
        `source`, are for other rows.
        """
        with self._transaction():
            for position, line in enumerate(lines):
                flags = rows.flags(json.loads(line))
                self._database.execute(_INSERT, (position, flags, line.decode()))
            self._index(rows)
            self._database.execute("CREATE TABLE moved (position INTEGER PRIMARY KEY, flags INTEGER, object TEXT)")
            self._database.executemany("INSERT INTO moved VALUES (?, ?, ?)", self._moved(rows))
            if self._first(_LOST):
                raise BatchError(f"none of the answers in {source} is for this input", REPLACE)
            self._database.execute("DROP TABLE rows")
            self._database.execute("ALTER TABLE moved RENAME TO rows")
            self._write_input(identity)

    def _index(self, rows: ResultRows) -> None:
        """Create the tables of keys, on disk: those of all rows need much memory."""
        self._database.execute("CREATE TEMP TABLE stored (key TEXT, is_answer INTEGER, position INTEGER)")
        self._database.execute("CREATE TEMP TABLE input (key TEXT, position INTEGER)")
        stored = (
            (rows.identify(json.loads(text)), is_answer(flags), position)
            for position, flags, text in self._database.execute("SELECT * FROM rows")
        )
        self._database.executemany("INSERT INTO stored VALUES (?, ?, ?)", stored)
        new = ((rows.identify(rows.fields(position)), position) for position in range(rows.size))
        self._database.executemany("INSERT INTO input VALUES (?, ?)", new)

    def _moved(self, rows: ResultRows) -> Iterator[tuple[int, int, str]]:
        """The stored rows at their new positions, with the fields that they have there."""
        for new_position, position in self._database.execute(_MATCHES):
            flags, text = self._first("SELECT flags, object FROM rows WHERE position = ?", position)
            if new_position >= 0:
                fields = rows.fields(new_position)
                text = to_json_line({key: fields.get(key, value) for key, value in json.loads(text).items()})
            yield new_position, flags, text

    def update(self, objects: Iterable[JsonObject]) -> None:
        """Replace the objects of all rows, in the order of their positions."""
        positions = [position for position, _ in self.objects()]
        rows = zip(map(to_json_line, objects), positions, strict=True)
        with self._transaction():
            self._database.executemany("UPDATE rows SET object = ? WHERE position = ?", rows)

    def close(self) -> None:
        """Store all rows, and release the lock. Raises BatchError."""
        self._is_closing.set()
        self._has_pending.set()
        self._thread.join()
        try:
            self.flush()
        finally:
            self._database.close()

    def _flush_periodically(self) -> None:
        while not self._is_closing.is_set():
            self._has_pending.wait()
            start = monotonic()
            try:
                self.flush()
            except BatchError as error:
                self._error = error
            commit_s = monotonic() - start
            self._is_closing.wait(min(MAX_WAIT_S, commit_s / COMMIT_SHARE))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Change the store atomically. The lock is taken again after each commit."""
        with self._errors():
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                self._database.rollback()
                raise
            finally:
                self._database.execute("BEGIN IMMEDIATE")

    def _first(self, query: str, *values: Any) -> Any:
        with self._errors():
            return self._database.execute(query, values).fetchone()

    def _write_input(self, identity: Any) -> None:
        self._database.execute("INSERT OR REPLACE INTO metadata VALUES ('input', ?)", (json.dumps(identity),))

    def _is_busy(self) -> BatchError:
        name = self.path.name.removesuffix(".partial")
        return BatchError(f"another process is writing {name}", self._if_busy)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if _code(error) == sqlite3.SQLITE_BUSY:
                raise self._is_busy() from error
            raise _translated(error, self.path, self._then) from error
        except DAMAGE as error:  # of a row that is read
            raise DamagedStore(f"{self.path} is damaged: {error!r}", RESTART) from error


def has_rows(path: Path) -> bool:
    """Whether there is a store with rows, which another process may be writing. Raises BatchError."""
    return next(read_objects(path), None) is not None


def read_objects(path: Path) -> Iterator[Any]:
    """Yield the objects of a store, which another process may be writing; none if there is no store. Raises BatchError.

    If the writer was killed during a commit, that is undone.
    """
    if not path.exists() or not path.stat().st_size:  # it is being created
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database:
            for _, text in database.execute(_OBJECTS):
                yield json.loads(text)
    except sqlite3.Error as error:
        raise _translated(error, path, RESUME) from error


def _translated(error: sqlite3.Error, path: Path, then: str) -> BatchError:
    code = _code(error)
    if code in _DAMAGED:
        return DamagedStore(f"{path} is damaged: {error}", RESTART)
    if code in _NO_ACCESS:
        return BatchError(f"{path}: {error}", f"check its permissions{then}")
    return BatchError(f"{path}: {error}", f"free some disk space{then}")


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
