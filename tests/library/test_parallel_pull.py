"""A large file comes over several connections, whatever the server makes of ranges, and resumes in another process."""

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from command_line import assert_error, environment_of
from hub_server import FORBIDDEN, RATE_LIMITED, UNAVAILABLE, Armed, Fault, Refusal, Request
from hub_user import HubUser, RecordedProgress, cleaned
from waiting import wait_until

from cerebrum_cli.library import partial_file
from cerebrum_cli.library.cache import Cache
from cerebrum_cli.library.download import Download
from cerebrum_cli.library.hub import list_repository

REPO, FILE = "owner/large", "large-Q4_K_M.gguf"
MIB = 1 << 20
IGNORED = Fault(part="cdn", let_through=1, times=None, ignore_range=True)  # the header's request is let through
WRONG = Fault(part="cdn", let_through=1, times=None, headers=(("Content-Range", "bytes 0-4/5"),))
SHORT = Fault(part="cdn", let_through=1, times=None, most_bytes=100_000)
OTHER_BYTES = "note: the server sent other bytes than requested: retrying in 1 s\n"
FAILING = Fault(part="cdn", let_through=5, times=None, refusal=FORBIDDEN)  # the header and four ranges are let through


@pytest.fixture(scope="module")
def large(mistral_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 34 MB, with noise after its weights."""
    path = tmp_path_factory.mktemp("large") / FILE
    path.write_bytes(mistral_model.read_bytes() + random.Random(0).randbytes(25_000_000))
    return path


@pytest.fixture(autouse=True)
def repository(hub_user: HubUser, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is for two pieces; a process of its own takes the usual ones."""
    monkeypatch.setattr(partial_file, "LEAST_PIECES", 2)
    hub_user.hub.repository(REPO, {FILE: large})


def installed(hub_user: HubUser) -> str:
    """What `pull` prints of the file, which is checked; nothing else is left of it."""
    return hub_user.installed(FILE, REPO)


def blob(hub_user: HubUser, suffix: str) -> Path:
    path = hub_user.folder(REPO) / "blobs" / f"{hub_user.digest(FILE, REPO)}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def requested(hub_user: HubUser) -> list[Request]:
    """The requests for the file, but for that of its header."""
    return [request for request in hub_user.hub.log.requests("cdn") if request.range != f"bytes=0-{MIB - 1}"]


def starts(hub_user: HubUser) -> list[int]:
    return sorted(int((request.range or "=0-").partition("=")[2].partition("-")[0]) for request in requested(hub_user))


def interrupted(hub_user: HubUser, fault: Fault = FAILING) -> None:
    """Let a pull fail after some ranges, one at a time so that no request outlasts it, and the next one succeed."""
    hub_user.hub.arm(Fault(part="cdn", let_through=1, refusal=RATE_LIMITED.resetting_after(0)))
    armed = hub_user.hub.arm(fault)
    assert_error(hub_user.run("pull", REPO), 1)
    assert blob(hub_user, ".record.incomplete").exists()
    armed.disarm()
    hub_user.hub.log.clear()


def recorded(hub_user: HubUser) -> list[bool]:
    """Which pieces the record has, if there is one."""
    record = blob(hub_user, ".record.incomplete")
    table = record.read_bytes().partition(b"\n")[2] if record.exists() else b""
    return [any(table[start : start + 4]) for start in range(0, len(table), 4)]


def test_pull_requests_a_large_file_in_ranges(hub_user: HubUser, large: Path) -> None:
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    assert starts(hub_user) == list(range(0, large.stat().st_size, 2 * MIB))
    assert sum(request.sent for request in requested(hub_user)) == large.stat().st_size
    assert {request.status for request in requested(hub_user)} == {206}


@pytest.fixture
def hanging(hub_user: HubUser) -> Iterator[Armed]:
    """Requests that hang until eight of them are there, and for a moment in which one more would come."""
    armed = hub_user.hub.arm(Fault(part="cdn", let_through=1, times=8, hang_after=100_000))

    def release() -> None:
        wait_until(lambda: armed.struck == 8)
        time.sleep(0.3)
        armed.release()

    thread = Thread(target=release)
    thread.start()
    yield armed
    thread.join()


@pytest.mark.slow
def test_pull_opens_eight_connections(hub_user: HubUser, hanging: Armed) -> None:
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    assert [request.beside for request in requested(hub_user)][:8] == list(range(8))
    assert max(request.beside for request in requested(hub_user)) == 7


@pytest.mark.parametrize("refusal", [RATE_LIMITED, UNAVAILABLE])
def test_pull_opens_one_connection_if_the_server_asks_for_fewer(hub_user: HubUser, refusal: Refusal) -> None:
    hub_user.hub.arm(Fault(part="cdn", let_through=1, refusal=refusal.resetting_after(0)))
    said = cleaned(hub_user.pull(REPO))
    assert said.endswith(f": retrying in 0 s\n{installed(hub_user)}") and said.count("note: ") == 1
    assert {request.beside for request in requested(hub_user)} == {0}


def test_pull_opens_more_connections_after_an_error_of_the_server(hub_user: HubUser) -> None:
    hub_user.hub.arm(Fault(part="cdn", let_through=1, refusal=UNAVAILABLE))
    hub_user.hub.arm(Fault(part="cdn", let_through=1, times=8, bytes_per_second=10_000_000))
    assert cleaned(hub_user.pull(REPO)).endswith(f": retrying in 1 s\n{installed(hub_user)}")
    assert max(request.beside for request in requested(hub_user)) > 0


def test_pull_counts_failures_in_a_row(hub_user: HubUser) -> None:
    """Every other request of many fails, more often than one may be repeated."""
    faults = [
        Fault(part="cdn", let_through=count, refusal=RATE_LIMITED.resetting_after(0)) for count in (2, *range(9, 16))
    ]
    armed = [hub_user.hub.arm(fault) for fault in faults]
    assert cleaned(hub_user.pull(REPO)).endswith(installed(hub_user))
    assert [fault.struck for fault in armed] == [1] * len(faults)


def test_pull_ignores_a_failure_after_the_last_byte_of_a_range(hub_user: HubUser, large: Path) -> None:
    hub_user.hub.arm(Fault(part="cdn", let_through=2, times=8, promised_more=5))
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    assert starts(hub_user) == list(range(0, large.stat().st_size, 2 * MIB))


@pytest.mark.parametrize("fault", [IGNORED, WRONG, SHORT], ids=["ignored", "wrong", "short"])
def test_pull_opens_one_connection_to_a_server_without_ranges(hub_user: HubUser, fault: Fault, large: Path) -> None:
    hub_user.hub.arm(fault)
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    *tried, whole = requested(hub_user)
    assert len(tried) == (fault != IGNORED)
    assert (whole.status, whole.sent, whole.beside) == (200, large.stat().st_size, 0)


def test_pull_requests_a_range_again_that_one_server_ignores(hub_user: HubUser) -> None:
    hub_user.hub.arm(Fault(part="cdn", let_through=4, times=2, ignore_range=True))
    assert cleaned(hub_user.pull(REPO)) in (OTHER_BYTES * count + installed(hub_user) for count in (1, 2))


def test_pull_requests_a_range_again_of_which_too_much_is_sent(hub_user: HubUser, large: Path) -> None:
    headers = (("Content-Range", f"bytes 0-{2 * MIB - 1}/{large.stat().st_size}"),)
    hub_user.hub.arm(replace(IGNORED, times=1, headers=headers))
    assert cleaned(hub_user.pull(REPO)).endswith(installed(hub_user))
    assert starts(hub_user).count(0) == 1 and starts(hub_user).count(2 * MIB) == 1


def test_pull_ends_if_the_server_sends_a_range_without_a_request_for_one(hub_user: HubUser) -> None:
    hub_user.hub.arm(Fault(part="cdn", let_through=1, times=None, refusal=Refusal(206, "")))
    assert_error(hub_user.run("pull", REPO), 1, "the server sent other bytes than requested", "try again later")
    assert len(requested(hub_user)) == 2


@pytest.mark.parametrize("reset", [False, True])
def test_pull_resumes_each_lost_connection(hub_user: HubUser, reset: bool) -> None:
    hub_user.hub.arm(Fault(part="cdn", let_through=2, times=6, cut_after=1_500_000, reset=reset))
    assert cleaned(hub_user.pull(REPO)).endswith(installed(hub_user))
    resumed = [start for start in starts(hub_user) if start % MIB]
    assert reset or [start % (2 * MIB) for start in resumed] == [1_500_000] * 6


@pytest.mark.slow
def test_pull_resumes_after_kills(hub_user: HubUser, large: Path) -> None:
    """Of each connection, at most one piece comes twice."""
    hub_user.hub.arm(Fault(part="cdn", let_through=1, times=None, bytes_per_second=8_000_000))
    before = 0
    for target in (6, 12):
        hub_user.hub.log.clear()
        with hub_user.start("pull", REPO) as process:
            wait_until(lambda: sum(recorded(hub_user)) >= target)  # noqa: B023
            process.kill()
        had, before = before, sum(recorded(hub_user))
        buffered = len(requested(hub_user)) * MIB  # by the system, at most
        most = (before - had + len(requested(hub_user))) * MIB + buffered
        assert sum(request.sent for request in requested(hub_user)) < most
    left = [not is_recorded for is_recorded in recorded(hub_user)]
    hub_user.hub.log.clear()
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    last = MIB - large.stat().st_size % MIB
    assert sum(request.sent for request in requested(hub_user)) == sum(left) * MIB - last * left[-1]


@pytest.mark.parametrize(("lost", "again"), [(1, [MIB]), (6, [MIB, 3 * MIB, 5 * MIB])])
def test_pull_requests_recorded_pieces_again_that_are_lost(hub_user: HubUser, lost: int, again: list[int]) -> None:
    """After a crash of the system, the record may be ahead of the file."""
    interrupted(hub_user)
    assert all(recorded(hub_user)[1 : 1 + lost])
    with blob(hub_user, ".pieces.incomplete").open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(lost * MIB))
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    assert (
        starts(hub_user)[: lost // 2 + 2]
        == [*range(MIB, (lost + 1) * MIB, 2 * MIB), 8 * MIB, 10 * MIB][: lost // 2 + 2]
    )


def test_pull_ignores_a_record_that_has_lost_its_pieces(hub_user: HubUser, large: Path) -> None:
    interrupted(hub_user)
    blob(hub_user, ".pieces.incomplete").unlink()
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    assert starts(hub_user) == list(range(0, large.stat().st_size, 2 * MIB))


@pytest.mark.parametrize("kept", [0, 30, 90, 1_000])
def test_pull_loses_no_more_than_pieces_by_a_torn_record(hub_user: HubUser, kept: int) -> None:
    interrupted(hub_user)
    record = blob(hub_user, ".record.incomplete")
    record.write_bytes(record.read_bytes()[:kept] + b"\xff" * 3)
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)


def test_pull_restarts_a_file_that_has_changed_on_the_server(hub_user: HubUser, large: Path) -> None:
    interrupted(hub_user)
    changed = hub_user.hub.arm(Fault(part="cdn", times=None, flip_at=30_000_000))
    assert_error(hub_user.run("pull", REPO), 1, f"{FILE} was not downloaded correctly", "the download was deleted")
    assert 0 not in starts(hub_user) and hub_user.blobs(REPO) == {}
    changed.disarm()
    hub_user.hub.log.clear()
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    assert starts(hub_user) == list(range(0, large.stat().st_size, 2 * MIB))


def test_pull_keeps_recorded_pieces_if_the_server_ignores_one_range(hub_user: HubUser) -> None:
    interrupted(hub_user)
    hub_user.hub.arm(replace(IGNORED, times=1))
    assert cleaned(hub_user.pull(REPO)) == OTHER_BYTES + installed(hub_user)
    assert 0 not in starts(hub_user)


def test_pull_deletes_partial_files_of_a_complete_one(hub_user: HubUser, large: Path) -> None:
    blob(hub_user, ".incomplete").write_bytes(b"GGUF")
    blob(hub_user, ".pieces.incomplete").write_bytes(b"GGUF")
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    blob(hub_user, ".record.incomplete").write_bytes(b"{}")
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)


