"""Compare answers with Math-Verify, in a child process that can be stopped at any time, unlike a function."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from importlib import metadata
from subprocess import DEVNULL, PIPE
from threading import Timer

from cerebrum_cli.core.child_process import ChildProcess
from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.text import pip_install

INSTALL = pip_install('"cerebrum-cli[math]"')
START_S = 60.0  # to import what it needs, on a busy machine
TIMEOUT_S = 5.0  # of a comparison; a typical one takes 10 ms
MEMORY = 2**32  # bytes, for the child process
MAX_LENGTH = 300

_EQUAL = b"1\n"
# Math-Verify would read words, and the base of a number, as products of variables.
_TEXT = re.compile(r"(?<![\\A-Za-z])(?!(?:sqrt|array|[bpv]?matrix)\b)[A-Za-z]{4,}|(?<!\\log)_\{?\d")
_ROOT = re.compile(r"√\s?(\w+|\([^()]*\))")
_NAMES = {"π": "pi", "±": "pm", "∞": "infty", "∪": "cup", "∩": "cap", "≤": "le", "≥": "ge", "×": "times", "·": "cdot"}
_SYMBOLS = str.maketrans({character: f"\\{name} " for character, name in _NAMES.items()} | {"−": "-", "°": ""})


def math_verify_version() -> str | None:
    try:
        return metadata.version("math-verify")
    except metadata.PackageNotFoundError:
        return None


class MathVerify:
    """Whether answers equal references by Math-Verify; those whose comparison fails or takes too long do not. Close it.

    Its process is started with the first comparison, and again after one that it did not answer. Its equality is no
    equivalence relation, so it adds to the normal forms, and is never the key of a vote. Its own time limits are
    signals, which work in the main thread only and not within one operation, such as a huge power.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], bool] = {}
        self._child: ChildProcess | None = None

    def is_equal(self, answer: str, reference: str) -> bool:
        """Raises CerebrumError if the process cannot start."""
        pair = _latex(answer), _latex(reference)
        if pair not in self._known:
            is_text = any(len(text) > MAX_LENGTH or _TEXT.search(text) for text in pair)
            self._known[pair] = not is_text and self._compare(pair) == _EQUAL
        return self._known[pair]

    def close(self) -> None:
        if child := self._child:
            self._child = None
            child.close()

    def _compare(self, pair: tuple[str, str]) -> bytes:
        """The answer of the process; empty if it has ended or takes too long, and then it is killed."""
        if self._child is None:
            command = [sys.executable, "-P", "-m", __name__]  # -P: import nothing from the current directory
            self._child = ChildProcess(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
            if not self._exchange(b"", START_S):
                hint = f"reinstall it: {pip_install('--force-reinstall math-verify')}"
                raise CerebrumError("Math-Verify cannot start", hint)
        return self._exchange(json.dumps(pair).encode() + b"\n", TIMEOUT_S)

    def _exchange(self, request: bytes, timeout_s: float) -> bytes:
        assert self._child and self._child.stdin and self._child.stdout
        timer = Timer(timeout_s, self._child.kill)
        timer.start()
        try:
            self._child.stdin.write(request)
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return line
        self.close()
        return b""


def _latex(answer: str) -> str:
    """An answer with LaTeX's commands in place of symbols."""
    return _ROOT.sub(r"\\sqrt{\1}", answer).translate(_SYMBOLS)


def main() -> None:
    """Write a line when ready, and one for each pair of an answer and a reference on standard input."""
    import logging
    import resource

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    os.write(1, b"ready\n")
    for line in sys.stdin:
        answer, reference = (
            parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None) for text in json.loads(line)
        )
        is_equal = verify(reference, answer, timeout_seconds=None, allow_set_relation_comp=True)
        os.write(1, _EQUAL if is_equal else b"0\n")


if __name__ == "__main__":
    main()
