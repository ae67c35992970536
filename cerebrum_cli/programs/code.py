"""Programs in replies, also to a prompt that begins a Python function; pure functions that run nothing."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence

from cerebrum_cli.programs.blocks import PLAIN_SPACES, Block, before_fence, code_of, fenced_blocks, first_error, parse

FUTURE_IMPORT = re.compile(r"(?m)^from __future__ import .*$")
TOP_LEVEL = re.compile(r"from [\w.]+ import |import [\w., ]+$|@\w|(async )?def \w|class \w|\w+ *(:[^=]+)?= ")
INDENT = "    "
# A program's own tests, examples and end; "main" is also that of unittest.
OWN_CALLS = r"input|print|main|(?:run_)?tests?(?:_\w+)?|testmod|solve|demo|_?exit|quit"
INTERACTIVE = """import ast
exec(compile(ast.Interactive(compile({!r}, "python", "exec", ast.PyCF_ONLY_AST).body), "python", "single"))"""
MAX_ERRORS = 8  # in a truncated program, each above the last: our tests have at most 3, and many would take too long


Function = ast.FunctionDef | ast.AsyncFunctionDef


def extract_program(reply: str, prompt: str, entry_point: str) -> str | None:
    """Find the program of a reply, completed with what it needs of the prompt; None if the reply has no code.

    In this order: the last fenced block that defines the entry point, unless it only repeats its signature; a
    definition outside of blocks, the last block that continues the prompt, text that does, the last block. A closed
    block may be invalid, and is not repaired except for its spaces. Where no function is the entry point, a method of a
    class may be. Names that a block lacks are taken from other blocks, and what it runs below the definition, such as
    the model's own tests, is left out.
    """
    reply = reply.replace("\r\n", "\n")
    blocks = fenced_blocks(reply)
    reply = reply.translate(PLAIN_SPACES)
    name = re.escape(entry_point)
    preamble = _preamble(prompt, name)
    end = ""
    if owner := _class_with_method("\n".join([*(block.text for block in blocks), reply]), name):
        name, end = owner, f"\n\n\n{entry_point} = {owner}().{entry_point}"
    definition = re.compile(rf"(?m)^((async )?def {name}\b|class {name}\b|{name} *(:[^=\n]+)?=[^=])")
    defining = [block for block in reversed(blocks) if definition.search(block.text)]
    if defining:
        code = _with_helpers(_defining_code(defining, name), blocks, preamble, name)
    else:
        code = _bare_definition(reply, name)
    if code:
        return _with_preamble(preamble, code) + end
    for block in (*reversed(blocks), before_fence(reply)):
        if program := _continue_prompt(prompt, block, entry_point):
            return program
    if not blocks:
        return None
    return _with_preamble(preamble, blocks[-1].text)


def _preamble(prompt: str, name: str) -> str:
    """What a prompt has above the function of this name."""
    opening = re.search(rf"(?m)^(@.*\n)*(async )?def {name}\b", prompt)
    if opening is None:
        return ""
    return prompt[: opening.start()].strip("\n")


def first_program(reply: str) -> str:
    """The first code block of a reply that prints something, or that comes first, with the names that it lacks.

    A reply without blocks is a program.
    """
    blocks = fenced_blocks(reply)
    if not blocks:
        return code_of(reply.split("\n"))
    chosen = max(blocks, key=lambda block: "print(" in block.text)
    return _with_helpers(chosen.text, blocks, "", "print")


def bare_program(text: str) -> str:
    """A program without its fence."""
    return text if first_error(text) is None else first_program(text)


def interactive_program(text: str) -> str:
    """A program that runs another, without its fence, as an interactive interpreter does: it prints values."""
    return INTERACTIVE.format(bare_program(text))


def _class_with_method(text: str, name: str) -> str | None:
    """The last class that has a method of this name; None beside a function of that name."""
    classes = re.findall(rf"(?ms)^class (\w+)\b(?:(?!^\w).)*?^[ \t]+(?:async )?def {name}\b", text)
    if not classes or re.search(rf"(?m)^(async )?def {name}\b", text):
        return None
    return str(classes[-1])


def _defining_code(blocks: list[Block], name: str) -> str:
    """Code of the first block that does more than repeat a signature, or of the first one, without its own tests."""
    chosen = next((block for block in blocks if _function_body(block.text, name) != []), blocks[0])
    code = chosen.text
    if not chosen.is_closed:
        code = _valid_prefix(code)
    return _without_own_tests(code, name)


def _definitions(code: str) -> dict[str, ast.stmt]:
    """The statements of code that bind names at its top level, by name; none of invalid code."""
    if first_error(code) is not None:
        return {}
    return {name: node for node in parse(code).body for name in _bound_names(node)}


def _bound_names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Import() | ast.ImportFrom():
            return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    names = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    return [name.id for name in names if isinstance(name.ctx, ast.Store)]


def _function_body(code: str, name: str, start: int = 0) -> list[ast.stmt] | None:
    """The statements of a function, below a line, that do something; None if code defines no such function."""
    function = _definitions(code).get(name)
    if not isinstance(function, Function):
        return None
    return [node for node in function.body if node.lineno > start and not _is_placeholder(node)]


def _is_placeholder(node: ast.stmt) -> bool:
    """Whether a statement does nothing, as a docstring or a word do, or raises an error for what is missing."""
    match node:
        case ast.Expr(value=ast.Call() | ast.Await() | ast.Yield() | ast.YieldFrom()):
            return False
        case ast.Expr() | ast.Pass() | ast.AnnAssign(value=None):  # the last: a word, a colon and another word
            return True
        case ast.Raise():
            return "NotImplemented" in ast.unparse(node)
    return False


def _without_own_tests(code: str, entry_point: str) -> str:
    """Code without what it runs below the entry point, if it has one: assertions, examples, and reading of input."""
    definitions = _definitions(code)
    if not definitions:
        return code
    start = definitions[entry_point].lineno if entry_point in definitions else 0
    own = re.compile(rf"\A\s*assert\b|\b({entry_point}|{OWN_CALLS})\(|\b(__name__|SystemExit)\b")
    lines = code.split("\n")
    for node in reversed(parse(code).body):
        text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if node.lineno > start and not isinstance(node, Function | ast.ClassDef) and own.search(text):
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines)


def _with_helpers(code: str, blocks: Sequence[Block], preamble: str, entry_point: str) -> str:
    """Put before code the last blocks that define names which it uses and lacks."""
    helpers = {block.text: _definitions(block.text) for block in reversed(blocks) if block.text != code}
    defined = set(_definitions(_with_preamble(preamble, code)))
    missing = _used_names(code) - defined
    while helper := next((text for text, names in helpers.items() if missing.intersection(names)), None):
        del helpers[helper]
        own = _without_own_tests(helper, entry_point)
        code = _with_preamble(own, code)
        defined.update(_definitions(own))
        missing = (missing | _used_names(own)) - defined
    return code


def _used_names(code: str) -> set[str]:
    """Names in code; empty if it is invalid."""
    if first_error(code) is not None:
        return set()
    return {node.id for node in ast.walk(parse(code)) if isinstance(node, ast.Name)}


def _with_preamble(preamble: str, code: str) -> str:
    """Put a preamble before code, but after imports from `__future__`, which come first in a file."""
    if preamble in code:
        return code
    start = max((line.end() + 1 for line in FUTURE_IMPORT.finditer(code)), default=0)
    return f"{code[:start]}{preamble}\n\n\n{code[start:]}"


def _bare_definition(text: str, name: str) -> str:
    """The last definition outside of blocks, with the imports, constants and definitions above it; empty if none."""
    definitions = list(re.finditer(rf"(?m)^( *)((async )?def|class) {name} *[(:]", text))
    if not definitions:
        return ""
    start, indent = text.count("\n", 0, definitions[-1].start()), definitions[-1][1]
    lines = [line.removeprefix(indent) for line in text.split("\n")]
    for number in range(start - 1, -1, -1):
        if TOP_LEVEL.match(lines[number]):
            if first_error("\n".join([*lines[number:start], "def following(): pass"])) is not None:
                break
            start = number
    return _without_last_words(_valid_prefix("\n".join(lines[start:])))


def _continue_prompt(prompt: str, block: Block, entry_point: str) -> str | None:
    """Join a prompt and the rest of its function; None if that is no code.

    The first line of a body may have lost its indentation, or all its lines, or words may come before it.
    """
    prompt = prompt.rstrip()
    start = prompt.count("\n") + 1
    programs = [f"{prompt}\n{variant}\n" for variant in _variants(block)]
    if not block.is_closed:
        programs += [_without_last_words(_valid_prefix(program)) for program in programs]
    for program in programs:
        if _function_body(program, entry_point, start):
            return program
    return None


def _variants(block: Block) -> list[str]:
    """Texts of a block as the body of a function."""
    text = block.text.strip("\n").rstrip()
    body = re.sub(r"(?m)^[ \t]+", lambda indent: indent[0].expandtabs(4), text)
    variants = [body]
    if not body.startswith(" "):
        variants = [INDENT + body, textwrap.indent(body, INDENT)]
    indented = re.search(r"(?s)\n( +\S.*)", body)
    if indented and not block.is_closed:
        variants.append(indented[1])
    return variants


def _without_last_words(code: str) -> str:
    """Cut off the end of valid code where it only looks like code: words, or examples of the function's use."""
    statements = parse(code).body
    while statements and (isinstance(statements[-1], ast.Expr) or _is_placeholder(statements[-1])):
        statements.pop()
    if not statements:
        return ""
    return "\n".join(code.split("\n")[: statements[-1].end_lineno])


def _valid_prefix(code: str) -> str:
    """The lines above the errors in code; empty if there are too many errors."""
    lines = code.split("\n")
    for _ in range(MAX_ERRORS):
        error = first_error("\n".join(lines))
        if error is None:
            return "\n".join(lines)
        del lines[max(0, min(error, len(lines)) - 1) :]
    return ""
