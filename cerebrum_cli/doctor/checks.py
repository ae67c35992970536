"""The eight checks of `cerebrum doctor`, in the order in which they run; in the last one, a bundled model answers."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage
from typing import Literal

from cerebrum_cli.cli.app import App
from cerebrum_cli.cli.command import environment_layer
from cerebrum_cli.core.environment import is_hub_offline
from cerebrum_cli.core.errors import CerebrumError, EngineError, ModelNotFound, PullError
from cerebrum_cli.core.files import file_error
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.llama_cpp import rebuild_command
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import format_count, format_size
from cerebrum_cli.core.version import __version__
from cerebrum_cli.engine.capacity import Build, likely_accelerator, memory
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.interface import open_source
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.replies.source import ModelSource

MIN_MEMORY = 2 * 10**9  # bytes; a small model, its KV cache and other programs
MIN_DISK = 5 * 10**9  # bytes; the default model takes 4.4 GB
QUESTION = "What is 17 plus 25?"
ANSWER = "17 plus 20 makes 37, 37 plus 5 makes 42. The answer is 42."
MAX_TOKENS = 64  # twice the length of the answer
CEREBRUM = f"cerebrum {__version__}, {platform.python_implementation()} {platform.python_version()}"

Status = Literal["ok", "warning", "failure"]


@frozen
class CheckResult:
    """The result of one check. A warning means that something is slow, limited or not set up yet."""

    status: Status
    detail: str
    hint: str = ""
    name: str = ""


@frozen
class DoctorContext:
    """What the checks inspect: directories, models and llama.cpp of an app, and the Hub unless they are `offline`."""

    app: App
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
        yield replace(result, name=name)


def check_result(detail: str, *problems: tuple[str, str]) -> CheckResult:
    """Result of a check: ok, or a warning if there are problems, each with its hint."""
    details = [detail] if detail else []
    details += [problem for problem, _ in problems]
    hints = "; ".join(hint for _, hint in problems)
    return CheckResult("warning" if problems else "ok", "; ".join(details), hints)


def _check_versions(context: DoctorContext) -> CheckResult:
    """Versions, and whether llama.cpp can be loaded and was built for this CPU."""
    detail = f"{CEREBRUM}, {platform.platform()}"
    try:
        build = context.app.build()
    except EngineError as error:
        return CheckResult("failure", f"{detail}; {error.message}", error.hint)
    features = ", ".join(build.cpu_features) or "no features reported"
    backends = ", ".join(build.backends) or "none"
    detail += f"; llama-cpp-python {build.version}, ggml {build.ggml}; backends {backends}; CPU: {features}"
    if not build.unused_features:
        return check_result(detail)
    slow = f"slow: llama.cpp does not use this CPU's {', '.join(build.unused_features)}"
    return check_result(detail, (slow, f"rebuild it: {rebuild_command('-DGGML_NATIVE=on')}"))


def _check_gpu(context: DoctorContext) -> CheckResult:
    build = _loadable_build(context)
    if build.devices:
        return check_result("; ".join(build.gpus))
    if build.offloads:
        problem = "llama.cpp was built for GPUs and finds none"
        return check_result("", (problem, "check the GPU's driver; for NVIDIA, run nvidia-smi"))
    accelerator = likely_accelerator()
    if accelerator is None:
        return check_result("none: everything runs on the CPU")
    problem = "this machine seems to have a GPU, but llama.cpp was built without GPU support"
    command = rebuild_command(f"-DGGML_{accelerator.upper()}=on")
    hint = f"rebuild it: {command}  (in a checkout: make setup ACCEL={accelerator})"
    return check_result("", (problem, hint))


def _loadable_build(context: DoctorContext) -> Build:
    """Raises EngineError, which refers to the check that says why."""
    try:
        return context.app.build()
    except EngineError as error:
        raise EngineError("skipped: llama.cpp cannot be loaded", "see the check versions") from error


def _check_memory(_: DoctorContext) -> CheckResult:
    """Memory that this process's cgroups allow it."""
    available, total = memory()
    detail = f"{format_size(available)} of {format_size(total)} free"
    if available >= MIN_MEMORY:
        return check_result(detail)
    problem = f"less than {format_size(MIN_MEMORY)} of memory is free"
    return check_result(detail, (problem, "close other programs, or choose a smaller quantization"))


