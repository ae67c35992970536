"""The final answer of a reply to no question."""

from cerebrum_cli.answers.final import answers_to


def final_answer(text: str, is_complete: bool = True) -> str | None:
    return answers_to("", text, is_complete)[0]
