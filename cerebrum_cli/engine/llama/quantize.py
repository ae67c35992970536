"""Child process that writes a model in another encoding: a request on standard input, progress on standard output.

It exits when its input is closed, because then its parent has exited.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterable
from typing import Any

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.llama.bindings import llama, log
from cerebrum_cli.engine.machine import thread_count

TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")  # start of llama.cpp's log line for each tensor
FAILED = "failed to quantize: "
UNWRITTEN = "basic_ios"  # in the message of a C++ stream that failed to write


def quantize(source: str, target: str, file_type: int) -> None:
    """Write a model, split or quantized, in one encoding. EngineError with llama.cpp's reason."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = file_type
    params.allow_requantize = True
    params.nthread = thread_count()
    if llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), params):
        raise EngineError(*failure_reason(log.problems))


def failure_reason(problems: Iterable[str]) -> tuple[str, str]:
    """Extract the problem from llama.cpp's log, and a hint if there is one."""
    found = next((line.partition(FAILED)[2] for line in problems if FAILED in line), "")
    if UNWRITTEN in found:
        return "the file cannot be written completely", "free some disk space"
    return found or "unknown reason", ""


def send(message: dict[str, Any]) -> None:
    """Write a message to standard output."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def report_progress(line: str) -> None:
    """Report progress if a line of llama.cpp's log contains it."""
    if found := TENSOR.match(line):
        send({"done": int(found[1]), "total": int(found[2])})


def exit_with_input() -> None:
    """Exit when the input ends."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Process the request on standard input."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=exit_with_input, daemon=True).start()
    log.forward = report_progress
    try:
        quantize(**request)
    except EngineError as error:
        send({"error": error.message, "hint": error.hint})
    else:
        send({"done": "all"})
    os._exit(0)  # a regular exit would wait for the lock of standard input, which the other thread holds


if __name__ == "__main__":
    main()
