"""One question of an evaluation, with the answer that counts as correct."""

from __future__ import annotations

from dataclasses import dataclass

QuestionId = str | int


@dataclass(frozen=True, slots=True)
class Question:
    """A question; `index` is its place in the source, from 0, and `id` the source's own id or `index` + 1.

    `prompt` is what the model is asked. `gold` is the correct answer; with `choices`, its letter. For code it is the
    test that the program must pass, `stub` the beginning of that program, which the prompt shows, and `entry_point` the
    function that it begins. Questions of one `cluster`, such as those about one text, are not independent.
    """

    index: int
    id: QuestionId
    prompt: str
    gold: str
    choices: tuple[str, ...] = ()
    cluster: str | None = None
    stub: str = ""
    entry_point: str = ""
