"""Programs in replies, also to a prompt that begins a Python function; pure functions that run nothing."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from itertools import islice, takewhile
from typing import NamedTuple

FENCE = re.compile(r"(?P<indent> *)(?P<marks>`{3,}|~{3,})(?P<info>[^`]*)")
FUTURE_IMPORT = re.compile(r"(?m)^from __future__ import .*$")
TOP_LEVEL = re.compile(r"from [\w.]+ import |import [\w., ]+$|@\w|(async )?def \w|class \w|\w+ *(:[^=]+)?= ")
INDENT = "    "
OWN_CALLS = ("input(", "print(", "__name__")  # of a program's own tests and examples
INNER_FENCES = 8  # in a program's strings, such as examples of its use


class Block(NamedTuple):
    """Text that may be code; an unclosed block may be truncated, or followed by other text."""

    text: str
    is_closed: bool


def extract_program(reply: str, prompt: str, entry_point: str) -> str | None:
    """Find the program of a reply, completed with what it needs of the prompt; None if the reply has no code.

    In this order: the last fenced block that defines the entry point, unless it only repeats its signature; a
    definition outside of blocks, the last block that continues the prompt, text that does, the last block. A closed
    block may be invalid, and is not repaired. Helpers are taken from other blocks, and what a block runs below the
    function, such as the model's own tests, is left out.
    """
    reply = reply.replace("\r\n", "\n")
    blocks = fenced_blocks(reply)
    name = re.escape(entry_point)
    opening = re.search(rf"^(@.*\n)*(async )?def {name}\b", prompt, re.MULTILINE)
    preamble = prompt[: opening.start()].strip("\n") if opening else ""
    definition = re.compile(rf"(?m)^((async )?def {name}\b|{name} *(:[^=\n]+)?=[^=])")
    defining = [block for block in reversed(blocks) if definition.search(block.text)]
    if defining:
        block = next((block for block in defining if not _is_stub(block.text, entry_point)), defining[0])
        code = _without_own_tests(block.text if block.is_closed else _valid_prefix(block.text), entry_point)
        helpers = [other.text for other in blocks if other not in defining]
        return _with_preamble(preamble, _with_helpers(code, helpers, preamble))
    if function := _bare_function(reply, entry_point):
        return _with_preamble(preamble, function)
    # A first fence may close a block that was opened by the prompt.
    before_fence = "\n".join(takewhile(lambda line: not FENCE.fullmatch(line), reply.split("\n")))
    for block in (*reversed(blocks), Block(before_fence, is_closed=False)):
        if program := _continue_prompt(prompt, block, entry_point):
            return program
    return _with_preamble(preamble, blocks[-1].text) if blocks else None


def _functions(code: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions that code defines at its top level; none of invalid code."""
    body = _parse(code).body if _first_error(code) is None else []
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def _is_stub(code: str, entry_point: str) -> bool:
    """Whether the entry point has nothing but a docstring, `pass`, `...` or an error for what is missing."""
    function = _functions(code).get(entry_point)
    return function is not None and all(
        isinstance(node, ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Raise) and "NotImplemented" in ast.unparse(node))
        for node in function.body
    )


def _without_own_tests(code: str, entry_point: str) -> str:
    """Code without what it runs below the entry point: assertions, examples of its use, and reading of input."""
    function = _functions(code).get(entry_point)
    lines = code.split("\n")
    for node in reversed(_parse(code).body if function else []):
        text = ast.unparse(node)
        is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        is_test = isinstance(node, ast.Assert) or any(call in text for call in (f"{entry_point}(", *OWN_CALLS))
        if function and node.lineno > function.lineno and is_test and not is_definition:
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines)


def _with_helpers(code: str, blocks: list[str], preamble: str) -> str:
    """Put before code the blocks that define functions which it calls and lacks."""
    called = {node.id for node in ast.walk(_parse(code)) if isinstance(node, ast.Name)} if _functions(code) else set()
    missing = called - _functions(f"{preamble}\n{code}").keys()
    helpers = [block for block in blocks if missing & _functions(block).keys()]
    return "\n\n\n".join([*(_without_own_tests(block, next(iter(_functions(block)))) for block in helpers), code])


def fenced_blocks(text: str) -> list[Block]:
    blocks: list[Block] = []
    lines, at = text.split("\n"), 0
    while at < len(lines):
        opening = FENCE.fullmatch(lines[at])
        at += 1
        if opening:
            start, at = at, _end_of_block(lines, at, opening["marks"])
            blocks.append(Block(_code(lines[start:at]), is_closed=at < len(lines)))
            at += 1
    return [block for block in blocks if block.text.strip()]


