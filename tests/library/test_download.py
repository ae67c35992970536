"""A file comes over several connections; whatever happens, no wrong byte gets in, and the next pull resumes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hub_server
import pytest
from cases import rows
from command_line import assert_error, environment_of
from disks import full_disk
from hub_server import ENTRY_NOT_FOUND, FORBIDDEN, SERVER_ERROR, Fault, Request
from hub_user import HubUser, RecordedProgress, cleaned
from waiting import assert_returns, wait_until

from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.library import hub_requests, partial_file
from cerebrum_cli.library.cache import Cache, CachePath
from cerebrum_cli.library.download import Download
from cerebrum_cli.library.hub import list_repository
from cerebrum_cli.library.hub_requests import HubError

REPO, FILE = "owner/large", "large-Q4_K_M.gguf"
MIB = 1 << 20
PIECE = 2 * MIB
CDN = Fault(part="cdn", let_through=1)  # the request for the header is let through
LIMITED = replace(CDN, times=None, bytes_per_second=4_000_000)  # each connection
FAILING = replace(CDN, let_through=5, times=None, refusal=FORBIDDEN)


@pytest.fixture(scope="module")
def large(mistral_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 34 MB, with noise after its weights."""
    path = tmp_path_factory.mktemp("large") / FILE
    path.write_bytes(mistral_model.read_bytes() + random.Random(0).randbytes(25_000_000))
    return path


