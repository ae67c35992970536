"""Whole answers and tokens where reasoning has a limit, with a hard end and with one that is led up to.

Usage: python benchmarks/reasoning_limits.py --data DIR --model FILE [--limits N,N] [--questions N] [--dry-run]

DIR contains gsm8k-200.jsonl (see benchmarks/all.py). FILE is an instruction model with ChatML's markup; its chat
template is replaced by one that opens a block of reasoning in the prompt, since no model of this size that was trained
to reason can be had here. Without --model, the sums of tests/data/thinker.gguf are asked, a tiny model that reasons.

Replies are greedy and have at most TOKENS tokens. An answer is whole if the reply ended by itself after its reasoning;
reasoning was forced to an end if the model did not end it within the limit.
"""

from __future__ import annotations

import json
import random
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from all import GSM8K
from harness import ROOT, argument_parser, machine, record_lines

from cerebrum_cli import open_model
from cerebrum_cli.answers.equality import canonical
from cerebrum_cli.replies import reply_controls
from cerebrum_cli.replies.reply import Reply

HEADING = "Limits of reasoning"
TOKENS = 600
HARD = 1 - 1e-9  # of the limit, from where an end becomes likelier
SYSTEM = "Reason step by step after <think>, end your reasoning with </think>, then give a short final answer."
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
INTRODUCTION = """\
Greedy replies with `--think N`, by `benchmarks/reasoning_limits.py`; "hard" forces the end of the reasoning at the
limit only, "soft" leads up to it as the program does. An answer is whole if the reply ended by itself after it.

| model | limit | end | whole | right | forced | tokens | date | machine |
|---|---|---|---|---|---|---|---|---|
"""


def sums(count: int) -> list[tuple[str, str]]:
    drawn = random.Random(1)
    pairs = [(drawn.randint(10, 99), drawn.randint(10, 99)) for _ in range(count)]
    return [(f"What is {first} plus {second}?", str(first + second)) for first, second in pairs]


def word_problems(data: Path, count: int) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (data / GSM8K).read_text().splitlines()[:count]]
    return [(row["question"], row["answer"].rpartition("####")[2].strip()) for row in rows]


def measure(model: Path, questions: list[tuple[str, str]], limit: str, soft_end: float, **options: Any) -> str:
    reply_controls.SOFT_END = soft_end
    whole = right = forced = tokens = 0
    with open_model(str(model), think=limit, temperature=0.0, max_tokens=TOKENS, **options) as opened:
        for reply in opened.replies([question for question, _ in questions]):
            assert isinstance(reply, Reply)
            whole += reply.finish_reason == "stop" and bool(reply.text.strip())
            answer = reply.final_answer
            right += answer is not None and canonical(answer) == canonical(questions[reply.index][1])
            forced += reply.reasoning_closed_at is not None
            tokens += reply.usage.completion_tokens
    return f"{whole} of {len(questions)} | {right} | {forced} | {tokens:,}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--limits", default="100,150")
    parser.add_argument("--questions", type=int, default=24)
    options = parser.parse_args()
    model = options.model or ROOT / "tests" / "data" / "thinker.gguf"
    questions = word_problems(options.data, options.questions) if options.model else sums(options.questions)
    cases = [("on", "-", HARD)]
    for limit in options.limits.split(","):
        cases += [(limit, "hard", HARD), (limit, "soft", reply_controls.SOFT_END)]
    with tempfile.TemporaryDirectory() as directory:
        template = Path(directory, "reasoning.jinja")
        template.write_text(TEMPLATE)
        more = {"system": SYSTEM, "format": "embedded", "chat_template": str(template)} if options.model else {}
        rows = []
        for limit, end, soft_end in cases:
            figures = measure(model, questions, limit, soft_end, **more)
            rows.append(f"| {model.stem} | {limit} | {end} | {figures} | {date.today()} | {machine()} |")
            print(rows[-1], flush=True)
    if not options.dry_run:
        record_lines(HEADING, INTRODUCTION, rows, (f"| {model.stem} |",))


if __name__ == "__main__":
    main()
