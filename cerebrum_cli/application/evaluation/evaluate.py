"""Answer the questions of an evaluation concurrently, and write each sample to the run as soon as it is marked."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import combinations

from cerebrum_cli.application.evaluation.marking import Mark, Marker
from cerebrum_cli.application.inference.reply import Reply, ReplyCollector
from cerebrum_cli.application.inference.responder import GenerationRequest, Responder, TokenizedRequest
from cerebrum_cli.batches.journal import Journal
from cerebrum_cli.batches.schema import ResultRows, Schema
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import CerebrumError, EngineError, Interrupted
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, RefusedEvent, RowCounts, TokenEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.commands import CancelScope
from cerebrum_cli.evals.question import Question
from cerebrum_cli.evals.sample import OPTIONAL_KEYS, REFUSED, SAMPLE_KEYS, Sample, parse_sample, sample_object
from cerebrum_cli.evals.score import RunningScore
from cerebrum_cli.evals.selection import sample_seed

SCHEMA = Schema(
    tuple(
        (*SAMPLE_KEYS, *optional)
        for count in range(len(OPTIONAL_KEYS) + 1)
        for optional in combinations(OPTIONAL_KEYS, count)
    ),
    ("id", "sample"),
    lambda object: RowCounts(failed=object["finish_reason"] == REFUSED),
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Questions in the order in which they are asked, and how each is answered `samples` times and marked.

    `model` is the name that samples carry. The settings' seed is the base of all seeds.
    """

    questions: tuple[Question, ...]
    samples: int
    settings: Settings
    model: str
    mark: Marker
    grammar: str | None = None

    @property
    def rows(self) -> ResultRows:
        """The rows of the run file: all samples of the first question, then those of the next."""
        identities = [(question.id, sample) for question in self.questions for sample in range(self.samples)]
        return ResultRows(SCHEMA, identities)

    def request(self, question: Question, sample: int, count: int) -> GenerationRequest:
        """The request for some samples of a question, the first of which is `sample`."""
        seed = sample_seed(self.settings.seed or 0, question.index, sample)
        conversation = Conversation(system_prompt=self.settings.system).user(question.prompt)
        return GenerationRequest(
            conversation, replace(self.settings, seed=seed), self.grammar, n=count, max_n=count, logprobs=True
        )


@dataclass(slots=True)
class PendingQuestion:
    """Some samples of a question that are missing, from `first` on; `position` is the question's."""

    question: Question
    position: int
    first: int
    request: TokenizedRequest
    collectors: dict[int, ReplyCollector]

    def add_event(self, event: TokenEvent | FinishEvent) -> Reply | None:
        """Process an event of a sample; return its reply when it is complete."""
        collector = self.collectors.setdefault(event.sequence.sample, ReplyCollector())
        collector.emit(event)
        reply = collector.reply
        if reply:
            del self.collectors[event.sequence.sample]
        return reply if reply and reply.finish.reason != "cancelled" else None


def evaluate(responder: Responder, evaluation: Evaluation, run: Journal) -> Generator[Event, None, None]:
    """Take the missing samples; yield all events, and a ScoreEvent whenever a question is finished.

    A question whose prompt cannot be answered, such as one that is too long, gets samples marked as refused, which do
    not count. The caller completes the run; after a cancel, samples are missing.
    """
    scope = responder.cancel_scope()
    yield from responder.load()
    score = RunningScore(len(evaluation.questions), evaluation.samples)
    for object in run.objects():
        score.add(parse_sample(object))
    yield score.event
    pending: list[PendingQuestion] = []
    for position, first, count in missing_samples(evaluation, run.finished):
        if scope.is_cancelled:
            return
        question = evaluation.questions[position]
        try:
            request = compact(responder.tokenize_request(evaluation.request(question, first, count)))
        except (EngineError, Interrupted):  # these concern the whole run
            raise
        except CerebrumError as error:
            yield from _refuse(evaluation, run, score, position, range(first, first + count), error)
        else:
            pending.append(PendingQuestion(question, position, first, request, {}))
    for group in responder.group_by_length(each.request for each in pending):
        yield from _generate(responder, scope, evaluation, [pending[index] for index in group], run, score)
        if scope.is_cancelled:
            return


def missing_samples(evaluation: Evaluation, finished: Collection[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the missing samples: a question's position, the first sample, and how many follow it without a gap."""
    for position in range(len(evaluation.questions)):
        first = None
        for sample in range(evaluation.samples + 1):
            is_missing = sample < evaluation.samples and position * evaluation.samples + sample not in finished
            if is_missing and first is None:
                first = sample
            elif not is_missing and first is not None:
                yield position, first, sample - first
                first = None


def compact(tokenized: TokenizedRequest) -> TokenizedRequest:
    """The request with its prompt in 4 bytes a token."""
    request = replace(tokenized.request, prompt_tokens=array("i", tokenized.request.prompt_tokens))
    return replace(tokenized, request=request)


def _generate(
    responder: Responder,
    scope: CancelScope,
    evaluation: Evaluation,
    pending: Sequence[PendingQuestion],
    run: Journal,
    score: RunningScore,
) -> Iterator[Event]:
    with closing(responder.generate((each.request for each in pending), scope)) as replies:
        for event in replies:
            yield event
            if not isinstance(event, (TokenEvent, FinishEvent, RefusedEvent)):
                continue
            each = pending[event.sequence.request]
            sample = each.first + event.sequence.sample
            if isinstance(event, RefusedEvent):
                yield from _refuse(evaluation, run, score, each.position, (sample,), event.error)
            elif reply := each.add_event(event):
                mark = evaluation.mark(reply.text, each.question, reply.finish.reason == "stop")
                _write(evaluation, run, score, each.position, marked_sample(evaluation, each.question, sample, reply, mark))
                yield score.event


def _refuse(
    evaluation: Evaluation, run: Journal, score: RunningScore, position: int, samples: Iterable[int], error: CerebrumError
) -> Iterator[Event]:
    """Write samples that do not count, with the reason as their text."""
    question = evaluation.questions[position]
    for sample in samples:
        seed = sample_seed(evaluation.settings.seed or 0, question.index, sample)
        refused = Sample(
            question.id, sample, evaluation.model, seed, error.message, None, None, question.gold, False, 0.0, REFUSED, 0,
            question.choices, question.cluster,
        )  # fmt: skip
        _write(evaluation, run, score, position, refused)
    yield NoticeEvent(f"question {question.id} is not counted: {error.message}", error.hint)
    yield score.event


def marked_sample(evaluation: Evaluation, question: Question, sample: int, reply: Reply, mark: Mark) -> Sample:
    return Sample(
        id=question.id,
        sample=sample,
        model=evaluation.model,
        seed=reply.finish.seed,
        text=reply.text,
        reasoning=reply.reasoning,
        answer=mark.answer,
        gold=question.gold,
        correct=mark.correct,
        probability=reply.probability,
        finish_reason=reply.finish.reason,
        completion_tokens=reply.finish.completion_tokens,
        choices=question.choices,
        cluster=question.cluster,
    )


def _write(evaluation: Evaluation, run: Journal, score: RunningScore, position: int, sample: Sample) -> None:
    run.write(position * evaluation.samples + sample.sample, sample_object(sample))
    score.add(sample)
