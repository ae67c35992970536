"""Whatever happens to a pull, the next one goes on from there, and no wrong byte gets into the cache."""

import hashlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from command_line import assert_error
from disks import full_disk
from hub_server import RATE_LIMITED, SERVER_ERROR, UNAVAILABLE, Fault
from hub_user import HubUser, RecordedProgress, cleaned
from waiting import wait_until

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.library import retries
from cerebrum_cli.library.cache import Cache
from cerebrum_cli.library.download import Download
from cerebrum_cli.library.hub import HubFile, Listing
from cerebrum_cli.library.hub_requests import HubError
from cerebrum_cli.library.retries import RetryPolicy

REPO, FILE = "owner/large", "large-Q4_K_M.gguf"
SLOW = Fault(part="cdn", let_through=1, bytes_per_second=3_000_000)  # the header comes at once, the file in 3 seconds


@pytest.fixture(autouse=True)
def repository(hub_user: HubUser, mistral_model: Path) -> None:
    hub_user.hub.repository(REPO, {FILE: mistral_model})


def here(hub_user: HubUser) -> str:
    return hub_user.installed(FILE, REPO)


def partial(hub_user: HubUser) -> Path:
    path = hub_user.folder(REPO) / "blobs" / f"{hub_user.digest(FILE, REPO)}.incomplete"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def begun(hub_user: HubUser) -> subprocess.Popen[bytes]:
    hub_user.hub.arm(SLOW)
    process = hub_user.start("pull", REPO)
    wait_until(lambda: partial(hub_user).exists() and partial(hub_user).stat().st_size >= 1_000_000)
    return process


def went_on(hub_user: HubUser, left: int) -> None:
    """Pull to the end; of the file only what follows the bytes that were left is asked for."""
    hub_user.hub.log.clear()
    assert cleaned(hub_user.pull(REPO)) == here(hub_user)
    [download] = hub_user.downloads()
    assert (download.range, download.sent) == (f"bytes={left}-", hub_user.path(FILE, REPO).stat().st_size - left)


@pytest.mark.slow
def test_pull_resumes_after_a_kill(hub_user: HubUser) -> None:
    with begun(hub_user) as process:
        process.kill()
    left = partial(hub_user).stat().st_size
    assert 1_000_000 <= left < 9_000_000
    assert hub_user.listed() == []
    went_on(hub_user, left)


@pytest.mark.slow
def test_pull_interrupt_prints_how_to_resume(hub_user: HubUser) -> None:
    with begun(hub_user) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    said = "download: 0 kB of 9 MB\nerror: interrupted\n hint: run it again to resume\n"
    assert (process.returncode, out, err.decode()) == (130, b"", said)
    left = partial(hub_user).stat().st_size
    assert left > 500_000
    went_on(hub_user, left)


def lost(hub_user: HubUser, how: str = "connection lost") -> str:
    return f"note: {urlsplit(hub_user.hub.cdn_url).netloc}: {how}: retrying in 1 s\n"


@pytest.mark.parametrize("reset", [False, True])
def test_pull_resumes_lost_connections(hub_user: HubUser, reset: bool) -> None:
    hub_user.hub.arm(Fault(part="cdn", let_through=1, times=2, cut_after=3_000_000, reset=reset))
    assert cleaned(hub_user.pull(REPO)) == lost(hub_user) * 2 + here(hub_user)
    starts = [each.range for each in hub_user.downloads()]
    assert reset or starts == [None, "bytes=3000000-", "bytes=6000000-"]  # after a reset bytes may be lost


def test_pull_restarts_without_range_support(hub_user: HubUser, mistral_model: Path) -> None:
    partial(hub_user).write_bytes(mistral_model.read_bytes()[:1_000_000])
    hub_user.hub.arm(Fault(part="cdn", times=None, ignore_range=True))
    assert cleaned(hub_user.pull(REPO)) == here(hub_user)
    [download] = hub_user.downloads()
    assert (download.range, download.status) == ("bytes=1000000-", 200)


@pytest.mark.slow
@pytest.mark.parametrize("is_partial", [False, True])
def test_pull_rejects_and_deletes_altered_bytes(hub_user: HubUser, mistral_model: Path, is_partial: bool) -> None:
    altered = bytearray(mistral_model.read_bytes())
    altered[500_000] ^= 0xFF
    if is_partial:
        partial(hub_user).write_bytes(altered[:1_000_000])
    else:
        hub_user.hub.arm(Fault(part="cdn", let_through=1, flip_at=500_000))
    done = hub_user.run("pull", REPO)
    assert (done.code, done.out, cleaned(done)) == (
        1,
        "",
        f"error: {FILE} was not downloaded correctly: its digest is {hashlib.sha256(altered).hexdigest()}, "
        f"not {hub_user.digest(FILE, REPO)}\n"
        " hint: the download was deleted; try again, or report it to the repository's owner\n",
    )
    assert hub_user.blobs(REPO) == {}
    assert cleaned(hub_user.pull(REPO)) == here(hub_user)


@pytest.mark.parametrize("more", [0, 5_000_000])
def test_pull_accepts_a_complete_or_oversized_partial_file(hub_user: HubUser, mistral_model: Path, more: int) -> None:
    partial(hub_user).write_bytes(mistral_model.read_bytes() + bytes(more))
    assert cleaned(hub_user.pull(REPO)) == here(hub_user)
    assert len(hub_user.downloads()) == (1 if more else 0)


