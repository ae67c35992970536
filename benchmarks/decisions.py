"""How a probability is found: python -m benchmarks.decisions --data DIR MODEL... [--rows N] [--sets NAME...]

DIR has labelled rows: film-reviews.jsonl, spam.jsonl, news.jsonl, bank-messages.jsonl, bbh-navigate.jsonl and
bbh-disambiguation-qa.jsonl with the keys `text` and `label`, and replies-choice.jsonl with `question`, `choices` and
`gold`, a letter. For each model and set: accuracy, log loss, the share of answers that change when the choices are
reversed, and tokens to evaluate for a row, by

- letters, one order: the choices after letters, and how likely a reply is to begin with each letter
- letters, orders: the same, averaged over several orders (`decide --letters`)
- names, one order: the choices in a line, and how likely a reply is to begin with each name
- names, orders: the same, averaged over several orders (`decide`, except for yes or no, of which it has one order)
- prior removed: the last, less what it gives for texts without content ("N/A", "[MASK]", "...")
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice, pairwise
from math import exp, fsum, log
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import argument_parser
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.text import Texts
from cerebrum_cli.core.token_ids import common_prefix
from cerebrum_cli.decide.choice_questions import ChoiceQuestion, Layout
from cerebrum_cli.decide.given_choices import Choice, GivenChoices, Order, choices_of
from cerebrum_cli.decide.readings import Owners, average, log_shares, sequences_of, token_spellings
from cerebrum_cli.engine.loglikelihood import LogprobScores, ScoreRequest
from cerebrum_cli.replies.interface import Model, open_model

YES_NO = ("yes", "no")
INTENTS = (
    *("card arrival", "exchange rate", "lost or stolen card", "passcode forgotten", "Refund not showing up"),
    *("declined card payment", "transfer timing", "top up failed", "cash withdrawal charge", "verify my identity"),
)
SETS = {  # question and choices by file; the text of BIG-Bench Hard asks by itself
    "film-reviews": ("Is this review of a film positive?", YES_NO),
    "spam": ("Is this text message spam?", YES_NO),
    "news": ("Which section of a newspaper is this from?", ("world", "sports", "business", "science and technology")),
    "bank-messages": ("Which intent does this message of a bank's customer have?", INTENTS),
    "bbh-navigate": ("", ("Yes", "No")),
    "bbh-disambiguation-qa": ("", ("(A)", "(B)", "(C)")),
}
KNOWLEDGE = "replies-choice"
CONTENT_FREE = ("N/A", "[MASK]", "...")
LETTERS = "ABCDEFGHIJ"
LEAST = 1e-6  # probability of a label


class Labelled(NamedTuple):
    text: str
    question: str
    choices: GivenChoices
    label: str


class Variant(NamedTuple):
    """One prompt of a row: with letters or names, in an order."""

    row: int
    style: str
    order: Order


def read_rows(data: Path, name: str, limit: int) -> list[Labelled]:
    if name == KNOWLEDGE:
        known = {}
        with (data / f"{name}.jsonl").open() as lines:
            for row in map(json.loads, lines):
                if row["gold"] and len(row["choices"]) == 4 and len({name.casefold() for name in row["choices"]}) == 4:
                    right = row["choices"][LETTERS.index(row["gold"])]
                    known[row["question"]] = Labelled(
                        row["question"], "", choices_of(map(Choice, row["choices"])), right
                    )
        return list(known.values())[:limit]
    question, names = SETS[name]
    choices = choices_of(map(Choice, names))
    with (data / "decisions" / f"{name}.jsonl").open() as lines:
        rows = [json.loads(line) for line in islice(lines, limit)]
    return [Labelled(row["text"], question, choices, row["label"]) for row in rows]


def variants(rows: Sequence[Labelled], styles: Sequence[str]) -> Iterator[Variant]:
    for number, row in enumerate(rows):
        for style in styles:
            for order in row.choices.orders:
                yield Variant(number, style, order)


def evaluate(model: Model, rows: Sequence[Labelled], styles: Sequence[str]) -> tuple[dict[Variant, list[float]], float]:
    """Logarithms of the probabilities by prompt, and the tokens of a row that are evaluated for `styles`."""
    vocabulary = model.engine.vocabulary
    asked = list(variants(rows, styles))
    requests: list[ScoreRequest] = []
    owners: list[Owners] = []
    known: dict[tuple[Texts, int], Owners] = {}
    for variant in asked:
        row = rows[variant.row]
        question = "\n\n".join(filter(None, (row.text, row.question)))
        listing = ChoiceQuestion(Conversation().user(question), row.choices, variant.style == "letters")
        conversation = listing.listed(Layout(variant.order, is_first=False), None)
        prompt = tuple(model.prepare_reply(Ask(conversation, model.source.settings)).prompt_tokens)
        key = listing.answers(variant.order), prompt[-1]
        if key not in known:
            known[key] = sequences_of([token_spellings(vocabulary, answer, prompt[-1]) for answer in key[0]]).owners
        owners.append(known[key])
        requests.append(ScoreRequest(prompt, tuple(owners[-1])))
    found = {}
    with closing(model.engine.score(requests)) as events:
        for event in events:
            if isinstance(event, LogprobScores):
                logprobs = dict(zip(owners[event.request], [score.logprob_sum for score in event.scores], strict=True))
                found[asked[event.request]] = log_shares(owners[event.request], logprobs)
    prompts = sorted(request.context for request in requests)
    shared = [common_prefix(before, after) for before, after in pairwise(prompts)]
    return found, (sum(map(len, prompts)) - sum(shared)) / len(rows)


def without_prior(probabilities: Sequence[float], priors: Sequence[Sequence[float]]) -> list[float]:
    means = [fsum(column) / len(column) for column in zip(*priors, strict=True)]
    return average([[log(each) - log(mean) for each, mean in zip(probabilities, means, strict=True)]])


def report(name: str, rows: Sequence[Labelled], answers: Sequence[Sequence[float]], flips: float | None) -> str:
    right, losses = 0, []
    for row, probabilities in zip(rows, answers, strict=True):
        label = row.choices.names.index(row.label)
        right += probabilities.index(max(probabilities)) == label
        losses.append(-log(max(LEAST, probabilities[label])))
    changed = "" if flips is None else f"{flips:.2f}"
    return f"| {name} | {right / len(rows):.2f} | {fsum(losses) / len(rows):.2f} | {changed} |"


def measure(model: Model, data: Path, name: str, limit: int) -> None:
    rows = read_rows(data, name, limit)
    styles = "letters", "names"
    found, tokens = evaluate(model, rows, styles)
    print(f"\n{name}: {len(rows)} rows, {tokens:.0f} tokens evaluated for a row\n")
    print("| method | accuracy | log loss | changed by reversal |")
    print("|---|---|---|---|")
    averaged: dict[str, list[list[float]]] = defaultdict(list)
    for style in styles:
        firsts, reversals = [], []
        for number, row in enumerate(rows):
            read = {order: found[Variant(number, style, order)] for order in row.choices.orders}
            orders = list(row.choices.orders)
            firsts.append([exp(each) for each in read[orders[0]]])
            reversals.append([exp(each) for each in read[orders[0][::-1]]])
            averaged[style].append(average(list(read.values())))
        pairs = zip(firsts, reversals, strict=True)
        changed = [first.index(max(first)) != second.index(max(second)) for first, second in pairs]
        print(report(f"{style}, one order", rows, firsts, sum(changed) / len(rows)))
        print(report(f"{style}, {len(orders)} orders", rows, averaged[style], 0.0))
    if rows[0].question:
        free = [row._replace(text=text) for text, row in zip(CONTENT_FREE, rows, strict=False)]
        priors, _ = evaluate(model, free, ["names"])
        shares = [average([priors[Variant(at, "names", order)] for order in orders]) for at in range(len(free))]
        removed = [without_prior(probabilities, shares) for probabilities in averaged["names"]]
        print(report("names, orders, prior removed", rows, removed, None))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--format", help="prompt format of models without a chat template")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--sets", nargs="+", choices=[*SETS, KNOWLEDGE], default=[*SETS, KNOWLEDGE])
    arguments = parser.parse_args()
    for name in arguments.models:
        with open_model(name, parallel=8, format=arguments.format) as model:
            for _ in model.load():
                pass
            print(f"\n## {name}", flush=True)
            for each in arguments.sets:
                measure(model, arguments.data, each, arguments.rows)


if __name__ == "__main__":
    main()
