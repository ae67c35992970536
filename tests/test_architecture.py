"""Architecture invariants, checked with `ast`: layers, cycles, adapters, pure modules, names."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from cerebrum_cli.cli import COMMANDS

PACKAGE = "cerebrum_cli"
NAME_AS_TEXT = rf"{PACKAGE}(?:[.:]\w+)+"  # of a module, or of what is in it
ROOT = Path(__file__).parents[1]

# Packages by layer, lowest first. Imports go down only; packages in one layer do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("gguf",),
    ("formats", "grammars"),
    ("engine", "answers", "programs", "mcp"),
    ("servers",),
    ("library",),
    ("attachments",),
    ("replies",),
    ("results", "trust"),
    ("chat", "batch"),
    ("terminal", "cluster"),
    ("cli",),
    ("eval", "lm_eval", "weights", "doctor"),
    ("decide",),
    ("main",),
)
LAYER_OF = {package: number for number, layer in enumerate(LAYERS) for package in layer}

# Libraries and the only modules, or packages with all below them, that may import each.
ADAPTERS: Mapping[str, tuple[str, ...]] = {
    "llama_cpp": ("engine.llama", "weights.codec"),
    "huggingface_hub": ("library.hub", "library.hub_requests"),
    "httpx2": ("library.hub_requests", "servers.client", "attachments.web_page", "mcp.mcp_connection"),
    "mcp": ("mcp",),
    "mcp_types": ("mcp",),
    "anyio": ("mcp",),
    "gguf": (),  # headers are read without it, which takes half a second to import
    "yaml": ("weights.document",),
    "matplotlib": ("eval.plot", "eval.runs_command"),
    "rich": ("terminal",),
    "prompt_toolkit": ("terminal",),
    "markdown_it": ("terminal.markdown",),
    "pylatexenc": ("terminal.markdown.mathematics",),
    "typer": ("cli", "eval", "weights", "doctor", "decide"),
    "sqlite3": ("chat",),
    "jinja2": ("formats",),
    "markitdown": ("attachments.print_document",),  # in a process of its own, with pandas for workbooks
    "pandas": ("attachments.print_document",),
    "pathspec": ("attachments.file_search",),
    "pydantic": ("programs.python_function",),
    "pydantic_core": ("programs.python_function",),
    "psutil": ("cluster.ray_adapter", "engine.machine"),
    "platformdirs": ("replies.source",),
    "lm_eval": ("lm_eval",),
    "math_verify": ("eval.math_verify",),
    "pyarrow": ("batch.parquet",),
    "ray": ("cluster.ray_adapter",),
    "click": (),
}
# Modules, or packages with all below them, that compute values: they touch no files, clocks or processes.
PURE = (
    *("answers", "batch.input_row", "results.rows", "eval.comparison", "eval.estimates", "eval.report"),
    *("core.conversation", "core.declaration", "core.errors", "core.events", "core.sampling"),
    *("engine.drafter", "engine.llama.batch_invariance", "engine.memory", "engine.requests"),
    *("engine.memory_plan", "engine.scheduler", "formats.prompt_format", "formats.reply_text"),
    *("formats.markup", "gguf.sizes", "replies.reply_controls"),
    "core.ask",
    *("weights.checkpoints.bpe", "weights.checkpoints.sentencepiece", "weights.checkpoints.special_tokens"),
    *("replies.tally", "weights.compatibility", "weights.merge_plan", "weights.plan"),
    *(
        "weights.recipe",
        "weights.mixtures",
        "weights.checkpoints.configuration",
        "weights.checkpoints.families",
        "weights.target",
        "library.catalogue",
        "library.fit",
    ),
    *("core.row_events", "core.tool_schema"),
    *("mcp.content", "mcp.listed_functions"),
    *("trust.calibration", "trust.score_map", "trust.shift", "trust.threshold"),
)
IMPURE = {  # the first names of modules that touch them; a Path is a value, too
    *("asyncio", "concurrent", "ctypes", "datetime", "fcntl", "http", "io", "mmap", "multiprocessing", "os", "queue"),
    *("resource", "select", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading"),
    *("time", "urllib"),
}
IMPURE_MODULES = ("core.environment", "core.files")


# Modules that use one of a package above theirs, when they are called.
MAY_USE: Mapping[str, tuple[str, ...]] = {
    "cli": tuple(command.module.removeprefix(f"{PACKAGE}.") for command in COMMANDS.values()),  # the table of commands
    "cli.app": ("weights.building",),
    "replies.interface": ("decide.deciding",),  # a method of the library, called by its users
}

# Modules whose methods work by other modules, which take an object of the class.
METHODS_OF: Mapping[str, tuple[str, ...]] = {"replies.interface": ("replies.concurrent_rows", "replies.tool_loop")}


class Door(NamedTuple):
    """The public modules of a package, and how many of their names other packages may use."""

    names: int
    modules: tuple[str, ...]


# All other modules of these packages are private to them; `core` is all public, `cli` is for packages with commands.
DOORS: Mapping[str, Door] = {
    "gguf": Door(37, ("contents", "header", "sizes")),
    "formats": Door(15, ("choice", "prompt_format", "reply_text")),
    "grammars": Door(4, ("guidance", "validation")),
    "engine": Door(33, ("capacity", "engine", "local", "loglikelihood", "requests")),
    "answers": Door(6, ("equality", "final")),
    "programs": Door(4, ("functions", "monty")),
    "servers": Door(5, ("endpoint", "remote_engine")),
    "library": Door(14, ("installed", "library", "online", "pull")),
    "attachments": Door(5, ("prompt_sources",)),
    "replies": Door(13, ("interface", "majority_vote", "reply", "source", "tally")),
    "results": Door(21, ("output_tables", "results", "rows", "saved")),
    "trust": Door(12, ("calibration", "calibration_file", "shift")),
    "chat": Door(5, ("archive", "chat", "history", "message_tree", "session")),
    "batch": Door(13, ("answering", "input_row", "readers")),
    "terminal": Door(24, ("progress", "repl.interactive", "session_text", "sinks", "streams", "tables")),
    "eval": Door(9, ("decisions", "plot", "runs", "runs_command")),
    "decide": Door(4, ("deciding",)),
    "lm_eval": Door(0, ()),
    "weights": Door(1, ("building",)),
    "cluster": Door(1, ("distribution",)),
    "mcp": Door(1, ("mcp_servers",)),
    "doctor": Door(0, ()),
}


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def violations(source: str, module: str) -> list[str]:
    """List the broken invariants of a module; `module` is its name below the package, such as "engine.llama.load"."""
    return [f"{module}:{line}: {problem}" for line, problem in sorted(import_violations(source, module))]


def import_violations(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Yield the line of each forbidden import, including type-only ones and those inside functions."""
    for line, name in references(source):
        package, _, inner = name.partition(".")
        if package == PACKAGE:
            if problem := layer_problem(module, inner):
                yield line, problem
        elif package in ADAPTERS and not any(within(module, adapter) for adapter in ADAPTERS[package]):
            allowed = " or ".join(ADAPTERS[package])
            yield line, f"{package} may only be imported in {allowed}" if allowed else f"{package} may not be imported"


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
        own = {module, *MAY_USE.get(module, ()), *METHODS_OF.get(module, ())}
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


