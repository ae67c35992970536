"""Answer the questions of an evaluation concurrently, and write each sample to the run as soon as it is scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import Events, NoticeEvent, Origin, RefusedEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.json_types import JsonObject, to_json
from cerebrum_cli.core.row_events import SHOWN_ERRORS
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.eval.questions import (
    QUESTIONS,
    SAMPLES,
    SKIPPED,
    Match,
    Question,
    QuestionId,
    Questions,
    Sample,
    parse_sample,
    sample_object,
    sample_seed,
)
from cerebrum_cli.eval.running_score import RunningScore
from cerebrum_cli.eval.scorers import ReplyScorer, reply_scorer
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.majority_vote import Outcome, Row
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.results.rows import Digest, Results, RowFlag, RowKind, digest_of

POLL_S = 0.2  # a signal does not end a wait


def sample_flags(object: JsonObject) -> int:
    if object["finish_reason"] == SKIPPED:
        return RowFlag.FINISHED | RowFlag.FAILED
    return RowFlag.FINISHED


SAMPLE_ROWS = RowKind(sample_flags, lambda object: f"question {object['id']}")


def sample_key(id: QuestionId, sample: int) -> tuple[Digest, int]:
    """What identifies a sample in the results: its digest, and no number."""
    return digest_of(to_json([id, sample]).encode()), 0


@frozen
class Evaluation:
    """Questions in the order in which they are asked, and how each is answered `samples` times and scored.

    `model` is the name that samples carry. The settings' seed is the base of all seeds. The `examples` precede each
    question, as turns of one conversation, or, if `is_raw`, as paragraphs of its text. If it `checks`, a program
    follows each sample.
    """

    questions: Questions
    samples: int
    settings: Settings
    model: str
    match: Match
    grammar: Grammar | None
    examples: Questions
    checks: bool
    is_raw: bool
    tools: Tools = ()

    def conversation(self, question: Question) -> Conversation:
        conversation = Conversation(system_prompt=self.settings.system)
        if self.is_raw:
            shots = [f"{example.prompt} {example.solution or example.reference}\n\n" for example in self.examples]
            return conversation.user("".join([*shots, question.prompt]))
        for example in self.examples:
            conversation = conversation.user(example.prompt).assistant(example.solution or example.reference)
        return conversation.user(question.prompt)

    def ask(self, question: Question, settings: Settings, n: int = 1) -> Ask:
        return Ask(self.conversation(question), settings, self.grammar, n=n, logprobs=True, tools=self.tools)

    @property
    def keys(self) -> Iterator[tuple[Digest, int]]:
        """The keys of the run's rows: all samples of the first question, then those of the next."""
        for question in self.questions:
            for sample in range(self.samples):
                yield sample_key(question.id, sample)

    @property
    def extent(self) -> dict[str, int]:
        return {QUESTIONS: len(self.questions), SAMPLES: self.samples}

    def seed(self, question: Question, sample: int) -> int:
        """The seed of a sample, the same for every model; that of the next sample follows it."""
        return sample_seed(self.settings.seed or 0, question.index, sample)

    def rows_to_ask(self, missing: Iterable[int]) -> Iterator[Row]:
        """The rows to ask for missing samples, each by a question's position and the first of samples without a gap."""
        for position, of_question in groupby(missing, lambda sample: sample // self.samples):
            question = self.questions[position]
            for first, count in neighbors([sample % self.samples for sample in of_question]):
                settings = replace(self.settings, seed=self.seed(question, first))
                yield Row((position, first), self.ask(question, settings, count), checks=self.checks)


def neighbors(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the count of numbers without a gap."""
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        found = [number for _, number in group]
        yield found[0], len(found)


class SampleWriter:
    """Writes replies to the run as soon as they are scored, and keeps its score."""

    def __init__(self, evaluation: Evaluation, run: Results, scorer: ReplyScorer) -> None:
        self._evaluation = evaluation
        self._run = run
        self._scorer = scorer
        self._notices = 0
        self.score = RunningScore(len(evaluation.questions), evaluation.samples)
        for object in run.objects():
            self.score.add(parse_sample(object))

    def take(self, event: Outcome) -> Events:
        """Begin to score a reply, or write what is skipped: a sample, or all of a question that cannot be asked.

        The samples have the reason as their text. Yield the first notices, and the progress.
        """
        position, first = event.row.key
        outcome = event.result
        question = self._evaluation.questions[position]
        sample = first + event.sample
        if isinstance(outcome, Reply) and outcome.finish_reason != "cancelled":
            self._scorer.add((position, sample, outcome), question, outcome.text, outcome.finish.reason == "stop")
        if not isinstance(outcome, RefusedEvent):
            return
        count = 1
        if event.is_whole_row and isinstance(event.row.request, Ask):
            count = event.row.request.n
        error = outcome.error
        for skipped in range(sample, sample + count):
            self._write(position, skipped, outcome.origin, text=error.message)
        self._notices += 1
        if self._notices <= SHOWN_ERRORS:
            yield NoticeEvent(f"question {question.id} skipped: {error.message}", error.hint)
        yield self.score.event

    def write_scored(self, wait_s: float = 0.0) -> Events:
        while scores := self._scorer.scores(wait_s):
            for (position, sample, reply), score in scores:
                self._write(
                    position,
                    sample,
                    reply.finish.origin,
                    seed=reply.finish.seed,
                    text=reply.text,
                    reasoning=reply.reasoning,
                    **score._asdict(),
                    probability=reply.probability,
                    finish_reason=reply.finish.reason,
                    completion_tokens=reply.finish.completion_tokens,
                    reasoning_closed_at=reply.reasoning_closed_at,
                    lowest_window=reply.lowest_window,
                    calls=[asdict(call) for call in reply.calls],
                    **reply.program_object,
                )
                yield self.score.event

    def _write(self, position: int, sample: int, origin: Origin | None, **taken: Any) -> None:
        evaluation = self._evaluation
        question = evaluation.questions[position]
        if origin:
            taken |= origin.keys
        skipped = Sample(
            id=question.id,
            sample=sample,
            model=evaluation.model,
            seed=evaluation.seed(question, sample),
            text="",
            reasoning=None,
            answer=None,
            reference=question.reference,
            correct=False,
            probability=0.0,
            finish_reason=SKIPPED,
            completion_tokens=0,
            choices=question.choices,
            cluster=question.cluster,
        )
        written = replace(skipped, **taken)
        self._run.write_row(position * evaluation.samples + sample, sample_object(written))
        self.score.add(written)


def missing_samples(results: Results) -> Iterator[tuple[int, None]]:
    """Yield the positions of samples that results lack, as rows that need nothing else."""
    for position in results.missing:
        yield position, None


def evaluate(evaluation: Evaluation, model: Model, missing: Iterable[tuple[int, None]], results: Results) -> Events:
    """Take the samples at positions; yield all events, and an EvalProgress for each sample.

    A question whose prompt cannot be answered, such as one that is too long, gets samples marked as skipped, which do
    not count. The caller completes the run; after a cancel, samples are missing.
    """
    scope = model.engine.cancel_scope
    yield from model.load()
    model.check_settings(evaluation.settings)
    rows = list(evaluation.rows_to_ask(position for position, _ in missing))
    with closing(reply_scorer(evaluation.match, evaluation.questions)) as scorer:
        writer = SampleWriter(evaluation, results, scorer)
        yield writer.score.event
        for event in model.run_rows(rows, scope, sorts=False):  # the score so far is that of a random sample
            if isinstance(event, Outcome):
                results.note_origin(model)
                yield from writer.take(event)
            else:
                results.sync()
                yield event
            yield from writer.write_scored()
        while scorer.is_running and not scope.is_set():
            yield from writer.write_scored(POLL_S)
