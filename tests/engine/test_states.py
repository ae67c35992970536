"""State files: found as written, verified, evicted, and robust against damage, other files and processes."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest
from command_line import start_python
from hypothesis import given
from hypothesis import strategies as st
from state_files import BODY, TOKENS, find, open_store, put

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.engine.scheduler import common_prefix
from cerebrum_cli.engine.state_store import DAMAGED


def only_file(directory: Path) -> Path:
    """The only file in a directory."""
    [path] = directory.iterdir()
    return path


def held(directory: Path) -> list[tuple[int, ...]]:
    """Tokens of all states for the default model, as another process finds them."""
    states = open_store(directory)
    found = {state.tokens for token in range(10) if (state := find(states, [token])[0])}
    return sorted(found)


def test_store_finds_a_state_by_its_prefix(tmp_path: Path) -> None:
    put(open_store(tmp_path), TOKENS)
    for prompt in (TOKENS, (*TOKENS, 5), TOKENS[:2], (1, 9, 9)):
        found, told = find(open_store(tmp_path), prompt)
        assert found and (found.tokens, told) == (TOKENS, [])
        assert found.path.read_bytes().startswith(BODY)
    assert find(open_store(tmp_path), (9, *TOKENS)) == (None, [])


@given(
    kept=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple), max_size=6),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=6),
)
def test_store_finds_the_state_with_the_longest_prefix(kept: list[tuple[int, ...]], prompt: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        states = open_store(Path(folder))
        for tokens in kept:
            put(states, tokens)
        best = max((common_prefix(tokens, prompt) for tokens in kept), default=0)
        for reader in (states, open_store(Path(folder))):
            found, told = find(reader, prompt)
            assert (common_prefix(found.tokens, prompt) if found else 0, told) == (best, [])
            assert reader.stored_prefix(prompt, "kind", lambda length, shared: True) == best


def test_store_skips_unusable_states(tmp_path: Path) -> None:
    states = open_store(tmp_path)
    put(states, (1, 2, 3, 4))
    put(states, (1, 2, 9))
    told: list[NoticeEvent] = []
    found = states.find_longest((1, 2, 3, 4), "kind", lambda length, shared: length < 4 and shared == 2, told.append)
    assert found and (found.tokens, told) == ((1, 2, 9), [])
    assert states.stored_prefix((1, 2, 3, 4), "kind", lambda length, shared: False) == 0


def test_store_reports_and_removes_a_file_with_a_flipped_bit(tmp_path: Path) -> None:
    put(open_store(tmp_path), TOKENS)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        assert find(open_store(tmp_path), TOKENS) == (None, [DAMAGED])
        assert not path.exists()


def test_store_reports_and_removes_a_truncated_or_extended_file(tmp_path: Path) -> None:
    put(open_store(tmp_path), TOKENS)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    for damaged in (*(whole[:end] for end in range(len(whole))), whole + b"\0", whole + whole, whole[1:]):
        path.write_bytes(damaged)
        assert find(open_store(tmp_path), TOKENS) == (None, [DAMAGED])
        assert not path.exists()


@given(content=st.binary(max_size=200))
def test_store_reports_and_removes_arbitrary_content(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        put(open_store(Path(folder)), TOKENS)
        only_file(Path(folder)).write_bytes(content)
        assert find(open_store(Path(folder)), TOKENS) == (None, [DAMAGED])
        assert not os.listdir(folder)


def test_store_reports_damage_once_and_finds_the_next_best(tmp_path: Path) -> None:
    states = open_store(tmp_path)
    put(states, (1, 2, 9))
    put(states, (1, 2, 3))
    found, _ = find(states, (1, 2, 3, 4))
    assert found and found.tokens == (1, 2, 3)
    content = bytearray(found.path.read_bytes())
    content[5] ^= 1  # in the body, which this store has already verified
    found.path.write_bytes(content)
    found, told = find(states, (1, 2, 3, 4))
    assert found and (found.tokens, told) == ((1, 2, 9), [DAMAGED])
    assert find(states, (1, 2, 3, 4)) == (found, [])


@pytest.mark.parametrize("other", [{"model": "another"}, {"format": "plain"}, {"kind": "another"}])
def test_store_ignores_states_of_another_model_format_or_build(tmp_path: Path, other: dict[str, str]) -> None:
    kind = other.pop("kind", "kind")
    put(open_store(tmp_path, **other), TOKENS, kind=kind)  # type: ignore[arg-type]
    assert find(open_store(tmp_path), TOKENS) == (None, [])
    assert find(open_store(tmp_path, **other), TOKENS, kind=kind)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [{"model": "another"}, {"format": "plain"}, {"kind": "another"}])
def test_store_rejects_a_renamed_state_of_another_identity(tmp_path: Path, other: dict[str, str]) -> None:
    put(open_store(tmp_path), TOKENS)
    mine = only_file(tmp_path)
    mine.unlink()
    kind = other.pop("kind", "kind")
    put(open_store(tmp_path, **other), TOKENS, kind=kind)  # type: ignore[arg-type]
    only_file(tmp_path).rename(mine)
    assert find(open_store(tmp_path), TOKENS) == (None, [DAMAGED])
    assert not mine.exists()


def test_store_leaves_other_files_alone(tmp_path: Path) -> None:
    put(open_store(tmp_path), TOKENS)
    name = only_file(tmp_path).name
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f"{name[:40]}.state").mkdir()
    states = open_store(tmp_path, limit=1000)
    put(states, (5, 6), body=bytes(900))
    assert {path.name for path in tmp_path.iterdir()} >= {"notes.txt", f"{name[:40]}.state"}
    found, told = find(states, (5, 6))
    assert found and told == []


def test_store_evicts_least_recently_used_states(tmp_path: Path) -> None:
    size = 10_000
    states = open_store(tmp_path, limit=3 * size + 3000)
    other = open_store(tmp_path, limit=3 * size + 3000, model="another")
    put(other, (7,), body=bytes(size))
    put(states, (1,), body=bytes(size))
    put(states, (2,), body=bytes(size))
    for age, one, token in ((300, states, 1), (200, other, 7), (100, states, 2)):
        found, _ = find(one, (token,))
        assert found
        os.utime(found.path, (time.time() - age,) * 2)
    assert find(states, (1,))[0]  # used now
    put(states, (3,), body=bytes(size))
    assert held(tmp_path) == [(1,), (2,), (3,)] and find(other, (7,)) == (None, [])
    for path, age in zip(sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime), (9, 8, 7), strict=True):
        os.utime(path, (time.time() - age,) * 2)
    put(states, (4,), body=bytes(2 * size))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * size + 3000
    assert len(held(tmp_path)) == 2 and (4,) in held(tmp_path)


def test_store_skips_a_state_larger_than_the_limit(tmp_path: Path) -> None:
    states = open_store(tmp_path, limit=1000)
    put(states, (1,))
    states.write((2,), "kind", 1001, lambda path: pytest.fail("it was written"))
    assert held(tmp_path) == [(1,)]


def test_store_replaces_states_by_their_extension(tmp_path: Path) -> None:
    states = open_store(tmp_path)
    for tokens in ((1, 2), (1, 3), (1, 2), (1, 2, 4)):
        put(states, tokens)
    put(states, (1,), kind="another")
    put(open_store(tmp_path), (1, 3, 5))
    assert len(list(tmp_path.iterdir())) == 3
    assert [find(states, (1, end))[0].tokens for end in (2, 3)] == [(1, 2, 4), (1, 3, 5)]  # type: ignore[union-attr]
    assert find(states, (1,), kind="another")[0]


def test_store_removes_unfinished_files_of_killed_processes(tmp_path: Path) -> None:
    put(open_store(tmp_path), TOKENS)
    [state] = tmp_path.iterdir()
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from cerebrum_cli.core.locks import unfinished_file\n"
        "with unfinished_file(Path(sys.argv[1]) / '1-2.state') as part:\n"
        "    part.file.write(bytes(1000))\n"
        "    print(part.path, flush=True)\n"
        "    input()\n"
    )
    process = start_python(code, tmp_path)
    assert process.stdout
    part = Path(process.stdout.readline().strip())
    assert find(open_store(tmp_path), TOKENS)[0]
    assert part.exists()
    put(open_store(tmp_path, limit=1000), (9, 9))  # counts what is being written
    assert not state.exists()
    process.kill()
    process.communicate()
    find(open_store(tmp_path), TOKENS)
    assert not part.exists()


def test_store_tolerates_removal_by_another_process(tmp_path: Path) -> None:
    states = open_store(tmp_path)
    put(states, TOKENS)
    found, _ = find(states, TOKENS)
    assert found
    found.path.unlink()
    assert find(states, TOKENS) == (None, [])
    told: list[NoticeEvent] = []
    states.discard(found, told.append)
    assert told == []
    put(open_store(tmp_path), TOKENS)
    assert find(states, TOKENS) == (found, [])


def test_store_reports_and_removes_a_rejected_state(tmp_path: Path) -> None:
    states, told = open_store(tmp_path), list[NoticeEvent]()
    put(states, TOKENS)
    found, _ = find(states, TOKENS)
    assert found
    states.discard(found, told.append)
    assert (told, find(states, TOKENS), list(tmp_path.iterdir())) == ([DAMAGED], (None, []), [])


def test_store_files_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    directory, mask = tmp_path / "states", os.umask(0)
    try:
        put(open_store(directory), TOKENS)
    finally:
        os.umask(mask)
    assert (directory.stat().st_mode & 0o777, only_file(directory).stat().st_mode & 0o777) == (0o700, 0o600)


def test_store_without_a_usable_directory_is_empty_and_fails_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        states = open_store(directory)
        assert find(states, TOKENS) == (None, [])
        with pytest.raises(EngineError) as caught:
            put(states, TOKENS)
        assert caught.value.message.startswith(f"{directory}: ") and caught.value.hint


def test_store_keeps_the_old_state_after_a_failed_save(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise EngineError("no room")

    states = open_store(tmp_path)
    put(states, TOKENS)
    with pytest.raises(EngineError, match="no room"):
        states.write((*TOKENS, 5), "kind", 100, fail)
    assert only_file(tmp_path).suffix == ".state"
    found, _ = find(states, TOKENS)
    assert found and found.tokens == TOKENS


@pytest.mark.slow
@pytest.mark.parametrize("room", [32, 100])  # too small for the body; for the record
def test_full_disk_is_an_error_and_leaves_no_file(tmp_path: Path, room: int) -> None:
    process = start_python(
        "import resource, sys\n"
        "from state_files import *\n"
        "from cerebrum_cli.core.errors import EngineError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try:\n    put(open_store(Path(sys.argv[1])), TOKENS)\n"
        "except EngineError as error:\n    sys.stdout.write(error.message)\n",
        tmp_path,
        room,
    )
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said, list(tmp_path.iterdir())) == (0, f"{tmp_path}: File too large", [])


@pytest.mark.slow
def test_store_is_safe_for_concurrent_processes(tmp_path: Path) -> None:
    code = (
        "import random, sys\n"
        "from state_files import *\n"
        "draw = random.Random(int(sys.argv[2]))\n"
        "states = open_store(Path(sys.argv[1]), limit=40_000)\n"
        "for _ in range(300):\n"
        "    tokens = [draw.randrange(3) for _ in range(draw.randrange(1, 5))]\n"
        "    put(states, tokens, body=bytes(tokens) * 1000)\n"
        "    found, told = find(states, [draw.randrange(3) for _ in range(5)])\n"
        "    assert told == [], told\n"
    )
    processes = [start_python(code, tmp_path, seed) for seed in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    names = [path.name for path in tmp_path.iterdir()]
    assert names and all(name.endswith(".state") for name in names)
