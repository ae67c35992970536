"""Errors that end a command, and what its user reads of them; imported when there is one."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import typer

from cerebrum_cli.core.declaration import flag
from cerebrum_cli.core.errors import CerebrumError, Interrupted, OutputError, UsageError
from cerebrum_cli.core.files import file_error
from cerebrum_cli.core.settings import OPTIONS
from cerebrum_cli.terminal.streams import discard, standard_streams

if TYPE_CHECKING:
    from cerebrum_cli.cli import Command
    from cerebrum_cli.cli.app import App

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EEXIST)
PATH_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
NO_TEMPORARY_DIRECTORY = (errno.ENOENT, None)  # error number and file name
NO_MEMORY = ("failed to map segment", "Cannot allocate memory", "cannot allocate memory", "can't start new thread")
OTHER_PROGRAMS = (  # their commands and options, the option that does the same here, and a hint
    ("ls", None, "did you mean cerebrum list?"),
    ("install", None, "did you mean cerebrum pull?"),
    ("run", None, "did you mean cerebrum chat MODEL, or cerebrum ask -m MODEL QUESTION?"),
    ("ps", None, "a model is in memory only while a command runs"),
    ("stop", None, "a model is in memory only while a command runs"),
    ("create", None, "did you mean cerebrum pull FILE, or cerebrum prompts edit NAME?"),
    ("serve", None, "start llama-server -m FILE, and use it with cerebrum chat --endpoint URL"),
    ("--verbose", "--stats", "did you mean --stats?"),
    ("-v", "--stats", "did you mean --stats?"),
    ("--prompt", "--saved-prompt", "write the prompt without an option; did you mean --saved-prompt?"),
)


def report(error: Exception, command: Command | None, app: App | None) -> int | None:
    """Print an error of a command line, and return its exit code; None for a bug, of which nothing is printed."""
    context: typer.Context | None = getattr(error, "ctx", None)
    problem: CerebrumError | None = None
    match error:
        case typer.TyperException(exit_code=code):
            if context and error.message == context.get_help():  # of a command without arguments
                typer.echo(error.message, err=True)
                return code
            problem = usage_error(error, context, command)
            problem.exit_code = code
        case _ if is_out_of_memory(error):
            error.with_traceback(None)  # frees what its frames hold
            problem = CerebrumError("not enough memory", "close other programs, or raise the limit (ulimit -v)")
        case OSError():
            problem = disk_error(error)
        case CerebrumError():
            problem = error
    if problem is None:
        return None
    if problem.hint or not isinstance(problem, Interrupted):
        (app.streams if app else standard_streams()).error(problem)
    return problem.exit_code


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory for a value, a library, a thread or a process."""
    match error:
        case MemoryError() | OSError(errno=errno.ENOMEM):
            return True
        case ImportError() | RuntimeError():
            return any(sign in str(error) for sign in NO_MEMORY)
    return False


def disk_error(error: OSError) -> CerebrumError | None:
    """The error for a disk, a path or a standard output that cannot be used; None for any other, which is a bug."""
    if error.errno == errno.EBADF and error.filename is None and not is_writable(sys.stdout):
        discard(sys.stdout)
        return OutputError.closed()
    if error.errno in PATH_ERRORS:
        return file_error(error, UsageError)
    if error.errno not in DISK_ERRORS and (error.errno, error.filename) != NO_TEMPORARY_DIRECTORY:
        return None
    if error.filename is None:
        discard(sys.stdout)  # Typer may not have been able to write help or version
    return file_error(error)


def is_writable(stream: TextIO) -> bool:
    try:
        return fcntl.fcntl(stream.fileno(), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:  # it is closed
        return False


def usage_error(error: typer.TyperException, context: typer.Context | None, command: Command | None) -> UsageError:
    problem, _, near = error.message.rstrip(".?").partition(". Did you mean ")
    path = "cerebrum"
    if context:
        path = context.command_path
    elif command:
        path = f"cerebrum {command.name}"
    known = [option for parameter in context.command.params for option in parameter.opts] if context else []
    near = near or next(iter(getattr(error, "possibilities", None) or ()), "")
    hint = usage_hint(problem, path, known, near)
    return UsageError(problem[:1].lower() + problem[1:], hint)


def usage_hint(problem: str, path: str, known: Sequence[str], near: str) -> str:
    """What to write instead, for a command at a `path`, the flags that it knows, and the name that is most like it."""
    for unknown, own, hint in OTHER_PROGRAMS:
        if problem in (f"No such command '{unknown}'", f"No such option: {unknown}") and (own is None or own in known):
            return hint
    if path == "cerebrum" and re.fullmatch(r"(?as)No such command .[\w-]*[^\w-].*.", problem):  # no name: a question
        return 'did you mean cerebrum ask "..."?'
    option = problem.removeprefix("No such option: ")
    key = option.removeprefix("--").replace("-", "_")
    if longer := [own for own in known if option.startswith("--") and own.startswith(flag(key))]:
        return f"did you mean {' or '.join(longer)}?"
    if "--set" in known and key in OPTIONS:
        return f"use --set {key}=VALUE"
    return f"did you mean {near}?" if near else f"see {path} --help"
