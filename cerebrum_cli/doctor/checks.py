"""The checks of `cerebrum doctor`, in the order in which they run; in the last ones a bundled model answers."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage

from cerebrum_cli.cli.app import App
from cerebrum_cli.core.environment import is_hub_offline
from cerebrum_cli.core.errors import CerebrumError, EngineError, ModelNotFound, PullError
from cerebrum_cli.core.files import file_error
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.llama_cpp import rebuild_command
from cerebrum_cli.core.settings import Settings, read_config
from cerebrum_cli.core.text import format_count, format_size
from cerebrum_cli.core.version import __version__
from cerebrum_cli.doctor.assessment import (
    DATA,
    CheckResult,
    DirectoryState,
    assess_build,
    assess_devices,
    assess_disk,
    assess_memory,
    assess_threads,
    check_result,
)
from cerebrum_cli.doctor.check_lines import check_terminal
from cerebrum_cli.engine.capacity import machine_state
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.interface import open_source
from cerebrum_cli.replies.source import ModelSource

QUESTION = "What is 17 plus 25?"
ANSWER = "17 plus 20 makes 37, 37 plus 5 makes 42. The answer is 42."
MAX_TOKENS = 64  # twice the length of the answer
REINSTALL = f"reinstall llama.cpp: {rebuild_command()}"
WITHOUT_GPU = "check the GPU's driver, and reinstall llama.cpp; until then use --gpu-layers 0"
PYTHON = f"{platform.python_implementation()} {platform.python_version()}"
FIX_LLAMA_CPP = "see the check llama_cpp"
NOT_LOADED = "llama.cpp cannot be loaded"


@frozen
class DoctorContext:
    """What the checks inspect: directories and models, llama.cpp and the terminal; and settings."""

    app: App
    settings: Settings
    offline: bool


def run_checks(context: DoctorContext) -> Iterator[CheckResult]:
    """Run all checks, each independently of the others. A bug keeps its traceback."""
    for name, check in CHECKS.items():
        try:
            result = check(context)
        except CerebrumError as error:
            result = CheckResult("failure", error.message, error.hint)
        except OSError as error:
            failed = file_error(error)
            result = CheckResult("failure", failed.message, failed.hint)
        if result:
            yield replace(result, name=name)


def _check_devices(context: DoctorContext) -> CheckResult:
    try:
        return assess_devices(context.app.build(), machine_state().likely_accelerator)
    except EngineError:
        return check_result("", (f"unknown: {NOT_LOADED}", FIX_LLAMA_CPP))


def _check_disk(context: DoctorContext) -> CheckResult:
    return assess_disk(
        [
            inspect_directory("models", "HF_HUB_CACHE", context.app.library.cache.directory),
            inspect_directory("prompt cache", "XDG_CACHE_HOME", context.app.cache_directory),
            inspect_directory(DATA, "XDG_DATA_HOME", context.app.data_directory),
        ]
    )


def _check_config(context: DoctorContext) -> CheckResult:
    path = context.app.config_directory / "config.toml"
    config = read_config(path)
    saved = format_count(len(context.app.prompts.read_all()), "saved prompt")
    if not path.exists():
        return check_result(f"{path} does not exist: using default settings; {saved}")
    endpoints = [f"endpoints.{name}" for name in config.endpoints]
    keys = [*config.settings, *endpoints, *(f"mcp.{name}" for name in config.mcp)]
    return check_result(f"{path}: {', '.join(keys) or 'no settings'}; {saved}")


def _check_models(context: DoctorContext) -> CheckResult:
    library = context.app.library
    details = [f"{len(library.catalogue.specs)} in the catalog"]
    problems = []
    n_readable = 0
    models = library.models()
    for model in models:
        if model.refusal:
            problems.append((model.refusal.message, f"cerebrum rm {model.reference}, or pull it again"))
        else:
            n_readable += 1
    if models:
        details.append(f"{n_readable} installed")
    try:
        details.append(f"default: {library.resolve(context.settings.model).label}")
    except ModelNotFound as error:
        if error.message not in dict(problems):
            problems.append((error.message, error.hint))
    return check_result("; ".join(details), *problems)


def _check_token(_: DoctorContext) -> CheckResult:
    from cerebrum_cli.library.online import token_location

    if location := token_location():
        return check_result(f"found in {location}")
    return check_result("none; private and gated models need one: run hf auth login")


def _check_network(context: DoctorContext) -> CheckResult:
    if context.offline:
        return check_result("skipped: --offline")
    if is_hub_offline():
        return check_result("skipped: HF_HUB_OFFLINE is set")
    from cerebrum_cli.library.online import check_reachable

    try:
        return check_result(f"{check_reachable()} is reachable")
    except PullError as error:
        return check_result("", (error.message, f"{error.hint}; installed models need no network"))


def _check_sessions(context: DoctorContext) -> CheckResult:
    path = context.app.sessions_path
    contents = context.app.read_history().check_integrity()
    if contents is None:
        return check_result("none yet")
    if not os.access(path, os.W_OK):
        return CheckResult("failure", f"{path} is not writable", "make it writable, or use --no-log")
    sessions, messages, version = contents
    counts = f"{format_count(sessions, 'session')}, {format_count(messages, 'message')}"
    size = format_size(path.stat().st_size)
    return check_result(f"{counts}, undamaged; {size}, version {version}")


CHECKS: dict[str, Callable[[DoctorContext], CheckResult | None]] = {
    "cerebrum": lambda _: check_result(f"cerebrum {__version__}, {PYTHON}, {platform.platform()}"),
    "llama_cpp": lambda context: assess_build(context.app.build(), machine_state().cpu_flags),
    "devices": _check_devices,
    "threads": lambda context: assess_threads(machine_state(), context.settings.threads),
    "memory": lambda _: assess_memory(machine_state()),
    "disk": _check_disk,
    "config": _check_config,
    "models": _check_models,
    "token": _check_token,
    "network": _check_network,
    "sessions": _check_sessions,
    "terminal": lambda context: check_terminal(context.app.streams),
    "self_test": lambda context: _run_self_test(context, on_gpu=False),
    "self_test_gpu": lambda context: _run_self_test(context, on_gpu=True),
}


def inspect_directory(use: str, variable: str, path: Path) -> DirectoryState:
    """Disk and permissions of a directory, or of its nearest existing ancestor, where it would be created.

    Writes nothing.
    """
    existing = next(ancestor for ancestor in (path, *path.parents) if ancestor.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return DirectoryState(use, variable, path, writable, existing.stat().st_dev, disk_usage(existing).free)


def _run_self_test(context: DoctorContext, on_gpu: bool) -> CheckResult | None:
    """Ask the bundled model on the CPU, where the whole text must match.

    With all layers on a GPU, only the final answer must match, since a GPU rounds differently.
    """
    try:
        build = context.app.build()
    except EngineError:
        return None if on_gpu else CheckResult("failure", f"skipped: {NOT_LOADED}", FIX_LLAMA_CPP)
    if on_gpu and not build.devices:
        return None
    gpu_layers = "all" if on_gpu else "0"
    settings = Settings(
        format="cerebrum", max_tokens=MAX_TOKENS, threads=context.settings.threads, gpu_layers=gpu_layers
    )
    nano = InstalledModel.bundled()
    with open_source(ModelSource(context.app, nano, settings)) as model:
        reply = model.reply(QUESTION).wait()
    if reply.final_answer == "42" if on_gpu else reply.text == ANSWER:
        timings = reply.finish.timings
        speed = f"loaded in {timings.load_s:.2f} s, {timings.tokens_per_second:.0f} t/s"
        return check_result(f"{QUESTION} {reply.text} ({speed})")
    problem = f"the bundled model answers {reply.text!r} to {QUESTION!r} instead of {ANSWER!r}"
    return CheckResult("failure", problem, WITHOUT_GPU if on_gpu else REINSTALL)
