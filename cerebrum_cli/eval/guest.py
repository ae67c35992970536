"""Runs a program and its test inside the sandbox, whose interpreter gets this file as text: standard library only."""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import traceback
from types import ModuleType

# Soft and hard limits; a file system of /tmp has its own.
LIMITS = {resource.RLIMIT_AS: 2**29, resource.RLIMIT_FSIZE: 2**24, resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CORE: 0}
DETAIL = 8000  # characters that are reported of what a program prints, and of its error


def main() -> None:
    """Run the program that standard input describes, and report how it ended on what was standard output.

    The report begins with a token, which the program cannot print before its test has ended.
    """
    request = json.load(sys.stdin)
    report, write, end_process = os.dup(1), os.write, os._exit
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for name, limit in (*LIMITS.items(), (resource.RLIMIT_CPU, request["cpu_s"])):
        resource.setrlimit(name, (limit, limit))
    write(report, b"ready\n")
    reason, detail = run(request["code"], request["test"])
    write(report, f"{request['token']} {reason}\n{detail}".encode(errors="replace"))
    end_process(0)  # not by `sys.exit`: no exit handlers, no threads to wait for


def run(code: str, test: str) -> tuple[str, str]:
    """Execute a program and its test in one new module; the reason for the result, and the error or what they print."""
    module = ModuleType("program" if test else "__main__")  # __main__ has parts that are not what is tested
    sys.modules[module.__name__] = module  # where dataclasses look their annotations up
    printed = sys.stdout = io.StringIO()
    vars(module).update(exit=sys.exit, quit=sys.exit)  # as in a terminal
    format_error, memory_error, exit_error = traceback.format_exception, MemoryError, SystemExit
    try:
        for name, source in (("program.py", code), ("test.py", test)):
            exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
    except memory_error:
        return "memory", ""
    except BaseException as error:
        if test or not isinstance(error, exit_error) or error.code:
            own = error.__traceback__  # the frame of this function, above those of the program
            problem = "".join(format_error(type(error), error, own and own.tb_next, limit=-3))
            return "failed", cut(printed.getvalue() + problem, DETAIL)
    return "passed", cut(printed.getvalue(), DETAIL)


def cut(text: str, limit: int) -> str:
    """The beginning and the end of a text that is longer than `limit` characters, as of `core.text.cut_middle`."""
    if len(text) <= limit:
        return text
    start = limit // 2
    end = len(text) - (limit - start)
    return f"{text[:start]}\n[... {end - start:,} characters omitted ...]\n{text[end:]}"


if __name__ == "__main__":
    main()
