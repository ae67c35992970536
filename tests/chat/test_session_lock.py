"""Session locks: one process at a time holds a session; `test_locks.py` has how a lock ends."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_command import run_here

from cerebrum_cli.chat.lock import SessionLock
from cerebrum_cli.chat.session import Session
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.errors import SessionError


@pytest.fixture
def one(store: Store) -> Session:
    return store.create("one", "chat")


@pytest.fixture
def two(store: Store) -> Session:
    return store.create("two", "chat")


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[SessionLock]:
    session_lock = SessionLock(tmp_path / "locks")
    yield session_lock
    session_lock.release()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[SessionLock]:
    session_lock = SessionLock(tmp_path / "locks")
    yield session_lock
    session_lock.release()


def test_lock_is_refused_to_a_second_holder(lock: SessionLock, other: SessionLock, one: Session) -> None:
    lock.acquire(one)
    lock.acquire(one)
    with pytest.raises(SessionError, match='session "one" is open in another process'):
        other.acquire(one)
    lock.release()
    other.acquire(one)


def test_lock_releases_the_previous_session_when_another_is_acquired(
    lock: SessionLock, other: SessionLock, one: Session, two: Session
) -> None:
    lock.acquire(one)
    other.acquire(two)
    with pytest.raises(SessionError):
        lock.acquire(two)
    with pytest.raises(SessionError):  # a failed switch keeps the first lock
        other.acquire(one)
    other.release()
    lock.acquire(two)
    other.acquire(one)


def test_lock_file_is_readable_only_by_its_owner(tmp_path: Path, lock: SessionLock, one: Session) -> None:
    before = os.umask(0)
    try:
        lock.acquire(one)
    finally:
        os.umask(before)
    directory = tmp_path / "locks"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o600}


def test_lock_file_is_deleted_with_its_session(
    tmp_path: Path, lock: SessionLock, other: SessionLock, one: Session
) -> None:
    lock.discard()
    lock.acquire(one)
    assert (tmp_path / "locks" / f"{one.id}.lock").exists()
    lock.discard()
    assert list((tmp_path / "locks").iterdir()) == []
    other.acquire(one)


@pytest.mark.usefixtures("no_locks")
def test_lock_excludes_nothing_where_the_file_system_has_no_locks(
    lock: SessionLock, other: SessionLock, one: Session
) -> None:
    lock.acquire(one)
    other.acquire(one)


def test_lock_reports_a_directory_that_cannot_be_created(tmp_path: Path, one: Session) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionError) as caught:
        SessionLock(tmp_path / "file" / "locks").acquire(one)
    assert caught.value.hint == "make sure that it is writable"


@pytest.mark.parametrize("command", [("ask", "Why?"), ("chat",)])
def test_refused_model_frees_the_session(chatml_model: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    run_here({"reply": "Short."}, tmp_path, "ask", "Why?", "-m", chatml_model)
    gc.disable()  # which would free it, too
    try:
        refused = run_here({}, tmp_path, *command, "-c", "-m", "nosuch", piped=b"")
        again = run_here({"reply": "x"}, tmp_path, "chat", "-c", piped=b"")
    finally:
        gc.enable()
    assert (refused.code, again.code, again.err) == (3, 0, "")
