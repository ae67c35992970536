"""The laws of the house, held with `ast`: imports go down only, each library has one door, nobody prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "cerebrum_cli"
ROOT = Path(__file__).parents[1]

FLOORS: Mapping[str, int] = {
    "main": 6,
    "commands": 5,
    "runtime": 4,
    "terminal": 3,
    "application": 2,
    "engine": 1,
    "formats": 1,
    "catalogue": 1,
    "sessions": 1,
    "answers": 1,
    "batches": 1,
    "merge": 1,
    "core": 0,
}

# A library's modules, and where alone they may be imported: a module, or a package and all below it.
DOORS: Mapping[str, tuple[str, ...]] = {
    "llama_cpp": ("engine.llama",),
    "huggingface_hub": ("catalogue.hub",),
    "httpx2": ("catalogue.hub",),
    "filelock": ("catalogue.hub",),
    "gguf": ("gguf.adapter",),
    "yaml": ("merge.document",),
    "rich": ("terminal",),
    "prompt_toolkit": ("terminal",),
    "markdown_it": ("terminal",),
    "typer": ("main", "commands"),
    "sqlite3": ("sessions",),
    "jinja2": ("formats",),
    "psutil": ("engine.machine",),
    "platformdirs": ("runtime",),
    "click": (),
}
ENVIRONMENT = ("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv")
ENVIRONMENT_DOOR = "core.settings"


def violations(source: str, module: str) -> list[str]:
    """Return what in a module breaks a law; `module` is its name below the package, as in "engine.llama.load"."""
    tree = ast.parse(source)
    found = [*import_violations(tree, module), *use_violations(tree, module)]
    return [f"{module}:{line}: {problem}" for line, problem in sorted(found)]


def import_violations(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield the line of each import that may not be, those for type checkers and in functions included."""
    for line, name in imports(tree, module):
        package, _, inner = name.partition(".")
        if package == PACKAGE:
            if problem := floor_problem(module, inner):
                yield line, problem
        elif package in DOORS and not any(within(module, door) for door in DOORS[package]):
            yield line, f"{package} may only be imported in {' or '.join(DOORS[package]) or 'no place'}"


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield every module an import statement, or a call that imports by name, brings in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node.lineno, argument.value


def absolute(node: ast.ImportFrom, module: str) -> str:
    """Return the module a `from` import names, dots resolved."""
    if not node.level:
        return node.module or ""
    above = f"{PACKAGE}.{module}".split(".")[: -node.level]
    return ".".join([*above, *filter(None, [node.module])])


def floor_problem(module: str, imported: str) -> str | None:
    """Return why one room may not import another, if it may not."""
    room, other = module.partition(".")[0], imported.partition(".")[0]
    if other not in FLOORS or room not in FLOORS or other == room:
        return None
    if FLOORS[other] > FLOORS[room]:
        return f"imports go down only: {room} is below {other}"
    if FLOORS[other] == FLOORS[room]:
        return f"{room} and {other} do not know each other"
    return None


