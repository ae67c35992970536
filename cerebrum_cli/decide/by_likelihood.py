"""Decide by how likely a reply is to begin with each choice, so that nothing is generated.

A prompt has the text, and the question with a list of the choices. Models prefer some places of a list: the choices
are listed in several orders, and the logarithms of their probabilities are averaged. These prompts share all but their
lists, which is evaluated once. Only yes or no is asked in one order, in the words that people use, and on both sides
of the text: which side is better differs by model and question, and their average is about as good as the better one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from math import fsum
from typing import TYPE_CHECKING, Any, NamedTuple

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, EndpointError, EngineError, Interrupted, UsageError
from cerebrum_cli.core.events import Event, FinishEvent, OpeningEvent, PromptEvent, RefusedEvent, TokenEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.settings import SAMPLING_KEYS, Settings
from cerebrum_cli.core.text import Texts
from cerebrum_cli.decide.choice_questions import Asked, ChoiceQuestion, DecisionEvent
from cerebrum_cli.decide.given_choices import VOTES, GivenChoices
from cerebrum_cli.decide.readings import (
    Beginnings,
    average,
    first_texts_of,
    first_tokens_of,
    log_shares,
    sequences_of,
    share_named,
    spellings,
    token_spellings,
    unlisted,
)
from cerebrum_cli.engine.loglikelihood import LogprobScores, ScoreRequest
from cerebrum_cli.engine.requests import Request

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model

TOGETHER = 300  # questions whose prompts are evaluated together, their common beginning once
REASONS = "this model reasons before each answer, so no probability can be read from how its reply begins"
UNUSED = (*SAMPLING_KEYS, "think", "loop_check")  # settings of replies that are generated
LIKELIEST = 20  # first tokens: the most that the OpenAI API and vLLM give
NOT_LIKELY = f"no choice is among the {LIKELIEST} likeliest first tokens of the reply"
NOT_CLEAR = "several choices begin with the same likely token"


@frozen
class ListingPrompt:
    """One of the prompts of a question, and the beginnings of a reply that name a choice."""

    number: int
    question: ChoiceQuestion
    request: Request
    beginnings: Beginnings


class Reading(NamedTuple):
    """The share of replies to a prompt that name a choice, and of these the logarithms of the share of each choice."""

    named: float
    shares: Sequence[float]


class Read(NamedTuple):
    """The number of a prompt, and its reading, or why there is none."""

    prompt: int
    reading: Reading | CerebrumError


FindBeginnings = Callable[[Texts, int | None], Beginnings]


def read_decisions(model: Model, asked: Iterable[Asked]) -> Generator[Event | DecisionEvent, None, None]:
    """Decide questions; yield each as soon as it is decided, and events in between. Raises UsageError, EngineError."""
    require_direct_answers(model)
    asked = iter(asked)
    find = cache(partial(find_beginnings, model))
    while not model.engine.cancel_scope.is_set() and (together := list(islice(asked, TOGETHER))):
        prompts: list[ListingPrompt] = []
        for number, (key, question) in enumerate(together):
            try:
                prompts += prompts_of(model, number, question, find)  # all or none
            except (EngineError, Interrupted):  # these concern all questions
                raise
            except CerebrumError as problem:
                yield DecisionEvent(key, problem)
        yield from model.take_notices()
        read = read_on_servers if model.is_remote else read_here
        yield from combined([key for key, _ in together], prompts, read(model, prompts))


def require_distinct(model: Model, choices: GivenChoices, by_letter: bool) -> None:
    """Raise UsageError or PromptTooLong for choices that no question can have."""
    prompts_of(model, 0, ChoiceQuestion(Conversation().user("?"), choices, by_letter), partial(find_beginnings, model))


def find_beginnings(model: Model, answers: Texts, last: int | None) -> Beginnings:
    """The beginnings of replies that give an answer, after the last token of a prompt."""
    if model.prompts.format.is_servers:
        return first_texts_of([spellings(answer) for answer in answers])
    spelled = [token_spellings(model.engine.vocabulary, answer, last) for answer in answers]
    return first_tokens_of(spelled) if model.is_remote else sequences_of(spelled)


def require_direct_answers(model: Model) -> None:
    """Raise UsageError for a model whose replies begin with reasoning, which cannot be turned off."""
    if model.prompts.format.expects_reasoning and not model.prompts.format.has_switch:
        raise UsageError(REASONS, f"take {VOTES}")


def prompts_of(model: Model, number: int, question: ChoiceQuestion, find: FindBeginnings) -> list[ListingPrompt]:
    """The prompts of a question; they list the choices after letters if their names cannot be told apart.

    Raises PromptTooLong, FormatError and UsageError.
    """
    choices = question.choices
    defaults = Settings(max_tokens=1)
    settings = replace(model.source.settings, **{key: getattr(defaults, key) for key in UNUSED})
    if model.prompts.format.has_switch or model.prompts.format.is_servers:
        settings = replace(settings, think="off")
    prompts = []
    for layout in question.layouts:
        request = model.prepare_reply(Ask(question.listed(layout, settings.system), settings))
        if request.rules and request.rules.opened:
            raise UsageError(REASONS, f"take {VOTES}")
        answers, tokens = question.answers(layout.order), request.prompt_tokens
        beginnings = find(answers, tokens[-1] if tokens else None)
        if unnamed := beginnings.unnamed(answers):
            if choices.may_have_letters and not question.by_letter:
                return prompts_of(model, number, replace(question, by_letter=True), find)
            problem = f"the beginning of a reply does not tell {unnamed!r} from another choice"
            raise UsageError(problem, choices.other_ways)
        prompts.append(ListingPrompt(number, question, request, beginnings))
    return prompts


def read_here(model: Model, prompts: Sequence[ListingPrompt]) -> Iterator[Event | Read]:
    """Evaluate the beginnings of replies that name a choice."""
    requests = [ScoreRequest(prompt.request.prompt_tokens, tuple(prompt.beginnings.owners)) for prompt in prompts]
    with closing(model.engine.score(requests)) as events:
        for event in events:
            if isinstance(event, LogprobScores):
                owners = prompts[event.request].beginnings.owners
                scores = [score.logprob_sum for score in event.scores]
                logprobs = dict(zip(owners, scores, strict=True))
                yield Read(event.request, Reading(share_named(owners, logprobs), log_shares(owners, logprobs)))
            elif isinstance(event, RefusedEvent):
                yield Read(event.sequence.request, event.error)
            else:
                yield event


def read_on_servers(model: Model, prompts: Sequence[ListingPrompt]) -> Iterator[Event | Read]:
    """Ask for the likeliest first tokens of replies; a choice that is not among them counts as likely as it can be.

    Raises EndpointError if no reply has any.
    """
    requests = (replace(prompt.request, likeliest=LIKELIEST) for prompt in prompts)
    found: set[int] = set()
    with closing(model.engine.complete(requests)) as events:
        for event in events:
            if isinstance(event, OpeningEvent):
                found.add(event.sequence.request)
                yield Read(event.sequence.request, read_opening(prompts[event.sequence.request], event))
            elif isinstance(event, FinishEvent):
                if event.reason != "cancelled" and event.sequence.request not in found:
                    problem = EndpointError("the server sends no log probabilities", f"use llama-server, or {VOTES}")
                    if not found:
                        raise problem
                    yield Read(event.sequence.request, problem)
            elif isinstance(event, RefusedEvent):
                yield Read(event.sequence.request, event.error)
            elif not isinstance(event, (PromptEvent, TokenEvent)):  # a token is no progress
                yield event


def read_opening(prompt: ListingPrompt, event: OpeningEvent) -> Reading | CerebrumError:
    """The reading by the likeliest first tokens, or why there is none."""
    beginnings, owners = prompt.beginnings, prompt.beginnings.owners
    listed = {key: logprob for key, logprob in event.logprobs.items() if key in owners}
    if not beginnings.is_clear(event.logprobs):
        return EndpointError(NOT_CLEAR, prompt.question.choices.other_ways)
    if not listed:
        return EndpointError(NOT_LIKELY, f"use a model on this machine, or {VOTES}")
    rest = unlisted(owners, event.logprobs)
    return Reading(share_named(owners, listed), log_shares(owners, listed | rest))


def combined(
    keys: Sequence[Any], prompts: Sequence[ListingPrompt], events: Iterator[Event | Read]
) -> Iterator[Event | DecisionEvent]:
    """Decide each question whose prompts are all read; `keys` are those of the questions by number."""
    left = Counter(prompt.number for prompt in prompts)
    readings: dict[int, dict[int, Reading]] = defaultdict(dict)
    for event in events:
        if not isinstance(event, Read):
            yield event
            continue
        number, question = prompts[event.prompt].number, prompts[event.prompt].question
        if isinstance(event.reading, CerebrumError):
            if left.pop(number, 0):  # its other prompts do not matter any more
                yield DecisionEvent(keys[number], event.reading)
            continue
        readings[number][event.prompt] = event.reading
        if len(readings[number]) == left[number]:
            in_order = [reading for _, reading in sorted(readings.pop(number).items())]
            yield DecisionEvent(keys[number], decision_of(question, in_order))


def decision_of(question: ChoiceQuestion, readings: Sequence[Reading]) -> Decision:
    """The decision by the readings of all prompts."""
    choices = question.choices
    probabilities = tuple(average([reading.shares for reading in readings]))
    named = fsum(reading.named for reading in readings) / len(readings)
    as_written = readings[0].shares
    first_word = choices.names[as_written.index(max(as_written))]
    return Decision(choices.names, probabilities, named, question.method, choices.is_score, first_word)
