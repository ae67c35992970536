"""What a model is asked: the text, the question, and the choices in some order; and how its reply may begin."""

from __future__ import annotations

from cerebrum_cli.core.text import Texts
from cerebrum_cli.decide.given_choices import GivenChoices, Order


def question_text(question: str, choices: GivenChoices, order: Order) -> str:
    """The question with its choices, listed in an order."""
    if choices.is_score:
        least, largest = choices.names[0], choices.names[-1]
        return f"{question}\n\nAnswer with a whole number from {least} to {largest}."
    listed = [choices.items[position] for position in order]
    if not any(choice.description or ";" in choice.name for choice in listed):
        return f"{question}\n\nAnswer with one of these: {'; '.join(choice.name for choice in listed)}."
    lines = [f"{question}\n", "Answer with the name of one of these:"]
    for choice in listed:
        meaning = f": {choice.description}" if choice.description else ""
        lines.append(f"- {choice.name}{meaning}")
    return "\n".join(lines)


def spellings(text: str) -> Texts:
    """How a reply may begin with a text: also with a space or a capital letter before the rest of it."""
    capitalized = text[:1].upper() + text[1:]
    return tuple(dict.fromkeys((text, f" {text}", capitalized, f" {capitalized}")))
