"""Architecture invariants, checked with `ast`: layers, cycles, adapters, pure modules, names."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from cerebrum_cli.cli import COMMANDS

PACKAGE = "cerebrum_cli"
ROOT = Path(__file__).parents[1]

# Packages by layer, lowest first. Imports go down only; packages in one layer do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("gguf",),
    ("checkpoints", "formats"),
    ("engine", "answers", "programs"),
    ("library",),
    ("replies",),
    ("results",),
    ("chat", "batch", "eval", "merge", "doctor", "cluster"),
    ("terminal",),
    ("cli",),
    ("main",),
)
LAYER_OF = {package: number for number, layer in enumerate(LAYERS) for package in layer}
EXCEPTIONS = {("eval", "batch")}  # questions are read with the templates and readers of rows

# Libraries and the only modules, or packages with all below them, that may import each.
ADAPTERS: Mapping[str, tuple[str, ...]] = {
    "llama_cpp": ("engine.llama",),
    "huggingface_hub": ("library.hub",),
    "httpx2": ("library.hub", "engine.remote.client", "replies.web_page"),
    "aiohttp": ("engine.remote.client",),
    "gguf": (),  # headers are read without it, which takes half a second to import
    "yaml": ("merge.document",),
    "matplotlib": ("terminal.plot",),
    "rich": ("terminal",),
    "prompt_toolkit": ("terminal",),
    "markdown_it": ("terminal",),
    "typer": ("main", "cli"),
    "sqlite3": ("chat", "results.row_store"),
    "jinja2": ("formats",),
    "markitdown": (),  # a process of its own
    "pathspec": ("replies.file_search",),
    "psutil": ("cluster.ray_adapter", "engine.machine"),
    "platformdirs": ("replies.installation",),
    "lm_eval": ("eval.lm_eval",),
    "math_verify": ("eval.line_process",),
    "pyarrow": ("batch.parquet", "eval.sources"),
    "ray": ("cluster.ray_adapter",),
    "click": (),
}
# Modules, or packages with all below them, that compute values: they touch no files, clocks or processes.
PURE = (
    *("answers", "batch.rows", "results.schema", "eval.comparison", "eval.estimates"),
    *("core.conversation", "core.declaration", "core.errors", "core.events", "core.sampling"),
    *("engine.control", "engine.drafter", "engine.llama.batch_invariance", "engine.model_options", "engine.memory"),
    *("engine.memory_plan", "engine.scheduler", "formats.plain", "formats.reply_text"),
    *("formats.markers", "formats.thinking"),
    *("gguf.architectures", "gguf.sizes", "gguf.types", "replies.inspection", "replies.reply_controls"),
    *("checkpoints.bpe", "checkpoints.sentencepiece", "checkpoints.special_tokens"),
    *("programs.code", "replies.tally", "replies.voting", "merge.compatibility", "merge.methods", "merge.plan"),
    *("merge.recipe", "merge.mixtures", "merge.convert", "checkpoints.families", "gguf.tensor_names", "library.fit"),
    *("core.row_events", "programs.function_schema"),
)
IMPURE = {  # the first names of modules that touch them; a Path is a value, too
    *("asyncio", "concurrent", "ctypes", "datetime", "fcntl", "http", "io", "mmap", "multiprocessing", "os", "queue"),
    *("resource", "select", "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading"),
    *("time", "urllib"),
}
IMPURE_MODULES = ("core.environment", "core.files", "core.signals")

# Packages that use the engine directly: what builds on it, and the two that measure and check it. Of the others only
# these modules do, each for what is named.
ENGINE_USERS = ("engine", "library", "replies", "doctor")
ENGINE_EXCEPTIONS = {
    "chat.archive": "saved states that hold deleted text",
    "cli.app": "the real implementations, which it picks",
    "cli.ask": "sizes of a context",
    "cli.eval": "sizes of a context",
    "cli.lm_eval": "sizes of a context",
    "cli.options": "sizes of a context, and of the window of a server",
    "cluster.ray_adapter": "processors, for nodes on this machine",
    "cluster.distribution": "processors of a node",
    "cli.signature": "the log that verbose shows",
    "eval.lm_eval.model": "requests for scores",
    "eval.scorers": "processors, to run programs on",
    "eval.stored_runs": "the version of llama.cpp",
    "merge.building": "processors, to convert on",
    "merge.merge": "processors, to merge on",
    "merge.execute": "llama.cpp's conversion of weights",
}


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def violations(source: str, module: str) -> list[str]:
    """List the broken invariants of a module; `module` is its name below the package, such as "engine.llama.load"."""
    return [f"{module}:{line}: {problem}" for line, problem in sorted(import_violations(source, module))]


def import_violations(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Yield the line of each forbidden import, including type-only ones and those inside functions."""
    for line, name in imports(source):
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


def package_of(module: str) -> str:
    return module.partition(".")[0]


def layer_problem(module: str, imported: str) -> str | None:
    """Why one package may not import another, if it may not."""
    package, other = package_of(module), package_of(imported)
    if other not in LAYER_OF or package not in LAYER_OF or other == package or (package, other) in EXCEPTIONS:
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
    graph = {module: imported_modules(source, sources) - {module} for module, source in sources.items()}
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
    return {f"cli.{command.module}" for command in COMMANDS}


def test_public_classes_have_names_of_their_own() -> None:
    found: dict[str, list[str]] = {}
    for module, source in modules().items():
        for node in parsed(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    assert {name: several for name, several in found.items() if len(several) > 1} == {}


def test_modules_of_sibling_folders_have_names_of_their_own() -> None:
    """A command's module may have the name of the package, or of the module, that does its work."""
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


def test_engine_is_used_through_replies() -> None:
    sources = modules()
    users = {
        name
        for name, source in sources.items()
        if package_of(name) not in ENGINE_USERS
        and any(within(imported, "engine") for imported in imported_modules(source, sources))
    }
    assert users == ENGINE_EXCEPTIONS.keys()


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
        ("terminal.sinks", "def f():\n    from cerebrum_cli import cli", "terminal is below cli"),
        (
            "formats.template",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from cerebrum_cli.replies.reply import Reply",
            "formats is below replies",
        ),
        ("engine.engine", "import importlib\nimportlib.import_module('cerebrum_cli.main')", "engine is below main"),
        ("engine.engine", "import llama_cpp", "llama_cpp may only"),
        ("cli.ask", "from click import echo", "click may not be imported"),
    ],
)
def test_architecture_catches_a_planted_violation(module: str, source: str, rule: str) -> None:
    [found] = violations(source, module)
    assert found.startswith(f"{module}:{len(source.splitlines())}: ")
    assert rule in found
