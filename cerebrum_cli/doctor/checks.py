"""The checks of `cerebrum doctor`, in the order in which they run; in the last ones a bundled model answers."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import disk_usage
from typing import TypeVar

from cerebrum_cli.core.config import read_config
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import CerebrumError, EngineError, ModelNotFound, PullError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import format_count, format_size
from cerebrum_cli.core.version import __version__
from cerebrum_cli.doctor.assessment import (
    CheckResult,
    DirectoryState,
    assess_build,
    assess_devices,
    assess_disk,
    assess_memory,
    assess_prompt_cache,
    assess_threads,
    check_result,
)
from cerebrum_cli.engine import machine
from cerebrum_cli.engine.build import Build, lacking, rebuild_command
from cerebrum_cli.engine.state_store import STATE, list_names
from cerebrum_cli.model.installation import Installation
from cerebrum_cli.model.interface import open_source
from cerebrum_cli.model.reply import ReplyRequest
from cerebrum_cli.model.source import ModelSource
from cerebrum_cli.models import listing
from cerebrum_cli.models.library import NANO, Library
from cerebrum_cli.models.model import InstalledModel

QUESTION = "What is 17 plus 25?"
ANSWER = "17 plus 20 makes 37, 37 plus 5 makes 42. The answer is 42."
MAX_TOKENS = 64  # twice the length of the answer
REINSTALL = f"reinstall llama.cpp: {rebuild_command()}"
WITHOUT_GPU = "check the GPU's driver, and reinstall llama.cpp; until then use --gpu-layers 0"
FIX_LLAMA_CPP = "see the check llama_cpp"

T = TypeVar("T")


class SkippedCheck(Exception):
    """Raised by a check that needs what an earlier one did not find; it has no result."""


@dataclass(frozen=True, slots=True)
class DoctorContext:
    """What the checks inspect: directories, settings, llama.cpp and the terminal."""

    config_directory: Path
    data_directory: Path
    cache_directory: Path
    library: Library
    settings: Settings
    offline: bool
    build: Callable[[], Build]
    installation: Installation
    terminal: Callable[[], CheckResult]
    session_counts: Callable[[Path], tuple[int, int, int] | None]  # sessions, messages and version of a database


def run_table(checks: Mapping[str, Callable[[T], CheckResult | None]], subject: T) -> Iterator[CheckResult]:
    """Run checks by name, each independently of the others. A bug keeps its traceback."""
    for name, check in checks.items():
        try:
            result = check(subject)
        except CerebrumError as error:
            result = CheckResult("failure", error.message, error.hint)
        except SkippedCheck:
            continue
        except OSError as error:
            problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            result = CheckResult("failure", problem, "check its permissions")
        if result:
            yield replace(result, name=name)


def _check_version(_: DoctorContext) -> CheckResult:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return check_result(f"cerebrum {__version__}, {python}, {platform.platform()}")


def _check_devices(context: DoctorContext) -> CheckResult:
    try:
        build = context.build()
    except EngineError:
        return check_result("", ("unknown: llama.cpp cannot be loaded", FIX_LLAMA_CPP))
    return assess_devices(build, machine.likely_accelerator())


def _check_disk(context: DoctorContext) -> CheckResult:
    uses = (
        ("models", context.library.cache.directory),
        ("prompt cache", context.cache_directory),
        ("data", context.data_directory),
    )
    return assess_disk([inspect_directory(use, path) for use, path in uses])


def _check_config(context: DoctorContext) -> CheckResult:
    path = context.config_directory / "config.toml"
    config = read_config(path)
    keys = [*config.settings, *(f"endpoints.{name}" for name in config.endpoints)]
    sets = f"sets {', '.join(keys) or 'nothing'}" if path.exists() else "does not exist: using default settings"
    return check_result(f"{path} {sets}")


def _check_catalogue(context: DoctorContext) -> CheckResult:
    *_, own = context.library.catalogue_paths
    source = f", including those of {own}" if own.exists() else ""
    return check_result(format_count(len(context.library.specs), "model") + source)


def _check_models(context: DoctorContext) -> CheckResult:
    rows = [listing.row(context.library, model) for model in context.library.models()]
    unreadable = [row for row in rows if row["error"]]
    problems = [(row["error"], f"cerebrum rm {row['reference']}, or pull it again") for row in unreadable]
    details = [f"{len(rows) - len(unreadable)} installed"] if rows else []
    try:
        details.append(f"default: {context.library.resolve(context.settings.model).label}")
    except ModelNotFound as error:
        if error.message not in (problem for problem, _ in problems):
            problems.append((error.message, error.hint))
    return check_result("; ".join(details), *problems)


def _check_hugging_face_cache(context: DoctorContext) -> CheckResult:
    directory = inspect_directory("models", context.library.cache.directory)
    problem = ("not writable, so nothing can be pulled", "make it writable, or set HF_HUB_CACHE")
    warning = None if directory.writable else problem
    if not directory.path.is_dir():
        return check_result(f"none yet: {directory.path}", warning)
    models = list(context.library.cache.models())
    size = format_size(sum(blob.stat().st_size for blob in {blob for model in models for blob in model.blobs}))
    return check_result(f"{directory.path}: {format_count(len(models), 'GGUF model')}, {size}", warning)


def _check_token(_: DoctorContext) -> CheckResult:
    from cerebrum_cli.models.hub import token_location

    location = token_location()
    none = "none; private and gated models need one: run hf auth login"
    return check_result(f"found in {location}" if location else none)


def _check_network(context: DoctorContext) -> CheckResult:
    from cerebrum_cli.models import hub

    if context.offline:
        return check_result("skipped: --offline")
    if hub.is_offline():
        return check_result("skipped: HF_HUB_OFFLINE is set")
    try:
        address = run_with_timeout(hub.check_reachable, hub.TIMEOUT_S)
    except PullError as error:
        problem, hint = error.message, error.hint.removesuffix(", then try again")
    except TimeoutError:
        problem, hint = f"no reply from the Hub within {hub.TIMEOUT_S:g} s", "check the network"
    else:
        return check_result(f"{address} is reachable")
    return check_result("", (problem, f"{hint}; installed models need no network"))


def _check_prompt_cache(context: DoctorContext) -> CheckResult:
    directory = inspect_directory("prompt cache", context.cache_directory / "states")
    paths = [directory.path / name for name in list_names(directory.path) if name.endswith(STATE)]
    size = sum(path.stat().st_size for path in paths)
    return assess_prompt_cache(directory, len(paths), size, context.settings.cache_gb * 1e9)


def _check_sessions(context: DoctorContext) -> CheckResult:
    path = context.data_directory / "sessions" / "sessions.db"
    contents = context.session_counts(path)
    if contents is None:
        return check_result("none yet")
    if not os.access(path, os.W_OK):
        return CheckResult("failure", f"{path} is not writable", "make it writable, or use --no-log")
    sessions, messages, version = contents
    counts = f"{format_count(sessions, 'session')}, {format_count(messages, 'message')}, undamaged"
    return check_result(f"{counts}; {format_size(path.stat().st_size)}, version {version}")


def _check_self_test(context: DoctorContext) -> CheckResult:
    if problem := _unusable(context):
        return CheckResult("failure", f"skipped: {problem}", FIX_LLAMA_CPP)
    return run_selftest(context, on_gpu=False)


def _check_self_test_gpu(context: DoctorContext) -> CheckResult | None:
    return None if _unusable(context) or not context.build().devices else run_selftest(context, on_gpu=True)


def _unusable(context: DoctorContext) -> str:
    """Why no model can be loaded; empty if one can."""
    try:
        unsupported = lacking(context.build().cpu_features, machine.processor_flags())
    except EngineError:
        return "llama.cpp cannot be loaded"
    return f"this CPU lacks {', '.join(unsupported)}" if unsupported else ""


CHECKS: dict[str, Callable[[DoctorContext], CheckResult | None]] = {
    "cerebrum": _check_version,
    "llama_cpp": lambda context: assess_build(context.build(), machine.processor_flags()),
    "devices": _check_devices,
    "threads": lambda context: assess_threads(machine.processors(), context.settings.threads),
    "memory": lambda _: assess_memory(machine.available_memory(), machine.total_memory(), machine.machine_memory()),
    "disk": _check_disk,
    "config": _check_config,
    "catalogue": _check_catalogue,
    "models": _check_models,
    "hugging_face_cache": _check_hugging_face_cache,
    "token": _check_token,
    "network": _check_network,
    "prompt_cache": _check_prompt_cache,
    "sessions": _check_sessions,
    "terminal": lambda context: context.terminal(),
    "self_test": _check_self_test,
    "self_test_gpu": _check_self_test_gpu,
}


def inspect_directory(use: str, path: Path) -> DirectoryState:
    """Disk and permissions of a directory, or of its nearest existing ancestor, where it would be created.

    Writes nothing.
    """
    existing = next(ancestor for ancestor in (path, *path.parents) if ancestor.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return DirectoryState(use, path, writable, existing.stat().st_dev, disk_usage(existing).free)


def run_with_timeout(function: Callable[[], T], seconds: float) -> T:
    """Result of a function. Raises TimeoutError if it takes longer; its thread is then abandoned.

    Name resolution takes as long as the system allows, and cannot be canceled.
    """
    from concurrent.futures import Future
    from threading import Thread

    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result(seconds)


def run_selftest(context: DoctorContext, on_gpu: bool) -> CheckResult:
    """Ask the bundled model on the CPU, where the whole text must match.

    With all layers on a GPU, only the final answer must match, since a GPU rounds differently.
    """
    if not NANO.is_file():
        return CheckResult("failure", f"{NANO} is missing", "reinstall cerebrum")
    threads, gpu_layers = context.settings.threads, "all" if on_gpu else "0"
    settings = Settings(format="cerebrum", max_tokens=MAX_TOKENS, threads=threads, gpu_layers=gpu_layers)
    nano = InstalledModel(NANO.stem, (NANO,), is_bundled=True)
    with open_source(ModelSource(context.installation, nano, settings)) as model:
        reply = model.respond(ReplyRequest(Conversation().user(QUESTION), settings)).wait()
    if reply.is_finished and (reply.final_answer == "42" if on_gpu else reply.text == ANSWER):
        timings = reply.finish.timings
        speed = f"loaded in {timings.load_s:.2f} s, {timings.tokens_per_second:.0f} t/s"
        return check_result(f"{QUESTION} {reply.text} ({speed})")
    text = reply.text if reply.is_finished else ""
    problem = f"the bundled model answers {text!r} to {QUESTION!r} instead of {ANSWER!r}"
    return CheckResult("failure", problem, WITHOUT_GPU if on_gpu else REINSTALL)
