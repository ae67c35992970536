"""Files: atomic and durable writes, exclusive locks, and the errors of files and disks.

A lock is an flock(2) on an open file: closing the file releases it, and so does the end of the process, however it
ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import CerebrumError, ModelFileError, UsageError
from cerebrum_cli.core.text import format_size, short_name

MAX_SMALL_BYTES = 16_000_000
DISK_MARGIN = 64_000_000  # bytes of a disk to leave free for other programs
STANDARD_OUTPUT = 1  # its descriptor
PART = ".part"  # suffix of unfinished files
# As far as this user can see: a `Path` raises an error where directories of other users are closed.
exists, is_directory, is_file = os.path.exists, os.path.isdir, os.path.isfile
expand_user = os.path.expanduser
DATA_ELSEWHERE = "set XDG_DATA_HOME to a directory on another disk"  # hint for a full disk

Paths = tuple[Path, ...]

NO_SPACE = "free some disk space"
NOT_ALLOWED = "check its permissions"
OTHER_PATH = "check the path"
HINTS = {
    errno.ENOSPC: NO_SPACE,
    errno.EDQUOT: NO_SPACE,
    errno.EFBIG: NO_SPACE,
    errno.EACCES: NOT_ALLOWED,
    errno.EPERM: NOT_ALLOWED,
    errno.EROFS: "write to another disk",
    errno.EIO: "check the disk",
    errno.EEXIST: "move what has this name elsewhere",
    errno.ENOENT: OTHER_PATH,
    errno.EISDIR: OTHER_PATH,
    errno.ENOTDIR: OTHER_PATH,
    errno.ENAMETOOLONG: OTHER_PATH,
    errno.ELOOP: OTHER_PATH,
    errno.ENOLCK: "use a directory on another disk",
}
NO_TEMPORARY_DIRECTORY = "free some disk space, or set TMPDIR to another directory"


def open_regular(path: Path) -> FileIO:
    """Open a file to read it. Raises OSError, also unless it is regular: nothing else is waited for."""
    return _regular(FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))


def open_own(path: Path, flags: int = 0, mode: int = 0o666) -> FileIO:
    """Open a file of this program to write to it. Raises OSError, also unless it is regular, and for a link to one."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK
    return _regular(FileIO(path, "r+", opener=lambda name, writing: os.open(name, writing | flags, mode)))


def _regular(file: FileIO) -> FileIO:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", str(file.name))
    return file


