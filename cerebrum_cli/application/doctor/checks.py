"""What `doctor` looks at, one thing after the other: each is a finding of its own, whatever becomes of the others."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import TypeVar

from cerebrum_cli import __version__
from cerebrum_cli.application.doctor import assessment as judgement
from cerebrum_cli.application.doctor import selftest
from cerebrum_cli.application.doctor.assessment import Place
from cerebrum_cli.application.doctor.check_result import CheckResult, check_result
from cerebrum_cli.application.inference.loading import BackendFactory
from cerebrum_cli.application.models import listing
from cerebrum_cli.application.models.library import Library
from cerebrum_cli.core.errors import CerebrumError, EngineError, ModelNotFound, PullError
from cerebrum_cli.core.settings import Settings, read_config
from cerebrum_cli.core.text import format_size
from cerebrum_cli.engine import machine
from cerebrum_cli.engine.build import Build
from cerebrum_cli.engine.state_store import STATE, list_names

NETWORK_S = 3.0  # how long the Hub is waited for, in all

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DoctorContext:
    """What is looked at: where things lie, what is set, and how llama.cpp is asked of itself and for answers."""

    config_directory: Path
    data_directory: Path
    cache_directory: Path
    library: Library
    settings: Settings
    offline: bool
    build: Callable[[], Build]
    open_backend: BackendFactory
    terminal: Callable[[], CheckResult]


def run_checks(here: DoctorContext) -> Iterator[CheckResult]:
    """Yield what is found, as it is found. A bug keeps its traceback."""
    for name, look in CHECKS.items():
        try:
            finding = look(here)
        except CerebrumError as error:
            finding = CheckResult(name, "failure", error.message, error.hint)
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            finding = CheckResult(name, "failure", what, "make it readable")
        if finding:
            yield finding


def _program(_: DoctorContext) -> CheckResult:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return check_result("cerebrum", f"cerebrum {__version__}, {python}, {platform.platform()}")


def _llama_cpp(here: DoctorContext) -> CheckResult:
    return judgement.judged_build(here.build(), machine.processor_flags())


def _devices(here: DoctorContext) -> CheckResult:
    try:
        build = here.build()
    except EngineError:
        return check_result("devices", "", ("unknown: llama.cpp cannot be loaded", "fix llama_cpp first"))
    return judgement.judged_devices(build, machine.likely_accelerator())


def _threads(here: DoctorContext) -> CheckResult:
    return judgement.judged_threads(machine.processors(), here.settings.threads)


def _memory(_: DoctorContext) -> CheckResult:
    return judgement.judged_memory(machine.available_memory(), machine.total_memory(), machine.machine_memory())


def _disk(here: DoctorContext) -> CheckResult:
    uses = (
        ("models", here.library.cache.directory),
        ("kept states", here.cache_directory),
        ("data", here.data_directory),
    )
    return judgement.judged_disk([place(use, path) for use, path in uses])


def _config(here: DoctorContext) -> CheckResult:
    path = here.config_directory / "config.toml"
    keys = read_config(path)
    if not path.exists():
        return check_result("config", f"no {path}: using default settings")
    return check_result("config", f"{path} sets {', '.join(keys) or 'nothing'}")


def _catalogue(here: DoctorContext) -> CheckResult:
    *_, own = here.library.catalogue_paths
    return check_result(
        "catalogue", f"{len(here.library.specs)} models" + (f", with those of {own}" if own.exists() else "")
    )


def _models(here: DoctorContext) -> CheckResult:
    library, wanted = here.library, here.settings.model
    rows = list(listing.rows(library))
    errors = [row for row in rows if row["error"]]
    problems = [(row["error"], f"cerebrum rm {row['reference']}, or pull it again") for row in errors]
    told = [f"{len(rows) - len(errors)} installed"] if rows else []
    try:
        told.append(f"default: {library.resolve(wanted).reference}")
    except ModelNotFound as error:
        if error.message not in (problem for problem, _ in problems):
            problems.append((error.message, error.hint))
    return check_result("models", "; ".join(told), *problems)


def _hugging_face_cache(here: DoctorContext) -> CheckResult:
    folder = place("models", here.library.cache.directory)
    if not folder.path.is_dir():
        problem = (f"{folder.path} does not exist yet", "cerebrum pull MODEL creates it")
        if not folder.writable:
            problem = (f"{folder.path} cannot be created", "set HF_HUB_CACHE to a directory that can")
        return check_result("hugging_face_cache", "", problem)
    models = list(here.library.cache.models())
    blobs = {blob for model in models for blob in model.blobs}
    detail = f"{folder.path}: {len(models)} GGUF models, {format_size(sum(blob.stat().st_size for blob in blobs))}"
    if folder.writable:
        return check_result("hugging_face_cache", detail)
    problem = ("it is not writable, so nothing can be pulled", "fix its permissions, or set HF_HUB_CACHE")
    return check_result("hugging_face_cache", detail, problem)


def _token(_: DoctorContext) -> CheckResult:
    from cerebrum_cli.catalogue.hub import token

    kept = token()
    if kept.is_set:
        return check_result("token", f"found in {kept.location}")
    return check_result(
        "token", "", ("none, so private and gated models are unavailable", "if you need them: hf auth login")
    )


def _network(here: DoctorContext) -> CheckResult:
    from cerebrum_cli.catalogue import hub

    if here.offline:
        return check_result("network", "skipped: --offline")
    if hub.is_offline():
        return check_result("network", "", ("HF_HUB_OFFLINE is set", "to pull models, unset it"))
    try:
        return check_result("network", f"{in_time(lambda: hub.check_reachable(NETWORK_S), NETWORK_S)} answers")
    except PullError as error:
        do = f"{error.hint.removesuffix(', then pull again')}; installed models need no network"
        return check_result("network", "", (error.message, do))
    except TimeoutError:
        do = "check the network; installed models need none"
        return check_result("network", "", (f"the Hub does not answer in {NETWORK_S:g} s", do))


def _prompt_cache(here: DoctorContext) -> CheckResult:
    folder = place("kept states", here.cache_directory / "states")
    paths = [folder.path / name for name in list_names(folder.path) if name.endswith(STATE)]
    size = sum(path.stat().st_size for path in paths)
    return judgement.judged_states(folder, len(paths), size, here.settings.cache_gb * 1e9)


def _sessions(here: DoctorContext) -> CheckResult:
    from cerebrum_cli.sessions.integrity import check_integrity

    path = here.data_directory / "sessions" / "sessions.db"
    held = check_integrity(path)
    if held is None:
        return check_result("sessions", "none yet")
    if not os.access(path, os.W_OK):
        return CheckResult("sessions", "failure", f"{path} is not writable", "fix its permissions, or use --no-log")
    size = format_size(path.stat().st_size)
    return check_result(
        "sessions", f"{held.sessions}, of {held.messages} messages, whole; {size}, version {held.version}"
    )


def _terminal(here: DoctorContext) -> CheckResult:
    return here.terminal()


def _self_test(here: DoctorContext) -> CheckResult:
    if foreign := here.build().unsupported_features(machine.processor_flags()):
        what = f"skipped: this processor lacks {', '.join(foreign)}"
        return CheckResult("self_test", "failure", what, "fix llama_cpp first")
    return selftest.run_selftest(here.open_backend, here.settings.threads)


def _self_test_gpu(here: DoctorContext) -> CheckResult | None:
    try:
        build = here.build()
    except EngineError:
        return None
    if not build.devices or build.unsupported_features(machine.processor_flags()):
        return None
    return selftest.tested_on_gpu(here.open_backend, here.settings.threads)


CHECKS: dict[str, Callable[[DoctorContext], CheckResult | None]] = {
    "cerebrum": _program,
    "llama_cpp": _llama_cpp,
    "devices": _devices,
    "threads": _threads,
    "memory": _memory,
    "disk": _disk,
    "config": _config,
    "catalogue": _catalogue,
    "models": _models,
    "hugging_face_cache": _hugging_face_cache,
    "token": _token,
    "network": _network,
    "prompt_cache": _prompt_cache,
    "sessions": _sessions,
    "terminal": _terminal,
    "self_test": _self_test,
    "self_test_gpu": _self_test_gpu,
}


def place(use: str, path: Path) -> Place:
    """Look at a folder, or at the nearest one above it that there is: it will be made there. Nothing is written."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return Place(use, path, writable, there.stat().st_dev, disk_usage(there).free)


def in_time(work: Callable[[], T], seconds: float) -> T:
    """Return what work comes to, or raise what it raises; TimeoutError where it takes longer, and it is left to itself.

    To look a name up takes as long as the system likes, and cannot be ended.
    """
    from threading import Thread

    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]
