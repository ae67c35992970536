"""The checks of `cerebrum doctor`, in the order in which they run."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import TypeVar

from cerebrum_cli import __version__
from cerebrum_cli.core.config import read_config
from cerebrum_cli.core.errors import CerebrumError, EngineError, ModelNotFound, PullError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import format_size
from cerebrum_cli.doctor import assessment, selftest
from cerebrum_cli.doctor.assessment import Directory, format_count
from cerebrum_cli.doctor.check_result import CheckResult, check_result
from cerebrum_cli.engine import machine
from cerebrum_cli.engine.build import Build
from cerebrum_cli.engine.state_store import STATE, list_names
from cerebrum_cli.inference.loading import BackendFactory
from cerebrum_cli.models import listing
from cerebrum_cli.models.library import Library

NETWORK_TIMEOUT_S = 3.0

T = TypeVar("T")


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
    open_backend: BackendFactory
    terminal: Callable[[], CheckResult]
    session_counts: Callable[[Path], tuple[int, int, int] | None]  # sessions, messages and version of a database


def run_checks(context: DoctorContext) -> Iterator[CheckResult]:
    """Run all checks of this machine."""
    return run_table(CHECKS, context)


def run_table(checks: Mapping[str, Callable[[T], CheckResult | None]], subject: T) -> Iterator[CheckResult]:
    """Run checks by name, each independently of the others. A bug keeps its traceback."""
    for name, check in checks.items():
        try:
            result = check(subject)
        except CerebrumError as error:
            result = CheckResult(name, "failure", error.message, error.hint)
        except OSError as error:
            problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            result = CheckResult(name, "failure", problem, "check its permissions")
        if result:
            yield result


def _check_version(_: DoctorContext) -> CheckResult:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return check_result("cerebrum", f"cerebrum {__version__}, {python}, {platform.platform()}")


def _check_llama_cpp(context: DoctorContext) -> CheckResult:
    return assessment.assess_build(context.build(), machine.processor_flags())


def _check_devices(context: DoctorContext) -> CheckResult:
    try:
        build = context.build()
    except EngineError:
        return check_result("devices", "", ("unknown: llama.cpp cannot be loaded", "fix the llama_cpp check first"))
    return assessment.assess_devices(build, machine.likely_accelerator())


def _check_threads(context: DoctorContext) -> CheckResult:
    return assessment.assess_threads(machine.processors(), context.settings.threads)


def _check_memory(_: DoctorContext) -> CheckResult:
    return assessment.assess_memory(machine.available_memory(), machine.total_memory(), machine.machine_memory())


def _check_disk(context: DoctorContext) -> CheckResult:
    uses = (
        ("models", context.library.cache.directory),
        ("prompt cache", context.cache_directory),
        ("data", context.data_directory),
    )
    return assessment.assess_disk([inspect_directory(use, path) for use, path in uses])


def _check_config(context: DoctorContext) -> CheckResult:
    path = context.config_directory / "config.toml"
    config = read_config(path)
    keys = [*config.settings, *(f"endpoints.{name}" for name in config.endpoints)]
    if not path.exists():
        return check_result("config", f"{path} does not exist: using default settings")
    return check_result("config", f"{path} sets {', '.join(keys) or 'nothing'}")


def _check_catalogue(context: DoctorContext) -> CheckResult:
    *_, own = context.library.catalogue_paths
    source = f", including those of {own}" if own.exists() else ""
    return check_result("catalogue", format_count(len(context.library.specs), "model") + source)


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
    return check_result("models", "; ".join(details), *problems)


def _check_hugging_face_cache(context: DoctorContext) -> CheckResult:
    directory = inspect_directory("models", context.library.cache.directory)
    if not directory.path.is_dir():
        if directory.writable:
            return check_result("hugging_face_cache", f"none yet: {directory.path}")
        problem = (f"{directory.path} cannot be created", "set HF_HUB_CACHE to a writable directory")
        return check_result("hugging_face_cache", "", problem)
    models = list(context.library.cache.models())
    blobs = {blob for model in models for blob in model.blobs}
    size = format_size(sum(blob.stat().st_size for blob in blobs))
    detail = f"{directory.path}: {format_count(len(models), 'GGUF model')}, {size}"
    if directory.writable:
        return check_result("hugging_face_cache", detail)
    problem = ("not writable, so nothing can be pulled", "fix its permissions, or set HF_HUB_CACHE")
    return check_result("hugging_face_cache", detail, problem)


def _check_token(_: DoctorContext) -> CheckResult:
    from cerebrum_cli.models.hub import token

    found = token()
    if found.is_set:
        return check_result("token", f"found in {found.location}")
    return check_result("token", "none; private and gated models need one (hf auth login)")


def _check_network(context: DoctorContext) -> CheckResult:
    from cerebrum_cli.models import hub

    if context.offline:
        return check_result("network", "skipped: --offline")
    if hub.is_offline():
        return check_result("network", "skipped: HF_HUB_OFFLINE is set")
    try:
        address = run_with_timeout(lambda: hub.check_reachable(NETWORK_TIMEOUT_S), NETWORK_TIMEOUT_S)
    except PullError as error:
        hint = f"{error.hint.removesuffix(', then try again')}; installed models need no network"
        return check_result("network", "", (error.message, hint))
    except TimeoutError:
        hint = "check the network; installed models need none"
        return check_result("network", "", (f"no reply from the Hub within {NETWORK_TIMEOUT_S:g} s", hint))
    return check_result("network", f"{address} is reachable")


def _check_prompt_cache(context: DoctorContext) -> CheckResult:
    directory = inspect_directory("prompt cache", context.cache_directory / "states")
    paths = [directory.path / name for name in list_names(directory.path) if name.endswith(STATE)]
    size = sum(path.stat().st_size for path in paths)
    return assessment.assess_prompt_cache(directory, len(paths), size, context.settings.cache_gb * 1e9)


def _check_sessions(context: DoctorContext) -> CheckResult:
    path = context.data_directory / "sessions" / "sessions.db"
    found = context.session_counts(path)
    if found is None:
        return check_result("sessions", "none yet")
    if not os.access(path, os.W_OK):
        return CheckResult("sessions", "failure", f"{path} is not writable", "fix its permissions, or use --no-log")
    sessions, messages, version = found
    counts = f"{format_count(sessions, 'session')}, {format_count(messages, 'message')}, undamaged"
    return check_result("sessions", f"{counts}; {format_size(path.stat().st_size)}, version {version}")


def _check_terminal(context: DoctorContext) -> CheckResult:
    return context.terminal()


def _check_self_test(context: DoctorContext) -> CheckResult:
    fix = "fix the llama_cpp check first"
    try:
        build = context.build()
    except EngineError:
        return CheckResult("self_test", "failure", "skipped: llama.cpp cannot be loaded", fix)
    if unsupported := build.unsupported_features(machine.processor_flags()):
        return CheckResult("self_test", "failure", f"skipped: this CPU lacks {', '.join(unsupported)}", fix)
    return selftest.run_selftest(context.open_backend, context.settings.threads)


def _check_self_test_gpu(context: DoctorContext) -> CheckResult | None:
    try:
        build = context.build()
    except EngineError:
        return None
    if not build.devices or build.unsupported_features(machine.processor_flags()):
        return None
    return selftest.run_gpu_selftest(context.open_backend, context.settings.threads)


CHECKS: dict[str, Callable[[DoctorContext], CheckResult | None]] = {
    "cerebrum": _check_version,
    "llama_cpp": _check_llama_cpp,
    "devices": _check_devices,
    "threads": _check_threads,
    "memory": _check_memory,
    "disk": _check_disk,
    "config": _check_config,
    "catalogue": _check_catalogue,
    "models": _check_models,
    "hugging_face_cache": _check_hugging_face_cache,
    "token": _check_token,
    "network": _check_network,
    "prompt_cache": _check_prompt_cache,
    "sessions": _check_sessions,
    "terminal": _check_terminal,
    "self_test": _check_self_test,
    "self_test_gpu": _check_self_test_gpu,
}


def inspect_directory(use: str, path: Path) -> Directory:
    """Disk and permissions of a directory, or of its nearest existing ancestor, where it would be created.

    Writes nothing.
    """
    existing = next(ancestor for ancestor in (path, *path.parents) if ancestor.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return Directory(use, path, writable, existing.stat().st_dev, disk_usage(existing).free)


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