@pytest.mark.slow
def test_pull_replaces_a_damaged_blob(hub_user: HubUser) -> None:
    hub_user.pull(REPO)
    blob = hub_user.folder(REPO) / "blobs" / hub_user.digest(FILE, REPO)
    data = bytearray(blob.read_bytes())
    data[5_000_000] ^= 0xFF
    blob.write_bytes(data)
    os.utime(blob, ns=(1, 1))
    damaged = f"note: {FILE} in the cache is damaged: downloading it again\n"
    assert cleaned(hub_user.pull(REPO)) == f"{damaged}{here(hub_user)}"


@pytest.mark.usefixtures("no_locks")
def test_pull_is_refused_where_the_file_system_has_no_locks(hub_user: HubUser) -> None:
    hint = "set HF_HUB_CACHE to a directory on another disk"
    assert_error(hub_user.run("pull", REPO), 1, ".lock: this file system has no file locks", hint)
    assert hub_user.blobs(REPO) == {}


@pytest.mark.parametrize(("header", "value"), [("Retry-After", "3600"), ("RateLimit", '"api";r=0;t=3600')])
def test_pull_fails_if_the_rate_limit_is_too_long(hub_user: HubUser, header: str, value: str) -> None:
    hub_user.hub.arm(Fault(part="api", refusal=RATE_LIMITED.with_header(header, value)))
    done = hub_user.run("pull", REPO)
    said = "error: the Hub responded 429 Too Many Requests\n hint: try again later\n"
    assert (done.code, done.out, done.err) == (1, "", said)


@pytest.mark.slow
def test_pull_retries_server_errors_a_few_times(hub_user: HubUser) -> None:
    refusal = SERVER_ERROR.resetting_after(0)
    for fault in (Fault(part="api", refusal=refusal), Fault(part="cdn", let_through=1, refusal=refusal)):
        hub_user.hub.arm(fault)
    trouble = "note: the Hub responded 500 Internal Server Error: retrying in 0 s\n"
    assert cleaned(hub_user.pull(REPO)) == f"{trouble * 2}{here(hub_user)}"
    hub_user.hub.arm(Fault(part="api", times=None, refusal=UNAVAILABLE.resetting_after(0)))
    done = hub_user.run("pull", f"{REPO}:Q2_K")
    tried = "note: the Hub responded 503 Service Unavailable: retrying in 0 s\n" * 5
    given_up = "error: the Hub responded 503 Service Unavailable\n hint: try again later\n"
    assert (done.code, done.out, done.err) == (1, "", tried + given_up)


@pytest.mark.slow
def test_pull_retries_a_timeout(hub_user: HubUser) -> None:
    hub_user.hub.arm(Fault(part="cdn", let_through=1, hang_after=1_000_000))
    said = cleaned(hub_user.pull(REPO, HF_HUB_DOWNLOAD_TIMEOUT="1"))
    assert said == lost(hub_user, "timed out") + here(hub_user)
    assert hub_user.downloads()[1].range == "bytes=1000000-"


def test_retry_policy_backs_off_until_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    told, slept = RecordedProgress(), list[float]()
    monkeypatch.setattr(retries, "sleep", slept.append)
    patience = RetryPolicy(told)
    lost = HubError("connection lost", "check the network", retries=6)
    for _ in range(6):
        patience.wait(lost)
    with pytest.raises(HubError, match="connection lost"):
        patience.wait(lost)
    assert slept == [1, 2, 4, 8, 16, 16]
    patience.failures = 0
    patience.wait(lost)
    assert told.notices[-1] == NoticeEvent("connection lost", "retrying in 1 s")
    RetryPolicy(told).wait(HubError("rate limit", "try again later", retries=5, wait_s=55.0))
    assert slept[6:] == [1, 55]


def test_download_checks_disk_space_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, free=1_000_000_000))
    file = HubFile(FILE, 4_000_000_000, "00" * 32)
    listing = Listing(REPO, "main", "0" * 40, {file.name: file})
    cache = Cache(tmp_path / "hub")
    download = Download(listing, cache, RecordedProgress())
    with pytest.raises(PullError) as caught:
        download.require_space((file,))
    assert caught.value.message == f"{tmp_path}: not enough disk space: needs 4.06 GB; 1.00 GB is free"
    assert caught.value.hint == "free 3.06 GB, or set HF_HUB_CACHE to a directory on another disk"
    left = listing.place(cache, file).partial
    left.parent.mkdir(parents=True)
    with left.open("wb") as sparse:
        sparse.truncate(3_900_000_000)
    download.require_space((file,))


@pytest.mark.slow
def test_pull_keeps_the_partial_file_when_the_disk_fills_up(hub_user: HubUser) -> None:
    with full_disk(4_000_000):
        done = hub_user.run("pull", REPO)
    said = f"error: {FILE}: File too large\n hint: free some disk space, then try again to resume\n"
    assert (done.code, cleaned(done)) == (1, said)
    left = partial(hub_user).stat().st_size
    assert left == 4_000_000
    went_on(hub_user, left)
