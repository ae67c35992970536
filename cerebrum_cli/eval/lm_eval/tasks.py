"""Run tasks of lm-evaluation-harness on a model, and compare its results with published ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from math import hypot
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.events import Event, NoticeEvent, StageEvent
from cerebrum_cli.core.text import did_you_mean, pip_install
from cerebrum_cli.eval.lm_eval.model import CerebrumLM
from cerebrum_cli.eval.tasks import Figure, Preset, published

CODE_METRIC = "code_eval"
TASK_DEFINITIONS = "lm_eval.api.task"  # the logger of warnings about what a task's file leaves to defaults


def evaluate_tasks(
    model: CerebrumLM, tasks: Sequence[str], include_path: Path | None, **arguments: Any
) -> dict[str, Any]:
    """Run tasks, groups or tags by their names, which may have wildcards, and return lm-eval's results.

    The arguments are those of its `simple_evaluate`. Raises UsageError for unknown tasks, CerebrumError for data that
    cannot be loaded.
    """
    with own_output(model.on_event):
        model.on_event(StageEvent("loading tasks", 0, 1))
        manager, names = find_tasks(tasks, include_path)
        results = evaluator.simple_evaluate(model=model, tasks=names, task_manager=manager, **arguments)
    plain: dict[str, Any] = json.loads(json.dumps(results, default=handle_non_serializable))  # functions become text
    return plain


def find_tasks(tasks: Sequence[str], include_path: Path | None) -> tuple[TaskManager, list[str]]:
    """Look up tasks in a directory alone, if it has them all: lm-eval's own take seconds to read. Raises UsageError."""
    for include_defaults in (False, True) if include_path else (True,):
        manager = Tasks(include_path=include_path, include_defaults=include_defaults)
        matches = {task: manager.match_tasks([task]) for task in tasks}
        if all(matches.values()):
            return manager, list(dict.fromkeys(name for names in matches.values() for name in names))
    unknown = next(task for task, names in matches.items() if not names)
    near = did_you_mean(unknown, manager.all_tasks, 3)
    raise UsageError(f"lm-eval has no task {unknown!r}", f"{near}list all with lm_eval ls tasks")


class Tasks(TaskManager):  # type: ignore[misc]  # lm_eval is not a dependency
    """lm-eval's tasks, with errors for users."""

    def load(self, task_list: Any) -> Any:
        try:
            loaded = super().load(task_list)
        except ImportError as error:
            raise UsageError(
                f"{task_list[0]} needs {error.name or error}", pip_install(error.name or "PACKAGE")
            ) from error
        except (OSError, ValueError, KeyError) as error:  # of the network, its data, or a file of the user's
            names = ", ".join(map(str, task_list))
            if CODE_METRIC in str(error):  # which such tasks load on import
                raise runs_code(names) from error
            raise CerebrumError(
                f"cannot load {names}: {(str(error) or type(error).__name__).splitlines()[0]}",
                "check the task and the network",
            ) from error
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise runs_code(name)
        return loaded


def runs_code(task: str) -> UsageError:
    return UsageError(f"{task} would run code that the model writes", "use cerebrum eval humaneval --run-code")


@contextmanager
def own_output(on_event: Callable[[Event], None]) -> Iterator[None]:
    """Discard the progress bars that lm-eval and its libraries print, and turn its warnings into notices."""
    logger, handler = logging.getLogger("lm_eval"), Notices(on_event)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    commit_hash = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: None  # it runs git, which prints an error outside of a repository
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        evaluator.get_git_commit_hash = commit_hash
        logger.removeHandler(handler)
        logger.propagate = propagate


class Notices(logging.Handler):
    """Turns logged warnings into notices, each once."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        super().__init__(logging.WARNING)
        self._on_event = on_event
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        if record.name != TASK_DEFINITIONS and message not in self._seen:
            self._seen.add(message)
            self._on_event(NoticeEvent(message, "a warning from lm-eval"))


def results_table(results: Mapping[str, Any]) -> str:
    return "\n".join(make_table(results, column) for column in ("results", "groups") if results.get(column))


def comparisons(results: Mapping[str, Any], preset: Preset) -> list[dict[str, Any]]:
    """Each figure of a preset's card, and each average, beside that of a run that has all its tasks."""
    figures = [
        (condition.task, figure.metric, [(condition.task, figure)], figure.value)
        for condition in preset.conditions
        for figure in condition.figures
    ]
    averages = [
        (average.name, "average", [(task, published(preset, task)[-1]) for task in average.tasks], average.value)
        for average in preset.averages  # of acc_norm, where there is one
    ]
    rows = (compare(results, *published_row) for published_row in (*figures, *averages))
    return [row for row in rows if row]


def compare(
    results: Mapping[str, Any], task: str, metric: str, figures: Sequence[tuple[str, Figure]], stated: float
) -> dict[str, Any] | None:
    """A published value beside the mean of the run's figures for these; None if one is missing.

    `z` is the difference in units of its standard error, after whole tasks only. The errors are those of two samples of
    questions. Here both are of the same questions, so most z are too small.
    """
    found = [(figure, results["results"].get(task, {})) for task, figure in figures]
    values = [own.get(f"{figure.metric},none") for figure, own in found]
    if None in values:
        return None
    errors = [own.get(f"{figure.metric}_stderr,none") for figure, own in found]
    sizes = [results["n-samples"][task] for task, _ in figures]
    count, is_whole = len(figures), all(size["effective"] == size["original"] for size in sizes)
    theirs = hypot(*(figure.error(size["original"]) for (_, figure), size in zip(figures, sizes, strict=True))) / count
    value = sum(values) / count
    error = (
        hypot(*errors) / count if all(isinstance(error, float) for error in errors) else None
    )  # "N/A" of one document
    z = None if error is None or not is_whole else (value - stated) / hypot(error, theirs)
    ours = {"value": value, "stderr": error, "published": stated, "published_stderr": theirs}
    return {"task": task, "metric": metric, **ours, "z": z}


def remarks(results: Mapping[str, Any], preset: Preset) -> list[str]:
    """Remarks on these tasks: details that the card of a preset does not state, other versions, and notes."""
    conditions = [condition for condition in preset.conditions if condition.task in results["results"]]
    if not conditions:
        return [f"{preset.source} has no results for these tasks"]
    unstated = dict.fromkeys(text for condition in conditions for text in condition.unstated)
    others = []
    for condition in conditions:
        if condition.version is None:
            continue
        version = str(results["versions"][condition.task])
        if version.removesuffix(".0") != str(condition.version):
            others.append(
                f"{condition.task} is version {version}, not {condition.version} as on the card: scores may differ"
            )
    notes = dict.fromkeys(condition.note for condition in conditions if condition.note)
    return [*(f"{preset.source} does not state {text}" for text in unstated), *others, *notes]
