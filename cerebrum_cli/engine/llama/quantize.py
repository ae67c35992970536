"""The process that writes a model anew in another encoding: what to do on standard input, how far it is on standard
output, in JSON.

It ends with its input: whoever asked is gone then.
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
from cerebrum_cli.engine.llama.library import llama, log
from cerebrum_cli.engine.machine import thread_count

TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")  # how llama.cpp begins a line of its log for each
FAILED = "failed to quantize: "
UNWRITTEN = "basic_ios"  # how C++ says that a stream has failed


def quantize(source: str, target: str, file_type: int) -> None:
    """Write a model in one encoding, split or already quantised as it may be. EngineError with llama.cpp's reason."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = file_type
    params.allow_requantize = True
    params.nthread = thread_count()
    if llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), params):
        raise EngineError(*reason(log.problems))


def reason(problems: Iterable[str]) -> tuple[str, str]:
    """Return what llama.cpp complains of, and what to do where that can be told."""
    found = next((line.partition(FAILED)[2] for line in problems if FAILED in line), "")
    if UNWRITTEN in found:
        return "the file cannot be written to its end", "free some disk space"
    return found or "it gives no reason", ""


def tell(what: dict[str, Any]) -> None:
    """Write a line of output."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def follow(line: str) -> None:
    """Tell how far it is, where a line of llama.cpp's log does."""
    if found := TENSOR.match(line):
        tell({"done": int(found[1]), "total": int(found[2])})


def leave_with_input() -> None:
    """Wait for the end of input, and end."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Do what the one line of input says."""
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=leave_with_input, daemon=True).start()
    log.forward = follow
    try:
        quantize(**given)
    except EngineError as error:
        tell({"error": error.message, "do": error.hint})
    else:
        tell({"done": "all"})
    os._exit(0)  # the thread that reads may hold the lock of standard input, which a usual end waits for


if __name__ == "__main__":
    main()
