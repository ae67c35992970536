"""Tasks that can be evaluated by name, each a protocol with a version: what is asked, how it is scored, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.row_fields import InvalidRow
from cerebrum_cli.core.text import braced
from cerebrum_cli.eval.reading import Convert
from cerebrum_cli.eval.scores import Match

BOXES = ("\\boxed", "\\fbox")

CODE_TEMPLATE = (
    "Complete this Python function. Reply with the whole function in one code block.\n\n```python\n{prompt}\n```"
)
STEPS = "{question}\n\nReason step by step, and "
# Not "Answer: N": a small model repeats the letter.
NUMBER_TEMPLATE = STEPS + 'on the last line write "Answer:" and the final number.'
BOX_TEMPLATE = STEPS + "put the final answer in \\boxed{{}}."
LETTER_TEMPLATE = (
    "{question}\n\n{choices}\n\n"
    'Reason step by step, and on the last line write "Answer:" and the letter of the correct choice.'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task, or a file of questions, which has no `repo_id`.

    `file` is the pattern of the names of its `files` files in the repository. `template` is the prompt without a
    preset, which asks for an answer form; `follows` names the paper or harness whose protocol this is. A change of
    these or of the scoring raises `version`. `published` is how the cards report the task, `note` is printed with every
    result. `convert` adds fields to a row.
    """

    name: str
    file: str
    repo_id: str = ""
    match: Match = "answer"
    template: str = ""
    follows: str = ""
    version: int = 1
    published: str = ""
    note: str = ""
    convert: Convert | None = None
    files: int = 1

    @property
    def protocol(self) -> str | None:
        return f"{self.name} {self.version}" if self.follows else None


def complete_test(test: str, entry_point: str) -> str:
    """Complete a HumanEval test, which defines `check(candidate)`, with its call."""
    return f"{test}\n\ncheck({entry_point})\n"


def _code_row(row: JsonObject) -> JsonObject:
    prompt = str(row["prompt"]).strip("\n")
    return {
        "prompt": prompt,
        "question": CODE_TEMPLATE.format(prompt=prompt),
        "answer": complete_test(str(row["test"]), str(row["entry_point"])),
        "id": row.get("task_id"),
        "stub": row["prompt"],
    }


def _choice_row(row: JsonObject) -> JsonObject:
    texts, labels = row["choices"]["text"], row["choices"]["label"]
    if row["answerKey"] not in labels:
        raise InvalidRow(f"invalid `answerKey`: {row['answerKey']!r} is none of the labels")
    return {"choices": texts, "answer": ascii_uppercase[labels.index(row["answerKey"])]}


def last_boxed(solution: str) -> str:
    r"""Content of the last `\boxed{...}` in a solution of MATH, or the number after it: `\boxed 5$` is 5."""
    last = max(solution.rfind(box) for box in BOXES)
    content = solution[last:].removeprefix(BOXES[0]).removeprefix(BOXES[1]).lstrip()
    if content.startswith("{"):
        return braced(content)
    number, dollar, _ = content.partition("$")
    return number.strip() if dollar else ""


TASKS = {
    task.name: task
    for task in (
        Task(
            name="gsm8k",
            repo_id="openai/gsm8k",
            file="main/test-*.parquet",
            follows="zero-shot, with a last line as in simple-evals' MGSM",
            template=NUMBER_TEMPLATE,
            published="zero-shot at temperature 0 (Cerebrum-1.0-7b); maj@8 (Cerebrum-1.0-8x7b)",
        ),
        Task(
            name="math",
            repo_id="EleutherAI/hendrycks_math",
            file="*/test-*.parquet",
            match="math",
            follows="zero-shot, the last box counts, as in Hendrycks et al. 2021 (arXiv 2103.03874)",
            template=BOX_TEMPLATE,
            published="zero-shot (Cerebrum-1.0-7b at temperature 0, Cerebrum-1.0-8x7b)",
            convert=lambda row: {"question": row["problem"], "answer": last_boxed(str(row["solution"]))},
            files=7,  # a subject each
        ),
        Task(
            name="arc-challenge",
            repo_id="allenai/ai2_arc",
            file="ARC-Challenge/test-*.parquet",
            follows="zero-shot, with a last line as in simple-evals' multiple choice",
            template=LETTER_TEMPLATE,
            published="zero-shot (Cerebrum-1.0-7b at temperature 0, Cerebrum-1.0-8x7b)",
            note="the model generates a letter, and lm-eval compares log-likelihoods of the choices: not comparable",
            convert=_choice_row,
        ),
        Task(
            name="humaneval",
            repo_id="openai/openai_humaneval",
            file="openai_humaneval/test-*.parquet",
            match="code",
            template=CODE_TEMPLATE,
            follows="zero-shot pass@1 with the tests of Chen et al. 2021 (arXiv 2107.03374), asked as a chat",
            published="zero-shot (Cerebrum-1.0-8x7b)",
            convert=_code_row,
        ),
    )
}
SUMS = Path(__file__).parents[1] / "data" / "sums.jsonl"  # bundled questions that the bundled model can answer
TASK_NAMES = (*TASKS, SUMS.stem)