def use_violations(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield where the environment is read outside its door, or something is printed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "print() is nowhere"
        if module == ENVIRONMENT_DOOR:
            continue
        if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT and isinstance(node.value, ast.Name):
            if node.value.id == "os":
                yield node.lineno, f"os.{node.attr} is {ENVIRONMENT_DOOR}'s alone"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names = [alias.name for alias in node.names if alias.name in ENVIRONMENT]
            yield from ((node.lineno, f"os.{name} is {ENVIRONMENT_DOOR}'s alone") for name in names)


def called(node: ast.Call) -> str:
    """Return the last name of what is called."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def within(module: str, door: str) -> bool:
    """Return whether a module is the door, or below it."""
    return module == door or module.startswith(f"{door}.")


def modules() -> Iterator[tuple[str, str]]:
    """Yield the name below the package and the source of every module."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path.read_text(encoding="utf-8")


def test_the_house_keeps_its_laws() -> None:
    found = [problem for module, source in modules() for problem in violations(source, module)]
    assert found == []


def test_every_module_has_a_room_that_has_a_floor() -> None:
    names = {name.partition(".")[0] for name, _ in modules()}
    assert names - {"", "__main__"} <= FLOORS.keys()


@pytest.mark.parametrize(
    ("module", "source", "law"),
    [
        ("core.events", "from cerebrum_cli.engine.engine import Engine", "core is below engine"),
        ("application.library", "import cerebrum_cli.terminal.streams", "application is below terminal"),
        ("terminal.sinks", "def f():\n    from cerebrum_cli import runtime", "terminal is below runtime"),
        ("runtime", "from .commands.ask import ask", "runtime is below commands"),
        ("commands.ask", "from ..main import app", "commands is below main"),
        ("engine.engine", "from cerebrum_cli.formats.format import PromptFormat", "do not know each other"),
        ("engine.llama.load", "from ...catalogue import header", "engine and catalogue do not know each other"),
        ("answers.extract", "import cerebrum_cli.batches", "answers and batches do not know each other"),
        (
            "formats.template",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from cerebrum_cli.application.inference.reply import Reply",
            "formats is below application",
        ),
        ("engine.engine", "import importlib\nimportlib.import_module('cerebrum_cli.main')", "engine is below main"),
        ("engine.engine", "import llama_cpp", "llama_cpp may only"),
        ("engine.llamas", "from llama_cpp import llama_cpp", "llama_cpp may only"),
        ("catalogue.registry", "def f():\n    from huggingface_hub import HfApi", "huggingface_hub may only"),
        ("gguf.header", "from gguf.gguf_reader import GGUFReader", "gguf may only"),
        ("merge.plan", "import gguf", "gguf may only"),
        ("merge.recipe", "import yaml", "yaml may only"),
        ("merge.weights", "from cerebrum_cli.engine.llama import codec", "merge and engine do not know each other"),
        ("commands.list", "from rich.table import Table", "rich may only"),
        ("application.reply", "import prompt_toolkit.shortcuts", "prompt_toolkit may only"),
        ("formats.plain", "import markdown_it", "markdown_it may only"),
        ("terminal.tables", "import typer", "typer may only"),
        ("batches.journal", "import sqlite3", "sqlite3 may only"),
        ("engine.engine", "import jinja2.sandbox", "jinja2 may only"),
        ("engine.engine", "import psutil", "psutil may only"),
        ("catalogue.download", "import httpx2", "httpx2 may only"),
        ("catalogue.registry", "from filelock import FileLock", "filelock may only"),
        ("main", "from platformdirs import PlatformDirs", "platformdirs may only"),
        ("main", "import click", "click may only be imported in no place"),
        ("commands.ask", "from click import echo", "click may only be imported in no place"),
        ("terminal.streams", "import os\nterm = os.environ['TERM']", "os.environ is core.settings's alone"),
        ("terminal.streams", "import os\nterm = os.getenv('TERM')", "os.getenv is core.settings's alone"),
        ("main", "from os import path, environ", "os.environ is core.settings's alone"),
        ("terminal.tables", "print('hello')", "print() is nowhere"),
        ("core.settings", "if True:\n    print('hello')", "print() is nowhere"),
    ],
)
def test_a_planted_violation_is_caught(module: str, source: str, law: str) -> None:
    [found] = violations(source, module)
    assert found.startswith(f"{module}:{len(source.splitlines())}: ")
    assert law in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("main", "import typer\nfrom cerebrum_cli.commands.ask import ask\nfrom cerebrum_cli import __version__"),
        ("commands.pull", "from cerebrum_cli.commands import options\nfrom . import options as again"),
        ("engine.llama.load", "import llama_cpp.llama_cpp, os\nos.sched_getaffinity(0)"),
        ("engine.machine", "import psutil"),
        ("engine.engine", "from cerebrum_cli.core.events import Event\nfrom .scheduler import Step"),
        ("catalogue.hub", "import huggingface_hub"),
        ("gguf.adapter", "from gguf import GGUFReader"),
        ("core.settings", "import os\nos.environ.get('TERM')"),
        ("terminal.markdown", "from rich.markdown import Markdown\nconsole.print('a')"),
        ("application.reply", "import ggufs, clickhouse"),
    ],
)
def test_what_keeps_the_laws_is_not_caught(module: str, source: str) -> None:
    assert violations(source, module) == []
