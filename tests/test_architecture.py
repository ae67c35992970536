"""Architecture invariants, checked with `ast` by a table: layers, cycles, adapters, pure modules, names."""

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.cli import COMMANDS

PACKAGE = "cerebrum_cli"
NAME_AS_TEXT = rf"{PACKAGE}(?:[.:]\w+)+"  # of a module, or of what is in it
ROOT = Path(__file__).parents[1]

TABLE = tomllib.loads((ROOT / "tests" / "data" / "architecture.toml").read_text(encoding="utf-8"))
LAYER_OF = {package: number for number, layer in enumerate(TABLE["layers"]) for package in layer}
ADAPTERS: Mapping[str, list[str]] = TABLE["adapters"]
DOORS: Mapping[str, Mapping[str, Any]] = TABLE["doors"]
COMMAND_MODULES = [command.module.removeprefix(f"{PACKAGE}.") for command in COMMANDS.values()]
MAY_USE: Mapping[str, list[str]] = {**TABLE["may_use"], "cli": COMMAND_MODULES}


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def violations(source: str, module: str) -> list[str]:
    """Forbidden imports of a module, such as "engine.llama.load": type-only ones and those in functions too."""
    problems = ((line, import_problem(module, name)) for line, name in references(source))
    return [f"{module}:{line}: {problem}" for line, problem in problems if problem]


def import_problem(module: str, name: str) -> str | None:
    package, _, inner = name.partition(".")
    if package == PACKAGE:
        return layer_problem(module, inner)
    if package not in ADAPTERS or any(within(module, adapter) for adapter in ADAPTERS[package]):
        return None
    return f"{package} may only be imported in {' or '.join(ADAPTERS[package]) or 'no module'}"


@cache
def imports(source: str) -> list[tuple[int, str]]:
    """Every module that an import statement or an import by name loads, by line."""
    found = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            found += [(node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant)]
    return found


@cache
def references(source: str) -> list[tuple[int, str]]:
    """What a module imports or names in a text, to be imported later, by line."""
    texts = (node for node in ast.walk(parsed(source)) if isinstance(node, ast.Constant))
    named = [(text.lineno, str(text.value)) for text in texts if re.fullmatch(NAME_AS_TEXT, str(text.value))]
    return sorted({*imports(source), *((line, name.replace(":", ".")) for line, name in named)})


def package_of(module: str) -> str:
    return module.partition(".")[0]


def layer_problem(module: str, imported: str) -> str | None:
    """Why one package may not import another, if it may not."""
    if any(within(imported, used) for used in MAY_USE.get(module, ())):
        return None
    package, other = package_of(module), package_of(imported)
    if other not in LAYER_OF or package not in LAYER_OF or other == package:
        return None
    if LAYER_OF[other] > LAYER_OF[package]:
        return f"imports go down only: {package} is below {other}"
    return f"{package} and {other} are in one layer" if LAYER_OF[other] == LAYER_OF[package] else None


def called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@cache
def modules() -> Mapping[str, str]:
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text(encoding="utf-8")
    return found


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle, type-only imports included; empty if there are none."""
    graph = {}
    for module, source in sources.items():
        own = {module, *MAY_USE.get(module, ()), *TABLE["methods_of"].get(module, ())}
        graph[module] = imported_modules(source, sources) - own
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def imported_modules(source: str, known: Mapping[str, str]) -> set[str]:
    names = (name.removeprefix(f"{PACKAGE}.") for _, name in imports(source) if PACKAGE in name)
    return {name if name in known else name.rpartition(".")[0] for name in names} & known.keys()


def test_architecture_has_no_violations() -> None:
    found = [problem for module, source in modules().items() for problem in violations(source, module)]
    assert found == []


def test_architecture_has_no_import_cycles() -> None:
    assert cycle(modules()) == []


def test_public_classes_have_names_of_their_own() -> None:
    found: dict[str, list[str]] = {}
    for module, source in modules().items():
        for node in parsed(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    assert {name: several for name, several in found.items() if len(several) > 1} == {}


def test_modules_of_sibling_folders_have_names_of_their_own() -> None:
    """But for a command's module, which may have the name of the module that does its work."""
    found: dict[tuple[str, int, str], list[str]] = {}
    for module in modules().keys() - {*COMMAND_MODULES}:
        *folders, name = module.split(".")
        found.setdefault((".".join(folders[:-1]), len(folders), name), []).append(module)
    assert [several for several in found.values() if len(several) > 1] == []


def test_pure_modules_touch_no_files_clocks_or_processes() -> None:
    sources = modules()
    pure = {name for name in sources if any(within(name, each) for each in TABLE["pure"])}
    assert [each for each in TABLE["pure"] if each not in pure] == []
    impure = {*TABLE["impure"], *ADAPTERS}
    found = []
    for name in sorted(pure):
        touched = {library.partition(".")[0] for _, library in imports(sources[name])} & impure
        touched |= imported_modules(sources[name], sources) & {*TABLE["impure_modules"]}
        found += [(name, touched)] if touched else []
    assert found == []


def uses_of(package: str) -> Iterator[tuple[str, str, str]]:
    """Each name of a package that a module of another one imports: the user, the public module, and the name."""
    sources = modules()
    for user, source in sources.items():
        if package_of(user) == package or user == "cli":  # the table of commands
            continue
        for _, imported in references(source):
            name = imported.removeprefix(f"{PACKAGE}.")
            if name != imported and within(name, package):
                module = name if name in sources else name.rpartition(".")[0]
                yield user, module.removeprefix(f"{package}."), name


@pytest.mark.parametrize("package", DOORS)
def test_packages_are_imported_through_their_public_modules(package: str) -> None:
    """All of which exist, and are named in the docstring of `__init__.py`."""
    public, uses = DOORS[package]["modules"], list(uses_of(package))
    docstring = ast.get_docstring(parsed(modules()[package])) or ""
    assert [
        module for module in public if f"{package}.{module}" not in modules() or f"`{module}`" not in docstring
    ] == []
    assert [(user, module) for user, module, _ in uses if module not in public] == []
    assert len({name for *_, name in uses}) <= DOORS[package]["names"]


def test_architecture_finds_a_type_only_cycle() -> None:
    typed = f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {PACKAGE}.a import A"
    assert set(cycle({"a": f"from {PACKAGE} import b", "b": typed})) == {"a", "b"}
    assert cycle({"a": f"from {PACKAGE}.b import a", "b": "import os"}) == []


def test_every_package_has_a_layer() -> None:
    packages = {package_of(name) for name in modules()}
    assert packages - {"", "__main__"} == LAYER_OF.keys()


@pytest.mark.parametrize(
    ("module", "source", "rule"),
    [
        ("core.events", "from cerebrum_cli.engine.local_engine import LocalEngine", "core is below engine"),
        ("terminal.sinks", "def f():\n    from cerebrum_cli import cli", "terminal is below cli"),
        (
            "formats.template",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cerebrum_cli.replies.reply import Reply",
            "formats is below replies",
        ),
        ("engine.engine", "import importlib\nimportlib.import_module('cerebrum_cli.main')", "engine is below main"),
        ("engine.engine", "COMMAND = 'cerebrum_cli.cli.ask:ask'", "engine is below cli"),
        ("engine.engine", "import llama_cpp", "llama_cpp may only"),
        ("cli.ask", "from click import echo", "click may only be imported in no module"),
    ],
)
def test_architecture_catches_a_planted_violation(module: str, source: str, rule: str) -> None:
    [found] = violations(source, module)
    assert found.startswith(f"{module}:{len(source.splitlines())}: ")
    assert rule in found