@pytest.fixture(autouse=True)
def repository(hub_user: HubUser, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are small, and retries come without a delay, except in a process of its own."""
    monkeypatch.setattr(partial_file, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(hub_requests, "MAX_BACKOFF_S", 0.0)
    hub_user.hub.repository(REPO, {FILE: large})


def place(hub_user: HubUser) -> CachePath:
    return CachePath(hub_user.folder(REPO), hub_user.commit(REPO), FILE, hub_user.digest(FILE, REPO))


def requested(hub_user: HubUser) -> list[Request]:
    """The requests for the file, but for that of its header."""
    return [request for request in hub_user.hub.log.requests("cdn") if request.range != f"bytes=0-{MIB - 1}"]


def sent(hub_user: HubUser) -> int:
    return sum(request.sent for request in requested(hub_user))


def interrupted(hub_user: HubUser) -> None:
    """Let a pull fail after four pieces, and the next one succeed."""
    armed = hub_user.hub.arm(FAILING)
    assert_error(hub_user.run("pull", REPO), 1)
    assert place(hub_user).record.exists()
    armed.disarm()
    forget_requests(hub_user)


def assert_resumes(hub_user: HubUser, size: int) -> None:
    """Pull again, and check that only what is not recorded is requested."""
    left = size - partial_file.bytes_present(place(hub_user), size)
    assert 0 < left < size
    assert cleaned(hub_user.pull(REPO)) == hub_user.installed(FILE, REPO)
    assert sent(hub_user) == left


def forget_requests(hub_user: HubUser) -> None:
    """Empty the log, once the threads of a failed pull have ended, which a process of its own would not wait for."""
    wait_until(lambda: not any("(_request)" in thread.name for thread in threading.enumerate()))
    hub_user.hub.log.clear()


@pytest.mark.slow
def test_pull_requests_a_large_file_in_pieces(hub_user: HubUser, large: Path) -> None:
    hub_user.hub.arm(replace(CDN, times=8, bytes_per_second=1_000_000))
    assert cleaned(hub_user.pull(REPO)) == hub_user.installed(FILE, REPO)
    size = large.stat().st_size
    ranges = {f"bytes={start}-{start + PIECE - 1 if start + PIECE < size else ''}" for start in range(0, size, PIECE)}
    assert {request.range for request in requested(hub_user)} == ranges
    assert sent(hub_user) == size
    assert max(request.beside for request in requested(hub_user)) == 7


def fault_of(values: dict[str, Any]) -> Fault:
    """A fault of the CDN, where the header is let through, or of another part; a refusal is meant by its name."""
    refusal = getattr(hub_server, values.get("refusal", ""), None)
    headers = tuple(values.get("headers", {}).items())
    return replace(CDN, **{**values, "refusal": refusal, "headers": headers})


SURVIVED = rows("survived_faults")


@pytest.mark.parametrize(("fault", "problem", "is_whole"), SURVIVED.values(), ids=SURVIVED)
def test_pull_survives(hub_user: HubUser, fault: dict[str, Any], problem: str, is_whole: bool) -> None:
    """It tells of a problem that it retries, and of nothing else; from a server without ranges, a file comes whole."""
    hub_user.hub.arm(fault_of(fault))
    *notes, last = cleaned(hub_user.pull(REPO)).splitlines(keepends=True)
    assert last == hub_user.installed(FILE, REPO)
    assert bool(notes) == bool(problem)
    assert (requested(hub_user)[-1].range is None) == is_whole
    assert all(note.startswith("note: ") and f"{problem}: retrying in 0 s" in note for note in notes)


LATER = "try again later"
DELETED = "the download was deleted; try again, or report it to the repository's owner"
REFUSED = rows("fatal_faults")


@pytest.mark.parametrize(("fault", "error", "hint", "is_resumable"), REFUSED.values(), ids=REFUSED)
def test_pull_reports(hub_user: HubUser, fault: dict[str, Any], error: str, hint: str, is_resumable: bool) -> None:
    """With a fault each time; whether bytes are left to resume from."""
    armed = hub_user.hub.arm(replace(fault_of(fault), times=None))
    done = hub_user.run("pull", REPO)
    assert_error(done, 1, error)
    assert done.out == "" and done.err.splitlines()[-1].startswith(f" hint: {hint}")
    assert place(hub_user).partial.exists() == is_resumable
    armed.disarm()
    assert cleaned(hub_user.pull(REPO)) == hub_user.installed(FILE, REPO)


@pytest.mark.slow
def test_pull_into_a_read_only_directory_is_refused(hub_user: HubUser) -> None:
    """As a user who is not root, whom permissions would not stop."""
    hub_user.cache.mkdir(parents=True)
    hub_user.cache.chmod(0o555)
    prefix = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    command = [*prefix, sys.executable, "-m", "cerebrum_cli", "pull", REPO]
    environment = hub_user.command.environment(hub_user.environment({}))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    hub_user.cache.chmod(0o755)
    error, hint = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert error.startswith(f"error: {hub_user.cache}/") and error.endswith(": Permission denied")
    assert hint == " hint: check its permissions, then try again to resume"


def test_pull_of_a_file_that_vanishes_meanwhile_is_refused(hub_user: HubUser) -> None:
    hub_user.hub.arm(Fault(part="resolve", let_through=1, times=None, refusal=ENTRY_NOT_FOUND))
    assert_error(hub_user.run("pull", REPO), 3, f"{REPO}: no such repository on the Hub, or it is private")


def test_pull_gives_up_after_five_retries_without_progress(hub_user: HubUser) -> None:
    """Every third request fails, more often than one is repeated."""
    armed = [hub_user.hub.arm(replace(CDN, let_through=count, refusal=SERVER_ERROR)) for count in range(2, 18, 2)]
    hub_user.pull(REPO)
    assert sum(fault.struck for fault in armed) > 5
    shutil.rmtree(hub_user.cache)
    hub_user.hub.arm(replace(CDN, times=None, refusal=SERVER_ERROR))
    done = hub_user.run("pull", REPO)
    assert_error(done, 1, "the Hub responded 500 Internal Server Error", LATER)
    assert cleaned(done).count("note: ") == 5


@pytest.mark.slow
def test_pull_retries_a_timeout(hub_user: HubUser) -> None:
    hub_user.hub.arm(replace(CDN, hang_after=1_000_000))
    said = cleaned(hub_user.pull(REPO, HF_HUB_DOWNLOAD_TIMEOUT="1"))
    assert "timed out: retrying in 0 s\n" in said and said.endswith(hub_user.installed(FILE, REPO))


def test_retries_back_off_until_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    progress = RecordedProgress()
    policy = hub_requests.RetryPolicy(progress)
    lost = HubError("connection lost", "check the network", retries=6)
    assert [policy.delay(lost) for _ in range(6)] == [1, 2, 4, 8, 16, 16]
    with pytest.raises(HubError, match="connection lost"):
        policy.delay(lost)
    policy.failures = 0
    assert policy.delay(lost) == 1
    assert progress.notices[-1] == NoticeEvent("connection lost", "retrying in 1 s")
    assert policy.delay(HubError("rate limit", LATER, retries=5, wait_s=55.0)) == 55


def recorded_in_process(hub_user: HubUser, size: int) -> int:
    """Bytes that a process of its own, whose pieces are not those of this one, has recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_file, "PIECE_BYTES", 1 << 24)
        return partial_file.bytes_present(place(hub_user), size)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_pull_resumes_after_signals(hub_user: HubUser, large: Path, number: signal.Signals) -> None:
    """What is recorded is not requested again; benchmarks/pull.py measures what a kill loses."""
    size = large.stat().st_size
    armed = hub_user.hub.arm(LIMITED)
    for share in (0.25, 0.5, 0.75):
        with hub_user.start("pull", REPO) as process:
            wait_until(lambda: recorded_in_process(hub_user, size) >= share * size)  # noqa: B023
            process.send_signal(number)
            out, err = process.communicate(timeout=10)
        said = "" if number == signal.SIGKILL else "error: interrupted\n hint: run it again to resume\n"
        assert (process.returncode, out, err.decode()) == (130 if said else -number, b"", said)
        assert hub_user.listed() == []
    armed.disarm()
    left = size - recorded_in_process(hub_user, size)
    hub_user.hub.log.clear()
    assert hub_user.run_process("pull", REPO).code == 0
    assert sent(hub_user) == left
    hub_user.installed(FILE, REPO)


def test_pull_resumes_a_failed_one(hub_user: HubUser, large: Path) -> None:
    interrupted(hub_user)
    assert_resumes(hub_user, large.stat().st_size)


