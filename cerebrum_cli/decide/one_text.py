"""Decide one text, and print the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerebrum_cli.attachments.prompt_sources import compose_prompt, pictures_of, read_files, read_piped
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.events import Events
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.decide.choice_questions import ChoiceQuestion, DecisionEvent, PlacedQuestion
from cerebrum_cli.decide.deciding import decide as decide_questions
from cerebrum_cli.decide.given_choices import YES_OR_NO

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.decision import Decision
    from cerebrum_cli.decide.decide_options import DecideOptions
    from cerebrum_cli.replies.interface import Model


def decide_text(app: App, question: str, options: DecideOptions) -> None:
    """Decide the text of files and standard input, or the question alone, and print the answer."""
    from cerebrum_cli.replies.interface import open_source
    from cerebrum_cli.terminal.sinks import ReplyDisplay

    choices = options.find_choices() or YES_OR_NO
    source = options.decision_source(app)
    conversation = read_conversation(app, question, options)
    asked = ChoiceQuestion(conversation, choices, options.letters, PlacedQuestion(question))
    found: list[DecisionEvent] = []
    if options.votes:
        source = source.for_rows(options.votes)
    with open_source(source) as model:
        display = ReplyDisplay(app.streams, options.yes, is_hidden=options.verbose)
        display.wait(deciding(model, asked, options.votes, found), model.model.name, model.cancel)
        name = model.served_name or model.model.label
    print_decision(app, found[0].result, name, options)


def read_conversation(app: App, question: str, options: DecideOptions) -> Conversation:
    """The text, and the question after it. Raises UsageError for an empty text."""
    streams = app.streams
    if not options.file and streams.piped is None:
        return Conversation().user(question)
    files = read_files(options.file, streams.note, options.offline)
    piped = read_piped(streams.piped) if streams.piped else ""
    pictures = pictures_of(files)
    texts = (piped, *(content for _, content in files if isinstance(content, str)))
    if not (pictures or any(text.strip() for text in texts)):
        raise UsageError("the text is empty", "pipe it in, or name a file with -f")
    text = compose_prompt(None, files, piped)
    return Conversation().user(f"{text}\n\n{question}", pictures)


def deciding(model: Model, question: ChoiceQuestion, votes: int | None, found: list[DecisionEvent]) -> Events:
    """Decide a question: yield the events, and add what is found."""
    for event in decide_questions(model, [(None, question)], votes):
        if isinstance(event, DecisionEvent):
            found.append(event)
        else:
            yield event


def print_decision(app: App, result: Decision | CerebrumError, model: str, options: DecideOptions) -> None:
    if isinstance(result, CerebrumError):
        raise result
    streams = app.streams
    if options.json:
        streams.answer(decision_object(result, model))
    elif options.quiet:
        streams.answer(f"{result.answer}\n")
    else:
        value = f"{result.probability:.2f}" if result.mean is None else f"({result.mean:.1f})"
        streams.answer(f"{result.answer}  {value}\n")


def decision_object(decision: Decision, model: str) -> JsonDict:
    """The object that `--json` prints: the answer and the probability of each choice."""
    object: JsonDict = {"answer": decision.answer, "probability": decision.probability}
    if decision.mean is not None:
        object["mean"] = decision.mean
    pairs = zip(decision.names, decision.probabilities, strict=True)
    choices = [{"name": name, "probability": probability} for name, probability in pairs]
    return object | {"choices": choices, "method": decision.method, "model": model}
