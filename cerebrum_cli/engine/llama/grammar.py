"""GBNF grammars by llama.cpp's own sampler."""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import suppress
from tempfile import TemporaryFile
from typing import Any

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.engine.llama.bindings import llama, log

# llama.cpp parses groups recursively, and needs a stack of 500 bytes for each; it rejects 1,500 nested `?` itself.
MAX_DEPTH = 2000
MAX_RULES = 10_000  # the memory for the first token may grow with the square of their number
MAX_BYTES = 4_000_000
_SYNTAX = re.compile(
    r'"(?:[^"\\\0]|\\[^\0])*"?|\[(?:[^\]\\\0]|\\[^\0])*\]?|#[^\n\0]*'  # what may contain the marks as text
    r"|(?P<mark>[()\0]|::=|\{\s*(?P<least>\d*)\s*(?:,\s*(?P<most>\d*)\s*)?\})"
)


def check_grammar(grammar: str) -> None:
    """Raise GrammarError for a grammar that may overflow the stack of llama.cpp's parser, or exhaust memory."""
    if len(grammar) > MAX_BYTES:
        raise GrammarError(f"the grammar is larger than {MAX_BYTES // 1_000_000} MB", "use a smaller one")
    depth = rules = 0
    for match in _SYNTAX.finditer(grammar):
        mark, least, most = match.group("mark", "least", "most")
        if mark is None:
            continue
        if mark == "(":
            depth += 1
        elif mark == ")":
            depth -= 1
        elif mark == "::=":
            rules += 1
        if depth > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} nested groups"
        elif rules > MAX_RULES:
            problem = f"more than {MAX_RULES} rules"
        elif max(len(least or ""), len(most or "")) > 9 or (least and most and int(least) > int(most)):
            problem = f"invalid repetition {mark[:40]}"
        elif mark == "\0":
            problem = "NUL character"
        else:
            continue
        line = 1 + grammar.count("\n", 0, match.start())
        start = grammar.rfind("\n", 0, match.start())
        problem = f"cannot parse the grammar: line {line}, column {match.start() - start}: {problem}"
        raise GrammarError(problem, "simplify the grammar there")


def parse_grammar(vocab: Any, grammar: str) -> Any:
    """Create llama.cpp's sampler for a GBNF grammar; GrammarError if it is invalid."""
    check_grammar(grammar)
    log.problems.clear()
    sampler, printed = _capture_stderr(lambda: llama.llama_sampler_init_grammar(vocab, grammar.encode(), b"root"))
    if not sampler:
        _, _, error = printed.decode("utf-8", "replace").partition("error parsing grammar: ")
        problem, at, rest = error.removesuffix(f"\n\n{grammar}\n").partition(" at ")
        if at:
            line = 1 + grammar.removesuffix(rest).rstrip("\n").count("\n")
            place = rest.strip().partition("\n")[0][:40] or "the end"
            problem = f"line {line}: {problem} at {place}"
        reason = problem or next(iter(log.problems), "llama.cpp gives no reason")
        raise GrammarError(f"cannot parse the grammar: {reason}", "it must be GBNF with a rule named root")
    return sampler


def is_allowed(sampler: Any, token: int) -> bool:
    single = llama.llama_token_data(id=token, logit=0.0, p=0.0)
    candidates = llama.llama_token_data_array(data=ctypes.pointer(single), size=1, selected=-1, sorted=False)
    llama.llama_sampler_apply(sampler, ctypes.byref(candidates))
    return bool(single.logit != float("-inf"))


def accept_token(sampler: Any, token: int) -> bool:
    """Continue with a token if the grammar allows it; return whether it does. Others would abort the process."""
    if not is_allowed(sampler, token):
        return False
    llama.llama_sampler_accept(sampler, token)
    return True


def _capture_stderr(call: Any) -> tuple[Any, bytes]:
    """Call a native function; return its result, and what it wrote to stderr, where the user would see it."""
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        return call(), b""
    with TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            result = call()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        captured.seek(0)
        printed = captured.read()
    if result and printed:  # by other threads
        with suppress(OSError):
            os.write(2, printed)
    return result, printed
