"""Tasks of lm-evaluation-harness on a model, and its results beside published ones."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from math import hypot
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.events import Emit, NoticeEvent, StageEvent
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import did_you_mean, one_line, pip_install
from cerebrum_cli.eval.lm_eval.model import CerebrumLM
from cerebrum_cli.eval.presets import Preset

evaluator.get_git_commit_hash = lambda: None  # it runs git, which prints an error outside of a repository

TASK_DEFINITIONS = "lm_eval.api.task"  # the logger of warnings about what a task's file leaves to defaults


def evaluate_tasks(model: CerebrumLM, tasks: Sequence[str], include_path: Path | None, **arguments: Any) -> JsonDict:
    """Run tasks, groups or tags by their names, which may have wildcards, and return lm-eval's results.

    The arguments are those of its `simple_evaluate`. Raises UsageError for unknown tasks, CerebrumError for data that
    cannot be loaded.
    """
    with own_output(model.on_event):
        model.on_event(StageEvent("loading tasks", 0, 1))
        manager, names = find_tasks(tasks, include_path)
        results = evaluator.simple_evaluate(model=model, tasks=names, task_manager=manager, **arguments)
    results["config"]["model_args"] = f"model={results['config']['model_name']}"
    text = json.dumps(results, default=handle_non_serializable, ensure_ascii=False)  # functions become text
    plain: JsonDict = json.loads(re.sub(rf'(?<!\\)"{re.escape(str(Path.home()))}/', '"~/', text))
    return plain


def find_tasks(tasks: Sequence[str], include_path: Path | None) -> tuple[TaskManager, list[str]]:
    """Look up tasks in a directory alone, if it has them all: lm-eval's own take seconds to read. Raises UsageError."""
    manager = Tasks(include_path=include_path, include_defaults=include_path is None)
    if include_path and not all(manager.match_tasks([task]) for task in tasks):
        manager = Tasks(include_path=include_path)
    found = []
    for task in tasks:
        names = manager.match_tasks([task])
        if not names:
            hint = did_you_mean(task, manager.all_tasks, 3) + "list all with lm_eval ls tasks"
            raise UsageError(f"lm-eval has no task {task!r}", hint)
        found += names
    return manager, list(dict.fromkeys(found))


class Tasks(TaskManager):  # type: ignore[misc]  # lm_eval is not a dependency
    def load(self, task_list: Any) -> Any:
        try:
            loaded = super().load(task_list)
        except ImportError as error:
            hint = pip_install(error.name or "PACKAGE")
            raise UsageError(f"{task_list[0]} needs {error.name or error}", hint) from error
        except (OSError, ValueError, KeyError) as error:  # of the network, its data, or a file of the user's
            reason = (str(error) or type(error).__name__).splitlines()[0]
            names = ", ".join(map(str, task_list))
            raise CerebrumError(f"cannot load {names}: {reason}", "check the task and the network") from error
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise UsageError(
                    f"{name} would run code that the model writes", "use cerebrum eval humaneval --run-code"
                )
        return loaded


@contextmanager
def own_output(on_event: Emit) -> Iterator[None]:
    """Discard the progress bars that lm-eval and its libraries print, and turn its warnings into notices, each once."""
    seen = set()

    def report(record: logging.LogRecord) -> bool:
        message = one_line(record.getMessage())
        if record.name != TASK_DEFINITIONS and message not in seen:
            seen.add(message)
            on_event(NoticeEvent(message, "a warning from lm-eval"))
        return False

    logger, handler = logging.getLogger("lm_eval"), logging.Handler(logging.WARNING)
    handler.addFilter(report)
    logger.addHandler(handler)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logger.removeHandler(handler)


def results_table(results: JsonObject) -> str:
    return "\n".join(make_table(results, column) for column in ("results", "groups") if results.get(column))


def comparisons(results: JsonObject, preset: Preset) -> list[JsonDict]:
    """Each figure of a preset's card beside that of a run, and each average beside that of a run with all its tasks.

    `z` is the difference in units of its standard error, after whole tasks only. The errors are those of two samples of
    questions. Here both are of the same questions, so most z are too small.
    """
    rows = {}
    for condition in preset.conditions:
        task = condition.task
        own = results["results"].get(task, {})
        for metric, published in condition.figures.items():
            if own.get(f"{metric},none") is None:
                continue
            size = results["n-samples"][task]
            error = own.get(f"{metric}_stderr,none")
            row = {
                "task": task,
                "metric": metric,
                "value": own[f"{metric},none"],
                "stderr": error if isinstance(error, float) else None,  # "N/A" of one document
                "published": published,
                "published_stderr": condition.error(metric, size["original"]),
            }
            rows[task, metric] = _with_z(row, size["effective"] == size["original"])
    found = list(rows.values())
    for name, (conditions, published) in preset.averages.items():
        keys = [(condition.task, [*condition.figures][-1]) for condition in conditions]
        if rows.keys() >= {*keys}:
            found.append(_average(name, [rows[key] for key in keys], published))
    return found


def _average(name: str, parts: Sequence[JsonObject], published: float) -> JsonDict:
    """The unweighted mean of figures of different tasks, whose errors are independent."""
    errors = [part["stderr"] for part in parts]
    row = {
        "task": name,
        "metric": "average",
        "value": sum(part["value"] for part in parts) / len(parts),
        "stderr": None if None in errors else hypot(*errors) / len(parts),
        "published": published,
        "published_stderr": hypot(*(part["published_stderr"] for part in parts)) / len(parts),
    }
    return _with_z(row, all(part["z"] is not None for part in parts))


def _with_z(row: JsonObject, is_whole: bool) -> JsonDict:
    z = None
    if is_whole and row["stderr"] is not None:
        z = (row["value"] - row["published"]) / hypot(row["stderr"], row["published_stderr"])
    return {**row, "z": z}


def remarks(results: JsonObject, preset: Preset) -> list[str]:
    conditions = [condition for condition in preset.conditions if condition.task in results["results"]]
    if not conditions:
        return [f"{preset.source} has no results for these tasks"]
    lines = []
    for condition in conditions:
        lines += [f"{preset.source} does not state {text}" for text in condition.unstated]
    lines += [condition.note for condition in conditions if condition.note]
    return list(dict.fromkeys(lines))