def test_pull_resumes_what_another_program_has_written_in_order(hub_user: HubUser, large: Path) -> None:
    blob(hub_user, ".incomplete").write_bytes(large.read_bytes()[: 30 * MIB + 5])
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    assert starts(hub_user) == [30 * MIB, 32 * MIB]


@pytest.mark.parametrize("more", [0, 5])
def test_pull_accepts_a_complete_or_oversized_large_file(hub_user: HubUser, large: Path, more: int) -> None:
    blob(hub_user, ".incomplete").write_bytes(large.read_bytes() + bytes(more))
    assert cleaned(hub_user.pull(REPO)) == installed(hub_user)
    assert bool(requested(hub_user)) == bool(more)


def test_pull_deletes_a_large_file_of_another_digest(hub_user: HubUser) -> None:
    hub_user.hub.arm(Fault(part="cdn", let_through=1, times=None, flip_at=20_000_000))
    assert_error(hub_user.run("pull", REPO), 1, f"{FILE} was not downloaded correctly", "the download was deleted")
    assert hub_user.blobs(REPO) == {}


def test_pull_begins_the_next_part_while_one_is_under_way(hub_user: HubUser, parts: dict[str, Path]) -> None:
    hub_user.hub.repository("owner/split", dict(parts))
    first, second, _ = parts
    armed = hub_user.hub.arm(Fault(part="cdn", path=first, let_through=1, hang_after=100))

    def release() -> None:
        hub_user.hub.log.wait_for(lambda request: request.part == "cdn" and second in request.path)
        armed.release()

    thread = Thread(target=release)
    thread.start()
    hub_user.pull("owner/split")
    thread.join()
    assert armed.struck == 1


def test_download_reports_bytes_of_incomplete_pieces(hub_user: HubUser, large: Path) -> None:
    hub_user.hub.arm(Fault(part="cdn", times=None, bytes_per_second=20_000_000))
    progress = RecordedProgress()
    with environment_of(hub_user.command.environment(hub_user.environment({}))):
        listing = list_repository(REPO)
        Download(listing, Cache(hub_user.cache), progress).fetch((listing.file(FILE),))
    reported = [done for _, done, _ in progress.stages]
    assert any(done % MIB for done in reported if done < large.stat().st_size)
    assert reported[0] == 0 and reported[-1] == large.stat().st_size