def read_small(path: Path, limit: int = MAX_SMALL_BYTES) -> bytes:
    """Content of a file that the program itself needs. Raises OSError, also unless it is regular and small."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > limit:  # a limit for `read` would be allocated at once
            raise OSError(errno.EFBIG, f"larger than {format_size(limit)}", str(path))
        return file.read()


def read_small_json(path: Path) -> Any:
    """The JSON value in such a file. Raises OSError, and ValueError if it holds none."""
    import json

    try:
        return json.loads(read_small(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def cache_json(path: Path, value: Any) -> None:
    """Save what can be found out again, as JSON, without waiting for the disk; failures are ignored."""
    import json

    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_file(path) as part:
            write_all(part.file.fileno(), json.dumps(value).encode())
            part.path.replace(path)


def file_sha256(path: Path) -> str | None:
    """The SHA-256 of a file; None if it does not exist."""
    from hashlib import file_digest

    try:
        with open_regular(path) as file:
            return file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def read_beginning(path: Path, limit: int) -> bytes:
    """Read a file, or one byte more than the limit of a larger one."""
    with path.open("rb") as file:
        return file.read(limit + 1)


def decode_text(data: bytes, name: str, limit: int, error_type: type[CerebrumError]) -> str:
    """Decode UTF-8 without a byte order mark. Raises UsageError, and `error_type` beyond the limit."""
    if len(data) > limit:
        raise error_type(f"{name} is larger than {format_size(limit)}", "shorten it, or split it")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})", "convert it to UTF-8, or omit it") from error


def read_text(path: Path, limit: int, error_type: type[CerebrumError] = UsageError) -> str:
    """Read a text file. Raises UsageError if it cannot be read or is not UTF-8, and `error_type` if it is larger."""
    with readable(path):
        data = read_beginning(path, limit)
    return decode_text(data, str(path), limit, error_type)


def file_error(
    error: OSError, error_type: type[CerebrumError] = CerebrumError, path: Path | None = None, then: str = ""
) -> CerebrumError:
    """The error for a file or a disk that cannot be used, by default at `path`; `then` follows the hint."""
    problem = error.strerror or str(error)
    name = error.filename if isinstance(error.filename, (str, Path)) else path
    if name is None and error.errno == errno.ENOENT:  # of `tempfile`
        return error_type(problem, NO_TEMPORARY_DIRECTORY)
    hint = HINTS.get(error.errno or 0, "check the path and its permissions")
    return error_type(f"{short_name(name)}: {problem}" if name else problem, f"{hint}{then}")


@contextmanager
def translate_os_errors(error_type: type[CerebrumError], path: Path, then: str = "") -> Iterator[None]:
    """Raise a CerebrumError for an OSError, as `file_error` makes it."""
    try:
        yield
    except OSError as error:
        raise file_error(error, error_type, path, then) from error


def readable(path: Path) -> AbstractContextManager[None]:
    """Raise UsageError for a file or directory that the user has named, and that cannot be read."""
    require_not_output(path, str(path))
    return translate_os_errors(UsageError, path)


def require_place(path: Path, flag: str) -> None:
    """Raise UsageError for a file whose directory cannot be written; `flag` names the option that chooses it."""
    folder = path.parent
    if not is_directory(folder):
        raise UsageError(f"directory {folder} does not exist", "create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"directory {folder} is not writable", f"choose another {flag}")


def require_not_output(file: Path | int, name: str) -> None:
    """Raise UsageError for a file that standard output replaces (`> FILE`): a shell has emptied it already."""
    with suppress(OSError, ValueError):
        output = os.fstat(STANDARD_OUTPUT)
        is_appended = fcntl.fcntl(STANDARD_OUTPUT, fcntl.F_GETFL) & os.O_APPEND
        if stat.S_ISREG(output.st_mode) and not is_appended and os.path.samestat(os.stat(file), output):  # noqa: PTH116
            raise UsageError(f"{name} is the file that standard output replaces", "redirect the output to another file")


@contextmanager
def reading_model(path: Path) -> Iterator[None]:
    """Raise ModelFileError for a file of a model that cannot be read."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte, or an empty file to map
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelFileError(path, f"cannot be read: {reason}") from error


def require_space(directory: Path, size: int, error_type: type[CerebrumError], elsewhere: str) -> None:
    """Raise a CerebrumError if a file of this size does not fit on the disk of a directory, which may not exist yet.

    `elsewhere` is what helps besides.
    """
    from shutil import disk_usage

    need = size + DISK_MARGIN
    directory = _nearest(directory)
    usage = disk_usage(directory)
    if usage.total and usage.free < need:  # some file systems report no size
        problem = f"{directory}: not enough disk space: needs {format_size(need)}; {format_size(usage.free)} is free"
        raise error_type(problem, f"free {format_size(need - usage.free)}, or {elsewhere}")


def on_same_disk(first: Path, second: Path) -> bool:
    """Whether two directories, which may not exist yet, are on one file system."""
    return _nearest(first).stat().st_dev == _nearest(second).stat().st_dev


def _nearest(directory: Path) -> Path:
    """A directory, or the nearest above it that exists."""
    return next(parent for parent in (directory, *directory.parents) if exists(parent))


def write_all(descriptor: int, data: bytes) -> None:
    unwritten = memoryview(data)
    while unwritten:
        unwritten = unwritten[os.write(descriptor, unwritten) :]


def atomic_write(path: Path, data: bytes, size: int | None = None, mode: int = 0o600) -> None:
    """Replace the content of a file atomically: readers and crashes see the old or the new content.

    A `size` beyond the data is filled with zeros, which take no space if the file system supports sparse files. By
    default, the file is readable only by its owner.
    """
    with unfinished_file(path, mode) as part:
        write_all(part.file.fileno(), data)
        if size is not None:
            part.file.truncate(size)
        commit_file(part, path)


