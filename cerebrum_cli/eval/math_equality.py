"""Whether two mathematical answers are equal, by Math-Verify, in a child process that can be stopped at any time.

Its equality is no equivalence relation, so it adds to the normal forms, and is never the key of a vote. Its own time
limits are signals, which work in the main thread only and not within one operation, such as a huge power.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from importlib import metadata

from cerebrum_cli.answers.plain_text import plain
from cerebrum_cli.core.text import pip_install
from cerebrum_cli.eval.line_process import LineProcess

INSTALL = pip_install('"cerebrum-cli[math]"')
TIMEOUT_S = 5.0  # of a comparison; a typical one takes 10 ms
MEMORY = 2**32  # bytes, for the child process
MAX_LENGTH = 300

_EQUAL = b"1\n"
# Math-Verify would read words, and the base of a number, as products of variables.
_TEXT = re.compile(r"(?<![\\A-Za-z])(?!(?:sqrt|array|[bpv]?matrix)\b)[A-Za-z]{4,}|(?<!\\log)_\{?\d")
_ROOT = re.compile(r"(?:√|(?<!\\)\bsqrt(?=\())\s?(\d+|\w|\([^()]*\))")
_LATEX = {"π": "pi", "±": "pm", "∞": "infty", "∪": "cup", "∩": "cap", "≤": "le", "≥": "ge", "×": "times", "·": "cdot"}
_TRANSLATION = str.maketrans({character: f"\\{name} " for character, name in _LATEX.items()} | {"−": "-", "°": ""})


def math_verify_version() -> str | None:
    try:
        return metadata.version("math-verify")
    except metadata.PackageNotFoundError:
        return None


class MathVerify:
    """Compares answers with references; those whose comparison fails or takes too long are not equal. Close it."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        hint = f"reinstall it: {pip_install('--force-reinstall math-verify')}"
        self._process = LineProcess("Math-Verify", hint, "-m", __name__)
        self._known: dict[tuple[str, str], bool] = {}

    def is_equal(self, answer: str, reference: str) -> bool:
        pair = _latex(answer), _latex(reference)
        if pair not in self._known:
            is_text = any(len(text) > MAX_LENGTH or _TEXT.search(text) for text in pair)
            self._known[pair] = not is_text and self._process.ask(pair, self._timeout_s) == _EQUAL
        return self._known[pair]

    def close(self) -> None:
        self._process.close()


def _latex(text: str) -> str:
    return _ROOT.sub(r"\\sqrt{\1}", plain(text)).translate(_TRANSLATION)


def main() -> None:
    """Compare the pairs on standard input, one on each line."""
    import logging
    import resource

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    with contextlib.suppress(ValueError, OSError):
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