MORE = "more than a piece has"
DAMAGES = [*product(("partial", "record"), ("gone", "link", "pipe")), *product(("record",), (0, 30, 90, 1_000, MORE))]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_pull_starts_over(hub_user: HubUser, large: Path, tmp_path: Path, name: str, damage: str | int) -> None:
    """A file of it is gone, something else, or has other bytes from a number of them on."""
    interrupted(hub_user)
    path: Path = getattr(place(hub_user), name)
    data = path.read_bytes()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.unlink()
    if isinstance(damage, int):
        path.write_bytes(data[:damage] + b"\xff" * 3)
    elif damage == MORE:
        path.write_bytes(data[:-8] + b"\xff" * 8)
    elif damage != "gone":
        path.symlink_to(victim) if damage == "link" else os.mkfifo(path)
    assert cleaned(hub_user.pull(REPO)) == hub_user.installed(FILE, REPO)
    assert sent(hub_user) == large.stat().st_size
    assert victim.read_bytes() == b"precious"


def test_pull_notices_bytes_that_a_crash_has_lost(hub_user: HubUser, large: Path) -> None:
    """After a crash of the system, the record may be ahead of the file."""
    interrupted(hub_user)
    place(hub_user).partial.write_bytes(b"")
    assert_error(hub_user.run("pull", REPO), 1, f"{FILE} was not downloaded correctly", DELETED)
    assert hub_user.blobs(REPO) == {}
    assert cleaned(hub_user.pull(REPO)) == hub_user.installed(FILE, REPO)


def test_pull_downloads_what_is_new_on_the_hub(hub_user: HubUser, large: Path, tmp_path: Path) -> None:
    interrupted(hub_user)
    newer = tmp_path / FILE
    newer.write_bytes(large.read_bytes()[:-5] + b"newer")
    hub_user.hub.repositories[REPO].commit({FILE: newer})
    hub_user.pull(REPO)
    assert hub_user.path(FILE, REPO).read_bytes() == newer.read_bytes()


@pytest.mark.slow
def test_pull_replaces_a_damaged_blob(hub_user: HubUser) -> None:
    hub_user.pull(REPO)
    blob = place(hub_user).blob
    data = bytearray(blob.read_bytes())
    data[5_000_000] ^= 0xFF
    blob.write_bytes(data)
    os.utime(blob, ns=(1, 1))
    damaged = f"note: {FILE} in the cache is damaged: downloading it again\n"
    assert cleaned(hub_user.pull(REPO)) == damaged + hub_user.installed(FILE, REPO)


@pytest.mark.usefixtures("no_locks")
def test_pull_is_refused_where_the_file_system_has_no_locks(hub_user: HubUser) -> None:
    hint = "use a directory on another disk, then try again"
    assert_error(hub_user.run("pull", REPO), 1, ".lock: this file system has no file locks", hint)
    assert hub_user.blobs(REPO) == {}


def test_pull_checks_disk_space_first(hub_user: HubUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, free=60_000_000))
    hint = "or set HF_HUB_CACHE to a directory on another disk"
    assert_error(hub_user.run("pull", REPO), 1, "not enough disk space: needs 98 MB; 60 MB is free", hint)
    assert not requested(hub_user)


@pytest.mark.slow
def test_pull_keeps_the_partial_file_when_the_disk_fills_up(hub_user: HubUser, large: Path) -> None:
    with full_disk(30_000_000):
        done = hub_user.run("pull", REPO)
    said = f"error: {FILE}: File too large\n hint: free some disk space, then try again to resume\n"
    assert (done.code, cleaned(done)) == (1, said)
    forget_requests(hub_user)
    assert_resumes(hub_user, large.stat().st_size)


def fetched(hub_user: HubUser, repository: str, files: dict[str, Path]) -> RecordedProgress:
    """Download files of a new repository, and check them."""
    hub_user.hub.repository(repository, dict(files))
    progress, cache = RecordedProgress(), Cache(hub_user.cache)
    with environment_of(hub_user.command.environment(hub_user.environment({}))):
        listing = list_repository(repository, progress)
        wanted = tuple(map(listing.file, files))
        assert_returns(lambda: Download(listing, cache, progress).fetch(wanted))
    for name, path in files.items():
        assert listing.place(cache, listing.file(name)).pointer.read_bytes() == path.read_bytes()
    return progress


def test_download_reports_each_stage_to_its_end(hub_user: HubUser, parts: dict[str, Path]) -> None:
    progress = fetched(hub_user, "owner/split", parts)
    total = sum(path.stat().st_size for path in parts.values())
    stages = [name for name, _, _ in progress.stages]
    assert stages == sorted(stages) and set(stages) == {"download", "verify"}
    for stage in ("download", "verify"):
        reported = [done for name, done, of in progress.stages if name == stage and of == total]
        assert reported == sorted(reported) and reported[-1] == total


def test_download_of_files_with_equal_bytes_waits_for_no_lock_of_its_own(hub_user: HubUser, large: Path) -> None:
    fetched(hub_user, "owner/equal", dict.fromkeys(("a.gguf", "b.gguf", "c.gguf"), large))
