"""Read the final answer of a reply, as the question wants it: a letter, yes or no, words, or whatever it comes to."""

from __future__ import annotations

from cerebrum_cli.answers.choices import chosen_letter
from cerebrum_cli.answers.expected import Expected, expected_answer
from cerebrum_cli.answers.extract import Answers, extract_answers, own_text
from cerebrum_cli.answers.plain_text import sentences
from cerebrum_cli.answers.yes_no import yes_or_no


def answers_to(question: str, text: str, is_complete: bool) -> Answers:
    """Find the final answer of a reply to a question, as `read_answers` does."""
    return read_answers(text, is_complete, expected_answer(question))


def read_answers(text: str, is_complete: bool, expected: Expected) -> Answers:
    """Find the final answer of a reply.

    To a question of yes or no it is "yes" or "no", and to one with choices a letter; without these, there is none.
    """
    own, is_complete = own_text(text, is_complete)
    if expected.kind == "choice":
        letter, is_stated = chosen_letter(own, expected.choices, is_complete)
        return letter, letter if is_stated else None
    answer, stated = extract_answers(own, is_complete, expected.kind == "words")
    if expected.kind != "yes or no":
        return answer, stated
    if not is_complete:  # the rest may answer other questions on the way to this one
        own = sentences(own.partition("\n")[0])[0]
    meant = yes_or_no(stated or "") or yes_or_no(own)
    return meant, meant