def command_modules() -> set[str]:
    return {command.module.removeprefix(f"{PACKAGE}.") for command in COMMANDS.values()}


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
    for module in modules().keys() - command_modules():
        *folders, name = module.split(".")
        found.setdefault((".".join(folders[:-1]), len(folders), name), []).append(module)
    assert [several for several in found.values() if len(several) > 1] == []


def test_pure_modules_touch_no_files_clocks_or_processes() -> None:
    sources = modules()
    pure = {name for name in sources if any(within(name, each) for each in PURE)}
    assert [each for each in PURE if each not in pure] == []
    found = []
    for name in sorted(pure):
        libraries = {library.partition(".")[0] for _, library in imports(sources[name])}
        touched = libraries & (IMPURE | ADAPTERS.keys()) | imported_modules(sources[name], sources) & {*IMPURE_MODULES}
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
    uses = list(uses_of(package))
    assert [(user, module) for user, module, _ in uses if module not in DOORS[package].modules] == []
    assert len({name for *_, name in uses}) <= DOORS[package].names


@pytest.mark.parametrize("package", DOORS)
def test_packages_name_their_public_modules(package: str) -> None:
    """In the docstring of `__init__.py`, as in the table, and all of them exist."""
    docstring = ast.get_docstring(parsed(modules()[package])) or ""
    assert [module for module in DOORS[package].modules if f"{package}.{module}" not in modules()] == []
    assert [module for module in DOORS[package].modules if f"`{module}`" not in docstring] == []


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
        ("cli.ask", "from click import echo", "click may not be imported"),
    ],
)
def test_architecture_catches_a_planted_violation(module: str, source: str, rule: str) -> None:
    [found] = violations(source, module)
    assert found.startswith(f"{module}:{len(source.splitlines())}: ")
    assert rule in found
