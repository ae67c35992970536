"""The tasks that can be evaluated by name: a table of datasets on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cerebrum_cli.eval.reading import BadRow, Fields, Row

Scorer = Literal["answer", "choice", "code"]
Convert = Callable[[Mapping[str, Any]], Mapping[str, Any]]

CODE_PROMPT = "Complete this Python function. Reply with the whole function in one code block.\n\n```python\n{}\n```"


@dataclass(frozen=True, slots=True)
class Task:
    """A task; `file` is the pattern of its file's name in the repository, `published` how the cards report it.

    `note` is printed with every result. `convert` adds the fields that `fields` names; KeyError means a missing one.
    """

    name: str
    repo_id: str
    split: str
    file: str
    scorer: Scorer
    published: str
    note: str = ""
    fields: Fields = field(default_factory=Fields)
    convert: Convert | None = None

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Convert rows of the file to those that `fields` describe."""
        for number, row in rows:
            yield (
                number,
                row if self.convert is None or isinstance(row, BadRow) else _converted(self.convert, number, row),
            )


def find_task(name: str) -> Task | None:
    """The task of this name."""
    return next((task for task in TASKS if task.name == name), None)


def _converted(convert: Convert, number: int, row: Mapping[str, Any]) -> Mapping[str, Any] | BadRow:
    try:
        return {**row, **convert({key: value for key, value in row.items() if value is not None})}
    except KeyError as error:
        return BadRow(number, f"no `{error.args[0]}`; the fields are: {', '.join(row) or 'none'}")


def complete_test(test: str, entry_point: str) -> str:
    """Complete a HumanEval test, which defines `check(candidate)`, with its call."""
    return f"{test}\n\ncheck({entry_point})\n"


def _code_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "question": CODE_PROMPT.format(str(row["prompt"]).strip("\n")),
        "answer": complete_test(str(row["test"]), str(row["entry_point"])),
    }


TASKS = (
    Task(
        name="gsm8k",
        repo_id="openai/gsm8k",
        split="test",
        file="main/test-*.parquet",
        scorer="answer",
        published="zero-shot at temperature 0 (Cerebrum-1.0-7b); maj@8 (Cerebrum-1.0-8x7b)",
    ),
    Task(
        name="math500",
        repo_id="HuggingFaceH4/MATH-500",
        split="test",
        file="test.jsonl",
        scorer="answer",
        published="MATH, zero-shot (Cerebrum-1.0-7b at temperature 0, Cerebrum-1.0-8x7b)",
        note="MATH-500 is a subset, not the full MATH benchmark that the model cards use: scores are not comparable",
        fields=Fields(question="problem", id="unique_id"),
    ),
    Task(
        name="arc-challenge",
        repo_id="allenai/ai2_arc",
        split="test",
        file="ARC-Challenge/test-*.parquet",
        scorer="choice",
        published="zero-shot (Cerebrum-1.0-7b at temperature 0, Cerebrum-1.0-8x7b)",
        note="the model generates a letter, and lm-eval compares log-likelihoods of the choices: not comparable",
        fields=Fields(answer="answerKey"),
    ),
    Task(
        name="humaneval",
        repo_id="openai/openai_humaneval",
        split="test",
        file="openai_humaneval/test-*.parquet",
        scorer="code",
        published="zero-shot (Cerebrum-1.0-8x7b)",
        fields=Fields(id="task_id", stub="prompt", entry_point="entry_point"),
        convert=_code_row,
    ),
)
