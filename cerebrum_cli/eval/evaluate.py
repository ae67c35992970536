"""Answer the questions of an evaluation concurrently, and write each sample to the run as soon as it is scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import inf
from typing import Any, cast

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.events import Event, NoticeEvent, Origin
from cerebrum_cli.core.row_events import SHOWN_ERRORS, EvalProgress, RowCounts
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.eval.questions import (
    OPTIONAL_KEYS,
    SAMPLE_KEYS,
    SKIPPED,
    Question,
    Sample,
    parse_sample,
    sample_object,
    sample_seed,
)
from cerebrum_cli.eval.report import RunningScore
from cerebrum_cli.eval.scorers import Match, ReplyScorer, SearchTimeout, code_scorer, reply_scorer
from cerebrum_cli.model.concurrent_rows import RefusedRow, Row, RowOutcome, run_rows
from cerebrum_cli.model.loaded_model import LoadedModel
from cerebrum_cli.model.reply import Reply, ReplyRequest
from cerebrum_cli.runs.result import FINISHED, FinishedRows, Result, ResultRows, Schema

POLL_S = 0.2  # a signal does not end a wait
GRACE_S = 2.0  # after a signal, for programs that are running

SCHEMA = Schema(
    SAMPLE_KEYS,
    OPTIONAL_KEYS,
    ("id", "sample"),
    lambda object: RowCounts(failed=object["finish_reason"] == SKIPPED),
    lambda object: f"question {object['id']}",
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Questions in the order in which they are asked, and how each is answered `samples` times and scored.

    `model` is the name that samples carry. The settings' seed is the base of all seeds.
    """

    questions: tuple[Question, ...]
    samples: int
    settings: Settings
    model: str
    scorer: ReplyScorer
    grammar: str | None = None

    @property
    def rows(self) -> ResultRows:
        """The rows of the run file: all samples of the first question, then those of the next."""
        questions, samples = self.questions, self.samples

        def fields(position: int) -> dict[str, Any]:
            return {"id": questions[position // samples].id, "sample": position % samples}

        return ResultRows(SCHEMA, len(questions) * samples, fields)

    def seed(self, question: Question, sample: int) -> int:
        """The seed of a sample, the same for every model; that of the next sample follows it."""
        return sample_seed(self.settings.seed or 0, question.index, sample)

    def request(self, position: int, sample: int, count: int) -> ReplyRequest:
        """The request for some samples of the question at a position, the first of which is `sample`."""
        question = self.questions[position]
        settings = replace(self.settings, seed=self.seed(question, sample))
        conversation = Conversation(system_prompt=settings.system).user(question.prompt)
        return ReplyRequest(conversation, settings, self.grammar, n=count, max_n=count, logprobs=True)

    def block_answerer(self, match: Match) -> Callable[..., Iterator[Event]]:
        """What takes the samples of a block on a node, and scores them there; it can be pickled."""
        return partial(evaluate_block, replace(self, scorer=cast("ReplyScorer", None)), match)


class SampleWriter:
    """Writes replies to the run as soon as they are scored, and keeps its score."""

    def __init__(self, evaluation: Evaluation, run: Result) -> None:
        self._evaluation = evaluation
        self._run = run
        self._notices = 0
        self._score = RunningScore(len(evaluation.questions), evaluation.samples)
        for object in run.objects():
            self._score.add(parse_sample(object))

    @property
    def progress(self) -> EvalProgress:
        return self._score.event

    def score(self, position: int, sample: int, reply: Reply) -> None:
        """Begin to score a sample of the question at a position."""
        question, is_complete = self._evaluation.questions[position], reply.finish.reason == "stop"
        self._evaluation.scorer.add((position, sample, reply), question, reply.text, is_complete)

    def write_last(self, scope: CancelScope) -> Iterator[Event]:
        """Write all samples that are being scored; after a cancel, those that are scored soon. Yield the progress."""
        yield from self.write_scored()
        end = inf
        while self._evaluation.scorer.is_running and time.monotonic() < end:
            end = min(end, time.monotonic() + GRACE_S) if scope.is_cancelled else inf
            yield from self.write_scored(POLL_S)

    def write_scored(self, wait_s: float = 0.0) -> Iterator[Event]:
        """Write the samples that are scored by now, or within a time; yield the progress."""
        while scores := self._evaluation.scorer.scores(wait_s):
            for (position, sample, reply), score in scores:
                self._write(
                    position,
                    sample,
                    seed=reply.finish.seed,
                    text=reply.text,
                    reasoning=reply.reasoning,
                    answer=score.answer,
                    correct=score.correct,
                    probability=reply.probability,
                    finish_reason=reply.finish.reason,
                    completion_tokens=reply.finish.completion_tokens,
                    thought_closed_at=reply.thought_closed_at,
                    lowest_window=reply.lowest_window,
                    **(reply.finish.origin.keys if reply.finish.origin else {}),
                )
                yield self.progress

    def skip(
        self, position: int, samples: Iterable[int], error: CerebrumError, origin: Origin | None = None
    ) -> Iterator[Event]:
        """Write samples that do not count, with the reason as their text; yield the first notices, and the progress."""
        for sample in samples:
            self._write(position, sample, text=error.message, **(origin.keys if origin else {}))
        self._notices += 1
        if self._notices <= SHOWN_ERRORS:
            id = self._evaluation.questions[position].id
            yield NoticeEvent(f"question {id} skipped: {error.message}", error.hint)
        yield self.progress

    def _write(self, position: int, sample: int, **taken: Any) -> None:
        """Write a sample; one that was not `taken` is skipped."""
        evaluation, question = self._evaluation, self._evaluation.questions[position]
        skipped = Sample(
            id=question.id,
            sample=sample,
            model=evaluation.model,
            seed=evaluation.seed(question, sample),
            text="",
            reasoning=None,
            answer=None,
            gold=question.reference,
            correct=False,
            probability=0.0,
            finish_reason=SKIPPED,
            completion_tokens=0,
            choices=question.choices,
            cluster=question.cluster,
        )
        written = replace(skipped, **taken)
        self._run.write(position * evaluation.samples + sample, sample_object(written))
        self._score.add(written)


def evaluate(model: LoadedModel, evaluation: Evaluation, run: Result) -> Generator[Event, None, None]:
    """Take the missing samples; yield all events, and an EvalProgress whenever a sample is finished.

    A question whose prompt cannot be answered, such as one that is too long, gets samples marked as skipped, which do
    not count. The caller completes the run; after a cancel, samples are missing.
    """
    scope = model.engine.cancel_scope()
    yield from model.load()
    model.check_settings(evaluation.settings)
    writer = SampleWriter(evaluation, run)
    yield writer.progress
    rows = [
        Row((position, first), evaluation.request(position, first, count))
        for position, first, count in missing_samples(evaluation, run.finished)
    ]
    with closing(evaluation.scorer):
        for event in run_rows(model, rows, scope, sorts=False):  # the score so far is that of a random sample
            if isinstance(event, RowOutcome):
                yield from _take(event, writer)
            else:
                yield event
            yield from writer.write_scored()
        yield from writer.write_last(scope)


def _take(event: RowOutcome, writer: SampleWriter) -> Iterator[Event]:
    """Begin to score a reply, or write what is skipped: a sample, or all of a question that cannot be asked."""
    (position, first), outcome = event.row.id, event.outcome
    sample = first + event.sample
    if isinstance(outcome, RefusedRow):
        request = event.row.request
        count = request.n if event.is_whole_row and isinstance(request, ReplyRequest) else 1
        yield from writer.skip(position, range(sample, sample + count), outcome.error, outcome.origin)
    elif isinstance(outcome, Reply) and outcome.finish_reason != "cancelled":
        try:
            writer.score(position, sample, outcome)
        except SearchTimeout as error:
            yield from writer.skip(position, [sample], error)


def missing_samples(evaluation: Evaluation, finished: Collection[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the missing samples: a question's position, the first sample, and how many follow it without a gap."""
    for position in range(len(evaluation.questions)):
        start = position * evaluation.samples
        missing = [sample for sample in range(evaluation.samples) if start + sample not in finished]
        for _, neighbors in groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0]):
            samples = [sample for _, sample in neighbors]
            yield position, samples[0], len(samples)


def evaluate_block(
    evaluation: Evaluation, match: Match, model: LoadedModel, block: Mapping[int, Any], result: Result
) -> Iterator[Event]:
    """Take the samples of some rows, into a result in memory."""
    scorer = code_scorer(True) if match == "code" else reply_scorer(match, evaluation.questions)
    result.finished = FinishedRows(len(evaluation.rows), FINISHED)
    for position in block:
        result.finished[position] = 0
    return evaluate(model, replace(evaluation, scorer=scorer), result)