class UnfinishedFile(NamedTuple):
    path: Path
    file: FileIO


@contextmanager
def unfinished_file(path: Path, mode: int = 0o600) -> Iterator[UnfinishedFile]:
    """Create a file beside `path`, to be renamed to it by `commit_file`; it is removed at the end unless it was.

    An OSError about it names `path`.
    """
    remove_abandoned(path.parent, f".{path.name}.")
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.{os.getpid()}{PART}")
    try:
        with FileIO(part, "x+", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield UnfinishedFile(part, file)
    except OSError as error:
        if error.filename in (part, str(part)):
            error.filename = str(path)
        raise
    finally:
        remove(part)


def commit_file(part: UnfinishedFile, path: Path) -> None:
    os.fsync(part.file.fileno())
    part.path.replace(path)
    fsync_directory(path.parent)


def remove_abandoned(directory: Path, prefix: str = "") -> None:
    """Remove the unfinished files that killed processes left."""
    with suppress(OSError):
        for path in directory.iterdir():
            process = path.stem.rpartition(".")[2]
            is_part = path.name.startswith(prefix) and path.suffix == PART and process.isdigit()
            if is_part and not _is_running(int(process)):
                remove(path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def fsync_directory(directory: Path) -> None:
    """Make new or renamed files in a directory durable, where the system supports it."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock_file(
    path: Path,
    on_busy: CerebrumError | Callable[[], object],
    mode: int = 0o666,
    is_required: bool = True,
    interval_s: float = 0.02,
) -> FileIO:
    """Open or create a file and lock it until it is closed.

    If another process holds its lock, `on_busy` is raised, or called again and again while this waits.
    On a file system without locks, this is an OSError (ENOLCK), unless no lock `is_required`.
    """
    while True:
        file = open_own(path, os.O_CREAT, mode)
        try:
            is_locked = _flock(file, path, is_required)
            if is_locked and _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()
        if is_locked:
            continue  # its last holder has renamed or removed it, and there is another one to lock
        if isinstance(on_busy, CerebrumError):
            raise on_busy
        on_busy()
        time.sleep(interval_s)


@contextmanager
def work_directory(parent: Path, name: str) -> Iterator[Path]:
    """Create a directory for temporary files in `parent`, which may not exist yet; removed at the end."""
    from tempfile import TemporaryDirectory

    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{name}.", dir=parent) as directory:
        yield Path(directory)


def folder_size(folder: Path) -> int:
    """Bytes of the files directly in a folder; 0 if there is none."""
    size = 0
    for path in folder.glob("*"):
        with suppress(OSError):  # another process has just removed it
            size += path.stat().st_size
    return size


def remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _flock(file: FileIO, path: Path, is_required: bool = True) -> bool:
    """Whether a lock was taken; also True without locks, if none `is_required`."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if is_required:
            raise OSError(errno.ENOLCK, "this file system has no file locks", str(path)) from error
    return True


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def looks_like_path(text: str) -> bool:
    """Whether a reference to a model can only be a path: it ends in .gguf, or begins as paths do."""
    return text in (".", "..") or text.lower().endswith(".gguf") or text.startswith(("/", "./", "../", "~"))


def as_path(reference: str) -> Path:
    return Path(expand_user(reference))


def as_reference(path: Path) -> str:
    """A reference to the file or folder of a path, which could be the name of a model."""
    return str(path) if looks_like_path(str(path)) else f"./{path}"


def absolute_reference(reference: str) -> str:
    """A reference that means the same in any directory: of a path, the absolute one."""
    if looks_like_path(reference):
        return str(absolute_path(as_path(reference)))
    return reference


def absolute_path(path: Path) -> Path:
    """Absolute path of a file, with links resolved in its directory only: in the Hub's cache, it links to a blob."""
    return path.parent.resolve() / path.name


def is_missing(path: Path) -> bool:
    """Whether a path certainly does not exist; an inaccessible one might."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False
