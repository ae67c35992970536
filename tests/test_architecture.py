"""Architecture invariants, checked with `ast`: layers, import cycles, adapters, no printing."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "cerebrum_cli"
ROOT = Path(__file__).parents[1]

# Packages by layer, lowest first. Imports go down only; packages in one layer do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("gguf",),
    ("engine", "formats", "answers"),
    ("models",),
    ("inference",),
    ("chat", "batch", "eval", "merge", "tune", "doctor"),
    ("terminal",),
    ("cli",),
    ("main",),
)
LAYER_OF = {package: number for number, layer in enumerate(LAYERS) for package in layer}
EXCEPTIONS = {("eval", "batch")}  # an evaluation writes its samples into the journal of a batch

# Libraries and the only modules, or packages with all below them, that may import each.
ADAPTERS: Mapping[str, tuple[str, ...]] = {
    "llama_cpp": ("engine.llama",),
    "huggingface_hub": ("models.hub",),
    "httpx2": ("models.hub", "engine.remote.client"),
    "gguf": ("gguf.adapter",),
    "yaml": ("merge.document",),
    "matplotlib": ("terminal.plot",),
    "rich": ("terminal",),
    "prompt_toolkit": ("terminal",),
    "markdown_it": ("terminal",),
    "typer": ("main", "cli"),
    "sqlite3": ("chat",),
    "jinja2": ("formats",),
    "pathspec": ("inference.file_search",),
    "psutil": ("engine.machine", "formats.bounds"),
    "platformdirs": ("cli.app",),
    "lm_eval": ("eval.lm_harness", "eval.lm_tasks"),
    "pyarrow": ("eval.sources",),
    "tomlkit": ("cli.config_file",),
    "ray": ("engine.cluster.ray_cluster",),
    "click": (),
}
ENVIRONMENT = ("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv")
ENVIRONMENT_ADAPTER = "core.environment"


def violations(source: str, module: str) -> list[str]:
    """List the broken invariants of a module; `module` is its name below the package, such as "engine.llama.load"."""
    tree = ast.parse(source)
    found = [*import_violations(tree, module), *use_violations(tree, module)]
    return [f"{module}:{line}: {problem}" for line, problem in sorted(found)]


def import_violations(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield the line of each forbidden import, including type-only ones and those inside functions."""
    for line, name in imports(tree, module):
        package, _, inner = name.partition(".")
        if package == PACKAGE:
            if problem := layer_problem(module, inner):
                yield line, problem
        elif package in ADAPTERS and not any(within(module, adapter) for adapter in ADAPTERS[package]):
            allowed = " or ".join(ADAPTERS[package])
            yield line, f"{package} may only be imported in {allowed}" if allowed else f"{package} may not be imported"


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield every module that an import statement or an import by name loads."""
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
    """Resolve the dots of a `from` import."""
    if not node.level:
        return node.module or ""
    above = f"{PACKAGE}.{module}".split(".")[: -node.level]
    return ".".join([*above, *filter(None, [node.module])])


def package_of(module: str) -> str:
    """Package of a module: the first name."""
    return module.partition(".")[0]


def layer_problem(module: str, imported: str) -> str | None:
    """Why one package may not import another, if it may not."""
    package, other = package_of(module), package_of(imported)
    if other not in LAYER_OF or package not in LAYER_OF or other == package or (package, other) in EXCEPTIONS:
        return None
    if LAYER_OF[other] > LAYER_OF[package]:
        return f"imports go down only: {package} is below {other}"
    return f"{package} and {other} are in one layer" if LAYER_OF[other] == LAYER_OF[package] else None


def use_violations(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Yield where the environment is read outside its adapter, or something is printed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "print() is not allowed"
        if module == ENVIRONMENT_ADAPTER:
            continue
        if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT and isinstance(node.value, ast.Name):
            if node.value.id == "os":
                yield node.lineno, f"os.{node.attr} belongs in {ENVIRONMENT_ADAPTER}"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            names = [alias.name for alias in node.names if alias.name in ENVIRONMENT]
            yield from ((node.lineno, f"os.{name} belongs in {ENVIRONMENT_ADAPTER}") for name in names)


def called(node: ast.Call) -> str:
    """Last name of a called expression."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def within(module: str, package: str) -> bool:
    """Whether a module is the package, or below it."""
    return module == package or module.startswith(f"{package}.")