def _end_of_block(lines: list[str], start: int, marks: str) -> int:
    """Index of the line that closes a block: the first fence, unless it is in a string of a valid program."""
    fences = ((at, FENCE.fullmatch(lines[at])) for at in range(start, len(lines)))
    closing = (at for at, fence in fences if fence and fence["marks"].startswith(marks) and not fence["info"].strip())
    ends = list(islice(closing, 1 + INNER_FENCES)) or [len(lines)]
    return next((end for end in ends if _first_error(_code(lines[start:end])) is None), ends[0])


def _code(lines: list[str]) -> str:
    return textwrap.dedent("\n".join(lines))


def _with_preamble(preamble: str, code: str) -> str:
    """Put a preamble before code, but after imports from `__future__`, which come first in a file."""
    if preamble in code:
        return code
    start = max((line.end() + 1 for line in FUTURE_IMPORT.finditer(code)), default=0)
    return f"{code[:start]}{preamble}\n\n\n{code[start:]}"


def _bare_function(text: str, entry_point: str) -> str | None:
    definition = re.compile(rf"(?P<indent> *)(async )?def {re.escape(entry_point)} *\(")
    lines = text.split("\n")
    definitions = [(number, match["indent"]) for number, line in enumerate(lines) if (match := definition.match(line))]
    if not definitions:
        return None
    start, indent = definitions[-1]
    lines = [line.removeprefix(indent) for line in lines]
    for number in range(start - 1, -1, -1):
        if TOP_LEVEL.match(lines[number]):
            if _first_error("\n".join([*lines[number:start], "def following(): pass"])) is not None:
                break
            start = number
    return _without_last_words(_valid_prefix("\n".join(lines[start:])))


def _continue_prompt(prompt: str, block: Block, entry_point: str) -> str | None:
    """Join a prompt and the rest of its function; None if that is no code.

    The first line of a body may have lost its indentation, or all its lines, or words may come before it.
    """
    prompt = prompt.rstrip()
    body = re.sub(
        r"^[ \t]+", lambda indent: indent[0].expandtabs(4), block.text.strip("\n").rstrip(), flags=re.MULTILINE
    )
    variants = [body] if body.startswith(" ") else [INDENT + body, textwrap.indent(body, INDENT)]
    if not block.is_closed and (indented := re.search(r"\n( +\S.*)", body, re.DOTALL)):
        variants.append(indented[1])
    programs = [f"{prompt}\n{variant}\n" for variant in variants]
    if not block.is_closed:
        programs += [_without_last_words(_valid_prefix(program)) for program in programs]
    start = prompt.count("\n") + 1
    return next((program for program in programs if _has_body(program, entry_point, start)), None)


def _has_body(program: str, entry_point: str, start: int) -> bool:
    function = _functions(program).get(entry_point)
    body = function.body if function else []
    return any(statement.lineno > start and not _is_words(statement) for statement in body)


def _without_last_words(code: str) -> str:
    """Cut off the end of valid code where it only looks like code: words, or examples of the function's use."""
    statements = _parse(code).body
    while statements and (isinstance(statements[-1], ast.Expr) or _is_words(statements[-1])):
        statements.pop()
    end = statements[-1].end_lineno if statements else 0
    return "\n".join(code.split("\n")[:end])


def _is_words(statement: ast.stmt) -> bool:
    """Whether a statement does nothing, such as a single word, or one that is followed by a colon and another."""
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None
    return isinstance(statement, ast.Expr) and not isinstance(
        statement.value, ast.Call | ast.Await | ast.Yield | ast.YieldFrom
    )


def _valid_prefix(code: str) -> str:
    lines = code.split("\n")
    while (error := _first_error("\n".join(lines))) is not None:
        del lines[max(0, min(error, len(lines)) - 1) :]
    return "\n".join(lines)


def _first_error(code: str) -> int | None:
    """Line of an error in code, counted from 1; None if it is valid."""
    try:
        _parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, OverflowError, MemoryError, RecursionError):  # null characters, or nested too deep
        return 1
    return None


def _parse(code: str) -> ast.Module:
    """Parse code, and compile it too, which finds more errors: a `return` outside of functions, for example."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a model wrote
        compile(code, "<reply>", "exec", dont_inherit=True)
        return ast.parse(code)
