"""A run whose answers another package has compared with labels: its file, its samples, and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.eval.evaluate import SAMPLE_ROWS, sample_key
from cerebrum_cli.eval.plot import require_image
from cerebrum_cli.eval.questions import QUESTIONS, SAMPLES, SKIPPED, QuestionId, Sample, sample_object
from cerebrum_cli.eval.rescoring import QUESTION_FILE
from cerebrum_cli.eval.scorers import SCORING_RULES, rules_of
from cerebrum_cli.eval.stored_runs import EXTENT, RunStore, provenance, require_run, require_run_file

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.results.rows import Results


@frozen
class RecordedRun:
    """Rows with one answer each, which counts as correct if it is equal to the row's label.

    `ids` identify the rows, `model` is the name that samples carry. Its report may have a `plot`.
    """

    path: Path
    fingerprint: JsonObject
    ids: Sequence[QuestionId]
    model: str
    plot: Path | None

    @classmethod
    def prepare(
        cls,
        app: App,
        output: Path | None,
        plot: Path | None,
        task: str,
        ids: Sequence[QuestionId],
        digest: str,
        source: ModelSource,
        made_by: JsonObject,
    ) -> RecordedRun:
        """The run at a path, or else the stored one of a task, whose rows have this digest. Raises UsageError."""
        if output:
            require_run_file(output)
        if plot:
            require_image(plot)
        fingerprint = {
            "task": task,
            QUESTION_FILE: digest,
            "match": "exact",
            SCORING_RULES: rules_of("exact"),
            **made_by,
            **provenance(source),
        }
        path, why_new = (output, "") if output else RunStore.of(app).path_for(fingerprint)
        if why_new:
            app.streams.note(NoticeEvent(why_new))
        if output is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        return cls(path, fingerprint, ids, source.model.label, plot)

    def open(self, restart: bool) -> Results:
        """The results, with the rows that earlier runs answered. Raises UsageError, BatchError."""
        from cerebrum_cli.results.results import open_results

        keys = (sample_key(id, 0) for id in self.ids)
        notes = {EXTENT: {QUESTIONS: len(self.ids), SAMPLES: 1}}
        return open_results(self.path, self.fingerprint, SAMPLE_ROWS, keys, restart, notes=notes)

    def object(self, position: int, label: str, answer: str, probabilities: Mapping[str, float]) -> JsonDict:
        """The object of an answered row."""
        return self._object(
            position,
            text=answer,
            answer=answer,
            reference=label,
            correct=answer == label,
            probability=probabilities[answer],
            finish_reason="stop",
            probabilities=probabilities,
        )

    def skipped(self, position: int, label: str, reason: str) -> JsonDict:
        """The object of a row that could not be asked, which does not count."""
        return self._object(position, text=reason, reference=label, finish_reason=SKIPPED)

    def _object(self, position: int, **values: Any) -> JsonDict:
        known = {
            "id": self.ids[position],
            "sample": 0,
            "model": self.model,
            "seed": 0,
            "reasoning": None,
            "answer": None,
            "correct": False,
            "probability": 0.0,
            "completion_tokens": 0,
        }
        return sample_object(Sample(**{**known, **values}))

    def samples(self) -> Sequence[Sample]:
        """All samples of the run."""
        return require_run(self.path).samples()

    def print(self, app: App, json: bool) -> None:
        """Print the report, or why there is none: no row counts."""
        from cerebrum_cli.eval.runs_command import print_run

        run = require_run(self.path)
        samples = run.samples()
        try:
            print_run(app, run, samples, json, self.plot)
        except UsageError as error:
            if not all(sample.is_skipped for sample in samples):
                raise
            app.streams.error(error)