def _check_disk(context: DoctorContext) -> CheckResult:
    """Space for models, and whether they and chats can be written. Writes nothing."""
    cache, data = context.app.library.cache.directory, context.app.data_directory
    free = disk_usage(_existing(cache)).free
    problems = []
    if free < MIN_DISK:
        problem = f"less than {format_size(MIN_DISK)} free: a model may not fit"
        hint = "free some space, remove models with cerebrum rm, or set HF_HUB_CACHE to a directory on a larger disk"
        problems.append((problem, hint))
    if not _is_writable(cache):
        problems.append((f"{cache} is not writable", "make it writable, or set HF_HUB_CACHE"))
    if not _is_writable(data):  # chats could not be saved
        return CheckResult("failure", f"{data} is not writable", "make it writable, or set XDG_DATA_HOME")
    return check_result(f"{format_size(free)} free for models in {cache}", *problems)


def _existing(path: Path) -> Path:
    """A directory, or its nearest existing ancestor, where it would be created."""
    return next(ancestor for ancestor in (path, *path.parents) if ancestor.exists())


def _is_writable(path: Path) -> bool:
    existing = _existing(path)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _check_models(context: DoctorContext) -> CheckResult:
    """Which models are installed, and whether the one that the settings name is."""
    library = context.app.library
    models = library.models()
    problems = [
        (model.refusal.message, f"cerebrum rm {model.reference}, or pull it again") for model in models if model.refusal
    ]
    detail = f"{len(library.catalogue.specs)} in the catalog; {len(models) - len(problems)} installed"
    try:
        settings = context.app.settings(environment_layer("model"))
        detail += f"; default: {library.resolve(settings.model).label}"
    except ModelNotFound as error:
        if error.message not in dict(problems):
            problems.append((error.message, error.hint))
    return check_result(detail, *problems)


def _check_network(context: DoctorContext) -> CheckResult:
    """Whether the Hub can be reached, and where the token for private and gated models is."""
    from cerebrum_cli.library.online import check_reachable, token_location

    location = token_location()
    token = f"token in {location}" if location else "no token; private and gated models need one: run hf auth login"
    if context.offline or is_hub_offline():
        reason = "--offline" if context.offline else "HF_HUB_OFFLINE is set"
        return check_result(f"skipped: {reason}; {token}")
    try:
        return check_result(f"{check_reachable()} is reachable; {token}")
    except PullError as error:
        return check_result(token, (error.message, f"{error.hint}; installed models need no network"))


def _check_sessions(context: DoctorContext) -> CheckResult:
    path = context.app.sessions_path
    contents = context.app.read_history().check_integrity()
    if contents is None:
        return check_result("none yet")
    if not os.access(path, os.W_OK):
        return CheckResult("failure", f"{path} is not writable", "make it writable, or use --no-log")
    sessions, messages = contents
    counts = f"{format_count(sessions, 'session')}, {format_count(messages, 'message')}"
    return check_result(f"{counts}, undamaged; {format_size(path.stat().st_size)}")


def _run_self_test(context: DoctorContext) -> CheckResult:
    """Ask the bundled model on the CPU, where the whole text must match.

    With all layers on a GPU, only the final answer must match, since a GPU rounds differently.
    """
    has_gpu = bool(_loadable_build(context).devices)
    on_cpu = _ask_bundled(context, gpu_layers="0")
    if on_cpu.text != ANSWER:
        return _wrong_answer(on_cpu, f"reinstall llama.cpp: {rebuild_command()}")
    detail = f"{QUESTION} {ANSWER} ({_speed(on_cpu)}"
    if has_gpu:
        on_gpu = _ask_bundled(context, gpu_layers="all")
        if on_gpu.final_answer != "42":
            hint = "check the GPU's driver, and reinstall llama.cpp; until then use --gpu-layers 0"
            return _wrong_answer(on_gpu, hint)
        detail += f"; on the GPU {_speed(on_gpu)}"
    return check_result(f"{detail})")


def _ask_bundled(context: DoctorContext, gpu_layers: str) -> Reply:
    settings = Settings(format="cerebrum", max_tokens=MAX_TOKENS, gpu_layers=gpu_layers)
    with open_source(ModelSource(context.app, InstalledModel.bundled(), settings)) as model:
        return model.reply(QUESTION).wait()


def _speed(reply: Reply) -> str:
    timings = reply.finish.timings
    return f"loaded in {timings.load_s:.2f} s, {timings.tokens_per_second:.0f} t/s"


def _wrong_answer(reply: Reply, hint: str) -> CheckResult:
    problem = f"the bundled model answers {reply.text!r} to {QUESTION!r} instead of {ANSWER!r}"
    return CheckResult("failure", problem, hint)


CHECKS: dict[str, Callable[[DoctorContext], CheckResult]] = {
    "versions": _check_versions,
    "gpu": _check_gpu,
    "memory": _check_memory,
    "disk": _check_disk,
    "models": _check_models,
    "network": _check_network,
    "sessions": _check_sessions,
    "self_test": _run_self_test,
}
