"""Measure how often the answer that a reply means is found: in replies of models, and in GSM8K's own solutions.

Usage: python benchmarks/answers.py --data DIR [--failures]

DIR contains some of these files, of JSON objects in lines:

replies-math.jsonl    question, reply, and intended: the answer that the reply means, null if it means none
replies-choice.jsonl  the same, with choices; intended is a letter
gsm8k-200.jsonl       question and answer, as in openai/gsm8k: with its last line, and without, where nothing is stated

Nothing is recorded. --failures lists what was found instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from answering import GSM8K

from cerebrum_cli.answers.canonical import equals_reference
from cerebrum_cli.eval.questions import Question
from cerebrum_cli.eval.scorers import score_answer


class Case(NamedTuple):
    """A reply, and the answer that it means; None if it means none."""

    id: str
    reply: str
    intended: str | None
    choices: tuple[str, ...] = ()

    def found(self) -> str | None:
        question = Question(0, self.id, "?", self.intended or "?", self.choices)
        return score_answer(question, self.reply, True).answer

    def is_right(self, found: str | None) -> bool:
        if self.choices or self.intended is None:
            return found == self.intended
        return equals_reference(found, self.intended)


def main() -> None:
    """Print for each kind of reply how many are right."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="directory with the files")
    parser.add_argument("--failures", action="store_true", help="list what was found instead")
    options = parser.parse_args()
    for kind, cases in measured(options.data):
        failures = [(case, found) for case in cases if not case.is_right(found := case.found())]
        print(f"{kind:28} {len(cases) - len(failures):4} of {len(cases):4}  {1 - len(failures) / len(cases):.4f}")
        for case, found in failures if options.failures else ():
            print(f"  {case.id}: {found!r}, not {case.intended!r}: ...{case.reply[-120:]!r}")


def measured(data: Path) -> Iterator[tuple[str, list[Case]]]:
    for kind in ("math", "choice"):
        yield from named(f"replies, {kind}", [replied(row) for row in rows(data / f"replies-{kind}.jsonl")])
    solutions = [(f"line {number}", row["answer"]) for number, row in enumerate(rows(data / GSM8K), start=1)]
    yield from named("solutions, stated", [Case(id, text, reference(text)) for id, text in solutions])
    unstated = [Case(id, text.rpartition("\n####")[0], reference(text)) for id, text in solutions]
    yield from named("solutions, not stated", unstated)


def named(kind: str, cases: list[Case]) -> Iterator[tuple[str, list[Case]]]:
    if cases:
        yield kind, cases


def replied(row: dict[str, Any]) -> Case:
    return Case(row["id"], row["reply"], row["intended"], tuple(row.get("choices") or ()))


def reference(solution: str) -> str:
    return solution.rpartition("####")[2].strip()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []


if __name__ == "__main__":
    main()
