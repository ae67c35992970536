"""Measure how often the answer that a reply means is found: in replies of models, and in GSM8K's own solutions.

Usage: python -m benchmarks.answers --data DIR [DIR...] [--failures]

The directories contain some of these files, of JSON objects in lines:

everyday.jsonl        question, reply, and the answer that a reader takes from it
replies-math.jsonl    question, reply, and intended: the answer that the reply means, null if it means none
replies-choice.jsonl  the same, with choices; intended is a letter
gsm8k-200.jsonl       question and answer, as in openai/gsm8k: with its last line, and without, where nothing is stated
answers*.jsonl        question, reply, reference, and equal: whether a reader would mark the reply right

Nothing is recorded. --failures lists what was found instead, and the rule that found it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.answering import GSM8K
from cerebrum_cli.answers.equality import equals_reference
from cerebrum_cli.answers.final import compare_answer, final_answer


class Result(NamedTuple):
    """Whether a reply was read right, with what was found and how; and whether a wrong one was taken for right."""

    is_right: bool
    found: str
    reply: str
    is_false: bool = False


def main() -> None:
    """Print for each kind of reply how many are right."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="directories with the files")
    parser.add_argument("--failures", action="store_true", help="list what was found instead")
    options = parser.parse_args()
    for kind, results in measured(options.data):
        right, false = sum(result.is_right for result in results), sum(result.is_false for result in results)
        note = f"  {false} wrong ones taken for right" if false else ""
        print(f"{kind:24} {right:4} of {len(results):4}  {right / len(results):.4f}{note}")
        for result in results if options.failures else ():
            if not result.is_right:
                print(f"  {result.found}: ...{result.reply[-120:]!r}")


def measured(directories: list[Path]) -> Iterator[tuple[str, list[Result]]]:
    for path in sorted(path for directory in directories for path in directory.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.open(encoding="utf-8")]
        if path.name == "everyday.jsonl":
            yield path.stem, [everyday(row) for row in rows]
        elif path.name in ("replies-math.jsonl", "replies-choice.jsonl"):
            yield path.stem, [replied(row) for row in rows]
        elif path.name == GSM8K:
            yield f"{path.stem}, stated", [solved(row["answer"], row["answer"]) for row in rows]
            yield f"{path.stem}, prose", [solved(row["answer"].rpartition("\n####")[0], row["answer"]) for row in rows]
        elif path.name.startswith("answers"):
            yield path.stem, [marked(row) for row in rows]


def everyday(row: dict[str, Any]) -> Result:
    """Right is also a line that contains the answer."""
    answer, wanted = final_answer(row["question"], row["reply"]), row["answer"]
    is_right = answer is not None and (
        equals_reference(answer.text, wanted) or wanted.casefold() in answer.text.casefold()
    )
    return Result(is_right, f"{answer}, not {wanted!r}", row["reply"], answer is not None and not is_right)


def replied(row: dict[str, Any]) -> Result:
    choices, intended = tuple(row.get("choices") or ()), row["intended"]
    answer = compare_answer(row["reply"], True, intended or "?", choices).answer
    text = answer and answer.text
    is_same = choices or intended is None
    is_right = text == intended if is_same else equals_reference(text, intended)
    return Result(is_right, f"{answer}, not {intended!r}", row["reply"])


def solved(text: str, solution: str) -> Result:
    reference = solution.rpartition("####")[2].strip()
    found = compare_answer(text, True, reference)
    return Result(found.is_correct, f"{found.answer}, not {reference!r}", text)


def marked(row: dict[str, Any]) -> Result:
    choices = tuple(row.get("choices") or ())
    found = compare_answer(row["reply"], True, row["reference"], choices, row.get("question", ""))
    is_false = found.is_correct and not row["equal"]
    return Result(found.is_correct == row["equal"], f"{found.answer} for {row['reference']!r}", row["reply"], is_false)


if __name__ == "__main__":
    main()
