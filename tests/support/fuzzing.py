"""Random chat templates and grammars, tried in a process of 2 GB: `fuzzing.py KIND SEED COUNT`.

A case may end with one of this project's errors, in one line; with anything else the process fails.
"""

import json
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from cerebrum_cli.core.errors import CerebrumError

MEMORY = 2_000_000_000
AMBIGUOUS = 0.001  # share of random grammars that may take llama.cpp exponential time; two Ctrl-C end such a reply
SECONDS = 7.0  # for one case
FAMILIES = tuple(
    path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parents[1] / "data" / "templates").glob("*.jinja"))
)
SYMBOLS = (
    *("root", "a", "b", '"x"', '"y\\n"', "[a-z]", "[^x]", "(", ")", "|", "*", "+", "?"),
    *("{2,5}", "{1,200}", "{9,1}", "{3}", " ", "\n", "::=", "root ::= ", "\na ::= ", "\nb ::= ", "#", '"', "[", "]"),
    *("\\", "\0", ".", "<[5]>", "!<x>", "é"),
)
SCHEMA_KEYS = (
    *("type", "items", "properties", "anyOf", "allOf", "$ref"),
    *("enum", "const", "pattern", "minItems", "maxItems"),
)


def mutated(rng: random.Random, text: str) -> str:
    """A text with some of its parts removed, repeated or exchanged."""
    for _ in range(rng.randint(1, 4)):
        start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        end = min(end, start + rng.choice((1, 5, 50)))
        text = text[:start] + text[start:end] * rng.choice((0, 2, 9)) + text[rng.choice((start, end)) :]
    return text


def template_cases(rng: random.Random) -> Iterator[Callable[[], object]]:
    from cerebrum_cli.formats.template_sandbox import run_template

    values = {
        "messages": [{"role": role, "content": f"{role}s say: <b>é</b>\\n"} for role in ("user", "assistant", "user")],
        "add_generation_prompt": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "strftime_now": datetime.now().strftime,
    }
    while True:
        source = mutated(rng, rng.choice(FAMILIES))
        yield lambda source=source: run_template(source, values)  # type: ignore[misc]


def grammar_cases(rng: random.Random) -> Iterator[Callable[[], object]]:
    from cerebrum_cli.core.grammar import Grammar, schema_grammar
    from cerebrum_cli.grammars.guidance import compile_grammar

    def follow(grammar: Grammar) -> None:
        matcher = compile_grammar(grammar)
        for _ in range(5):
            matcher.try_consume_tokens([rng.randrange(256)])
        matcher.compute_bitmask()

    def schema(depth: int) -> object:
        if not depth or rng.random() < 0.2:
            return rng.choice(
                ("string", "object", "nope", 5, -1, None, True, [], "^a{0,9}$", "^(a|[b$", "#/a", 10**9, 1e99)
            )
        if rng.random() < 0.3:
            return [schema(depth - 1) for _ in range(rng.randint(0, 3))]
        return {rng.choice(SCHEMA_KEYS): schema(depth - 1) for _ in range(rng.randint(0, 4))}

    while True:
        kind = rng.random()
        if kind < 0.5:
            text = "root ::= " + " ".join(rng.choice(SYMBOLS) for _ in range(rng.randint(1, 40)))
            yield lambda text=text: follow(Grammar("gbnf", text))  # type: ignore[misc]
        elif kind < 0.6:
            text = "root ::= " + rng.choice('([{"') * rng.choice((50, 1999, 20_000)) + '"a"'
            yield lambda text=text: follow(Grammar("gbnf", text))  # type: ignore[misc]
        else:
            text = mutated(rng, json.dumps(schema(4))) if kind < 0.7 else json.dumps(schema(4))
            yield lambda text=text: follow(schema_grammar(text))  # type: ignore[misc]


KINDS = {"templates": template_cases, "grammars": grammar_cases}


def main(kind: str, seed: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cases = KINDS[kind](random.Random(seed))
    endless = sum(not ends(next(cases), has_child=kind == "grammars") for _ in range(count))
    assert endless <= count * AMBIGUOUS, f"{endless} of {count} cases took more than {SECONDS} s"


def ends(case: Callable[[], object], has_child: bool) -> bool:
    """Try a case, and return whether it ends in time; in a child, since native code cannot be interrupted."""
    child = os.fork() if has_child else 0
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGALRM), f"the process of a case ended with status {status}"
        return status == 0
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        attempt(case)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    if has_child:
        os._exit(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def attempt(case: Callable[[], object]) -> None:
    try:
        case()
    except CerebrumError as error:
        assert "\n" not in error.message and error.message.isprintable(), error.message
        assert error.hint, error.message


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
