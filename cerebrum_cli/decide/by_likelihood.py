"""Decide by how likely a reply is to begin with each choice, so that nothing is generated.

A prompt has the text, the question and a list of the choices. Models prefer some places of a list: the choices are
listed in several orders, and the logarithms of their probabilities are averaged. These prompts share all but their
lists, which is evaluated once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.decision import Decision
from cerebrum_cli.core.errors import CerebrumError, EndpointError, UsageError
from cerebrum_cli.core.events import Event, FinishEvent, OpeningEvent, RefusedEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.decide.choice_questions import ChoiceQuestion, Decided
from cerebrum_cli.decide.given_choices import GivenChoices
from cerebrum_cli.decide.prompts import question_text
from cerebrum_cli.decide.readings import BeginningReader, Owners, TextReader, TokenReader, average, log_shares
from cerebrum_cli.engine.engine import LogprobScores
from cerebrum_cli.engine.requests import Request, ScoreRequest

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model

ONE_ORDER, ORDERS = "one order", "averaged orders"
LIKELIEST = 20  # first tokens: the most that the OpenAI API and vLLM give
NO_LOGPROBS = EndpointError("the server sends no log probabilities", "use llama-server or vLLM, or --votes 8")
NOT_LIKELY = EndpointError(
    f"no choice is among the {LIKELIEST} likeliest first tokens of the reply", "use a model on this machine"
)


@frozen
class ListingPrompt:
    """One of the prompts of a question, and the beginnings of a reply that name a choice."""

    number: int
    request: Request
    owners: Owners


class Read(NamedTuple):
    """The number of a prompt, and the logarithms of the probabilities of its choices, or why there are none."""

    prompt: int
    shares: Sequence[float] | CerebrumError


def read_decisions(model: Model, questions: Sequence[ChoiceQuestion]) -> Iterator[Event | Decided]:
    """Decide questions together; yield each as soon as it is decided, and events in between."""
    require_direct_answers(model)
    prompts: list[ListingPrompt] = []
    readers: dict[GivenChoices, BeginningReader] = {}
    for number, question in enumerate(questions):
        reader = readers.setdefault(question.choices, reader_for(model, question.choices))
        try:
            prompts += prompts_of(model, number, question, reader)
        except CerebrumError as problem:
            yield Decided(number, problem)
    yield from model.take_notices()
    read = read_on_servers if model.is_remote else read_here
    yield from combined(questions, prompts, read(model, prompts))


def reader_for(model: Model, choices: GivenChoices) -> BeginningReader:
    if model.format.is_servers:
        return TextReader(choices)
    return TokenReader(choices, model.engine.vocabulary, first_only=model.is_remote)


def require_direct_answers(model: Model) -> None:
    """Raise UsageError for a model whose replies begin with reasoning, which cannot be turned off."""
    if model.format.is_servers or model.format.has_switch:
        return
    if model.controls.mode(model.source.settings, None).own:
        problem = "this model reasons before each answer, so no probability can be read from how its reply begins"
        raise UsageError(problem, "take votes: --votes 8")


def prompts_of(model: Model, number: int, question: ChoiceQuestion, reader: BeginningReader) -> Iterator[ListingPrompt]:
    """The prompts of a question. Raises PromptTooLong, FormatError and UsageError."""
    choices, conversation = question.choices, question.conversation
    settings = replace(model.source.settings, max_tokens=1)
    if model.format.has_switch or model.format.is_servers:
        settings = replace(settings, think="off")
    orders = choices.orders[:1] if question.is_fast else choices.orders
    for order in orders:
        text = question_text(conversation.question, choices, order)
        request = model.prepare_reply(Ask(conversation.with_question(text), settings))
        yield ListingPrompt(number, request, reader.owners(request.prompt_tokens))


def read_here(model: Model, prompts: Sequence[ListingPrompt]) -> Iterator[Event | Read]:
    """Evaluate the beginnings of replies that name a choice."""
    requests = [ScoreRequest(prompt.request.prompt_tokens, tuple(prompt.owners)) for prompt in prompts]
    with closing(model.engine.score(requests)) as events:
        for event in events:
            if isinstance(event, LogprobScores):
                owners = prompts[event.request].owners
                logprobs = [score.logprob_sum for score in event.scores]
                yield Read(event.request, log_shares(owners, dict(zip(owners, logprobs, strict=True))))
            elif isinstance(event, RefusedEvent):
                yield Read(event.sequence.request, event.error)
            else:
                yield event


def read_on_servers(model: Model, prompts: Sequence[ListingPrompt]) -> Iterator[Event | Read]:
    """Ask for the likeliest first tokens of replies; one that is not among them counts as very unlikely."""
    requests = (replace(prompt.request, likeliest=LIKELIEST) for prompt in prompts)
    found: set[int] = set()
    with closing(model.engine.complete(requests)) as events:
        for event in events:
            if isinstance(event, OpeningEvent):
                found.add(event.sequence.request)
                owners = prompts[event.sequence.request].owners
                known = {key: logprob for key, logprob in event.logprobs.items() if key in owners}
                yield Read(event.sequence.request, log_shares(owners, known) if known else NOT_LIKELY)
            elif isinstance(event, FinishEvent):
                if event.reason != "cancelled" and event.sequence.request not in found:
                    yield Read(event.sequence.request, NO_LOGPROBS)
            elif isinstance(event, RefusedEvent):
                yield Read(event.sequence.request, event.error)
            else:
                yield event


def combined(
    questions: Sequence[ChoiceQuestion], prompts: Sequence[ListingPrompt], events: Iterator[Event | Read]
) -> Iterator[Event | Decided]:
    """Decide each question whose prompts are all read."""
    left = Counter(prompt.number for prompt in prompts)
    shares: dict[int, list[Sequence[float]]] = defaultdict(list)
    for event in events:
        if not isinstance(event, Read):
            yield event
            continue
        number = prompts[event.prompt].number
        if isinstance(event.shares, CerebrumError):
            if left.pop(number, 0):  # its other prompts do not matter any more
                yield Decided(number, event.shares)
            continue
        shares[number].append(event.shares)
        if len(shares[number]) == left[number]:
            yield Decided(number, decision(questions[number], shares.pop(number)))


def decision(question: ChoiceQuestion, shares: Sequence[Sequence[float]]) -> Decision:
    choices = question.choices
    method = ORDERS if len(shares) > 1 else ONE_ORDER
    return Decision(choices.names, tuple(average(shares)), method, choices.is_score)