def modules() -> dict[str, str]:
    """Sources of all modules by their names below the package."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text(encoding="utf-8")
    return found


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle, type-only imports included; empty if there are none."""
    graph = {module: imported_modules(source, module, sources) - {module} for module, source in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def imported_modules(source: str, module: str, known: Mapping[str, str]) -> set[str]:
    """Modules of the package that a module imports."""
    names = (name.removeprefix(f"{PACKAGE}.") for _, name in imports(ast.parse(source), module) if PACKAGE in name)
    return {name if name in known else name.rpartition(".")[0] for name in names} & known.keys()


def test_architecture_has_no_violations() -> None:
    found = [problem for module, source in modules().items() for problem in violations(source, module)]
    assert found == []


def test_architecture_has_no_import_cycles() -> None:
    assert cycle(modules()) == []


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
        ("core.events", "from cerebrum_cli.engine.local import LocalEngine", "core is below engine"),
        ("models.library", "import cerebrum_cli.terminal.streams", "models is below terminal"),
        ("terminal.sinks", "def f():\n    from cerebrum_cli import cli", "terminal is below cli"),
        ("cli.ask", "from ..main import run", "cli is below main"),
        ("engine.engine", "from cerebrum_cli.formats.plain import PromptFormat", "are in one layer"),
        ("engine.llama.load", "from ...answers import vote", "engine and answers are in one layer"),
        ("batch.journal", "from cerebrum_cli.eval import runs", "batch and eval are in one layer"),
        (
            "formats.template",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cerebrum_cli.inference.reply import Reply",
            "formats is below inference",
        ),
        ("engine.engine", "import importlib\nimportlib.import_module('cerebrum_cli.main')", "engine is below main"),
        ("engine.engine", "import llama_cpp", "llama_cpp may only"),
        ("engine.llamas", "from llama_cpp import llama_cpp", "llama_cpp may only"),
        ("models.registry", "def f():\n    from huggingface_hub import HfApi", "huggingface_hub may only"),
        ("gguf.header", "from gguf.gguf_reader import GGUFReader", "gguf may only"),
        ("engine.engine", "import jinja2.sandbox", "jinja2 may only"),
        ("cli.ask", "from click import echo", "click may not be imported"),
        ("terminal.streams", "import os\nterm = os.environ['TERM']", "os.environ belongs in core.environment"),
        ("terminal.streams", "import os\nterm = os.getenv('TERM')", "os.getenv belongs in core.environment"),
        ("main", "from os import path, environ", "os.environ belongs in core.environment"),
        ("terminal.tables", "print('hello')", "print() is not allowed"),
        ("core.environment", "if True:\n    print('hello')", "print() is not allowed"),
    ],
)
def test_architecture_catches_a_planted_violation(module: str, source: str, rule: str) -> None:
    [found] = violations(source, module)
    assert found.startswith(f"{module}:{len(source.splitlines())}: ")
    assert rule in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("main", "import typer\nfrom cerebrum_cli.cli.ask import ask\nfrom cerebrum_cli import __version__"),
        ("cli.pull", "from cerebrum_cli.cli import options\nfrom . import options as again"),
        ("merge.weights", "from cerebrum_cli.engine.llama import codec"),
        ("eval.runs", "from cerebrum_cli.batch import journal"),
        ("engine.llama.load", "import llama_cpp.llama_cpp, os\nos.sched_getaffinity(0)"),
        ("engine.machine", "import psutil"),
        ("engine.engine", "from cerebrum_cli.core.events import Event\nfrom .scheduler import Step"),
        ("models.hub", "import huggingface_hub"),
        ("gguf.adapter", "from gguf import GGUFReader"),
        ("core.environment", "import os\nos.environ.get('TERM')"),
        ("terminal.markdown", "from rich.markdown import Markdown\nconsole.print('a')"),
        ("inference.reply", "import ggufs, clickhouse"),
    ],
)
def test_architecture_accepts_allowed_imports(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize("parameter", ["typical_p", "top_n_sigma", "dry_base"])
def test_sampling_parameter_of_local_generation_takes_two_files(parameter: str) -> None:
    package = ROOT / PACKAGE
    files = {str(path.relative_to(package)) for path in package.rglob("*.py") if parameter in path.read_text()}
    local = {path for path in files if not path.startswith("engine/remote/")}
    assert local == {"core/sampling.py", "engine/llama/sampler.py"}
