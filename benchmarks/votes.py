"""What a vote costs beside answers one by one, what it is worth, and whether the same batch says the same again.

Needs `cerebrum pull starter`.
Usage: python benchmarks/votes.py [--data DIR] [--shape FILE] [--only PART] [--runs N] [--dry]

DIR holds gsm8k-200.jsonl, which benchmarks/batch.py tells of; without it `chains` is left out, and `repeat` asks nano
only. FILE is what benchmarks/mistral_shape.py writes. All is asked in the Cerebrum format, on two threads.

chains     The first question of GSM8K gets VOTES chains of TOKENS tokens, as with `--votes 8 --no-early-stop`, against
           as many answers one after the other in one process: with an engine that re-uses nothing of what it has read
           and is the same otherwise, so that each answer evaluates the prompt, and with one that re-uses all it can.
           Neither the model's end of text nor the format's stop string ends a chain, and it is checked how many tokens
           were said and evaluated. Seconds from the loaded model (its context is not made yet) to the last token; each
           run is a process of its own, in turn, after one warm-up each. With FILE chains of SHAPE_TOKENS tokens, only
           against the first, once without a warm-up, unless --runs says otherwise.
accuracy   nano, the model in the package, answers its 200 held-out sums at temperature 0.8, each with VOTES chains
           that have seeds of their own, the same each time. A sum's single samples are right as often as its chains
           are, its vote is right or not. In brackets 95 % confidence intervals: the percentiles of RESAMPLES bootstrap
           samples of the sums, which are drawn with all their chains; so the difference of both is of the same sums.
repeat     REPEATED rows at temperature 0.8, SAME at once, twice: rows that are not the same, in anything. And at
           temperature 0 with each of AT_ONCE at once: texts that differ between all of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from answering import BatchJob, benchmark_settings, conversation_of, gsm8k, loaded_model, run_batch
from harness import ROOT, Row, in_subprocess, medians, record
from nano.questions import held_out

from cerebrum_cli.answers.canonical import canonical
from cerebrum_cli.answers.vote import Votes
from cerebrum_cli.application.inference.loading import SINGLE, Parallel
from cerebrum_cli.application.inference.responder import GenerationRequest, Responder
from cerebrum_cli.application.inference.voting import VOTE_TEMPERATURE, MajorityVote, run_vote
from cerebrum_cli.batches.rows import Row as Question
from cerebrum_cli.batches.rows import prompt_row
from cerebrum_cli.core.events import Event, FinishEvent

PARTS = ("chains", "accuracy", "repeat")
NANO = str(ROOT / "cerebrum_cli" / "nano.gguf")
VOTES, TOKENS, SHAPE_TOKENS = 8, 128, 32
SEED = 1
RESAMPLES = 10_000
REPEATED, SAME, AT_ONCE = 32, 16, (1, 8, 16, 64)


def main() -> None:
    """Measure all parts, or one, and record each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="where gsm8k-200.jsonl is")
    parser.add_argument("--shape", type=Path, metavar="FILE", help="a model of Mistral-7B's shape, for `chains`, too")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, help="of `chains` [default: 3, with FILE 1]")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a chain in `chains` [default: 128]")
    parser.add_argument("--questions", type=int, default=200, help="of `accuracy` [default: 200]")
    parser.add_argument("--dry-run", action="store_true", help="do not touch the table of results")
    given = parser.parse_args()
    parts = [given.only] if given.only else PARTS
    if "chains" in parts and given.data:
        (question,) = gsm8k(given.data, 1)
        record(chains("starter", question, given.tokens, given.runs or 3), given.dry_run)
        if given.shape:
            tokens = min(SHAPE_TOKENS, given.tokens)
            record([chains_of_shape(str(given.shape), question, tokens, given.runs or 1)], given.dry_run)
    elif "chains" in parts:
        print("without --data, what chains cost is not measured")
    if "accuracy" in parts:
        record([accuracy(given.questions)], given.dry_run)
    if "repeat" in parts:
        rows = list(repeated(given.data))
        record(rows, given.dry_run)
        if not rows[0].met:
            sys.exit("the same batch does not say the same again")


# What chains cost.


class Spent(NamedTuple):
    """The seconds until all was said, and how each chain ended."""

    seconds: float
    finishes: list[FinishEvent]


def chains(model: str, question: Question, tokens: int, runs: int) -> list[Row]:
    """Compare a vote with answers that each evaluate the prompt, and with those that re-use it."""
    sides = (voted, answered_anew, answered_again)
    measured = [[in_subprocess(side, model, question, tokens) for side in sides] for _ in range(runs + 1)][1:]
    what = f"{VOTES} votes of {tokens} tokens, {model}, {VOTES} answers that"
    return [
        compared(f"{what} each evaluate the prompt", [(mine, anew) for mine, anew, _ in measured], "<= 0.60"),
        compared(f"{what} reuse it", [(mine, again) for mine, _, again in measured], "<= 0.85"),
    ]


def chains_of_shape(model: str, question: Question, tokens: int, runs: int) -> Row:
    """Compare a vote with answers that each evaluate the prompt; a single run has no warm-up."""
    sides = (voted, answered_anew)
    mine, anew = zip(
        *[[in_subprocess(side, model, question, tokens) for side in sides] for _ in range(runs)], strict=True
    )
    what = f"{VOTES} votes of {tokens} tokens, 7B shape, {VOTES} answers that each evaluate the prompt"
    return compared(what, list(zip(mine, anew, strict=True)), "<= 0.45")


def compared(what: str, pairs: Sequence[tuple[float, float]], bar: str) -> Row:
    """Return the row of two times."""
    mine, other, ratio = medians(pairs)
    return Row(what, f"{mine:.2f} s", f"{other:.2f} s", ratio, bar)


def voted(model: str, question: Question, tokens: int) -> float:
    """Return the seconds of a vote, as `cerebrum ask` takes it; to be called in a process of its own."""
    asked = asked_for(question, tokens)
    with loaded_model(model, asked.settings, Parallel(VOTES)) as found:
        spent = timed(lambda: run_vote(found.responder, asked, MajorityVote(Votes(VOTES, VOTES), stops_early=False)))
    return checked(spent, tokens, [0] + [spent.finishes[0].prompt_tokens] * (VOTES - 1))


def answered_anew(model: str, question: Question, tokens: int) -> float:
    """Return the seconds of single answers that each evaluate the prompt; to be called in a process of its own."""
    with loaded_model(model, asked_for(question, tokens).settings, SINGLE, evaluate_all=True) as found:
        spent = timed(lambda: one_by_one(found.responder, question, tokens))
    return checked(spent, tokens, [0] * VOTES)


def answered_again(model: str, question: Question, tokens: int) -> float:
    """Return the seconds of single answers that re-use the prompt; to be called in a process of its own."""
    with loaded_model(model, asked_for(question, tokens).settings, SINGLE) as found:
        spent = timed(lambda: one_by_one(found.responder, question, tokens))
    return checked(spent, tokens, [0] + [spent.finishes[0].prompt_tokens - 1] * (VOTES - 1))


def asked_for(question: Question, tokens: int, seed: int = SEED) -> GenerationRequest:
    """Return a question as it is asked for one of its chains."""
    settings = benchmark_settings({"max_tokens": tokens, "temperature": VOTE_TEMPERATURE, "seed": seed})
    return GenerationRequest(conversation_of(question), settings, ignore_eos=True)


def one_by_one(responder: Responder, question: Question, tokens: int) -> Iterator[Event]:
    """Yield the events of single answers, which have the seeds of the chains."""
    for seed in range(SEED, SEED + VOTES):
        with closing(responder.generate([responder.tokenize_request(asked_for(question, tokens, seed))])) as replies:
            yield from replies


def timed(ask: Callable[[], Iterator[Event]]) -> Spent:
    """Play events out; return the seconds from asking for the first to the last, and how all chains ended."""
    began = time.perf_counter()
    finishes = [event for event in ask() if isinstance(event, FinishEvent)]
    return Spent(time.perf_counter() - began, finishes)


def checked(spent: Spent, tokens: int, cached: list[int]) -> float:
    """Return the seconds; RuntimeError unless the chains have so many tokens, of whose prompts so many were there."""
    done = [(finish.completion_tokens, finish.cached_tokens) for finish in spent.finishes]
    if sorted(done) != sorted((tokens, there) for there in cached):
        raise RuntimeError(f"other work was done than was asked for: {done}")
    return spent.seconds


# What a vote is worth.


def accuracy(count: int) -> Row:
    """Compare how often votes and single samples of nano are right."""
    wanted = [(turns[0], answer) for turns, answer in held_out()[:count]]
    asked = [prompt_row(number, number, text) for number, (text, _) in enumerate(wanted, 1)]
    seeded = [replace(row, settings={"seed": SEED + VOTES * index}) for index, row in enumerate(asked)]
    objects = in_subprocess(run_batch, BatchJob(NANO, seeded, {"max_tokens": 64, "temperature": 0.8}, SAME, VOTES)).rows
    right = [canonical(answer) for _, answer in wanted]
    votes = [each["votes"] for each in objects]
    single = np.array([share_right(each, answer) for each, answer in zip(votes, right, strict=True)])
    vote = np.array([is_right(each["winner"], answer) for each, answer in zip(votes, right, strict=True)], float)
    drawn = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, count))
    difference = vote - single
    low, high = interval(difference[drawn])
    ahead = f"ahead by {difference.mean():.3f} ({low:.3f} to {high:.3f})" + ("" if low > 0 else ", not significant")
    return Row(
        f"accuracy on {count} held-out sums, nano at temperature 0.8, vote of {VOTES} / single samples",
        f"{estimated(vote, drawn)}, {ahead}",
        estimated(single, drawn),
        float(vote.mean() / single.mean()),
        ">= 1.0",
    )


def share_right(votes: dict[str, Any], right: str) -> float:
    """Return the share of a vote's chains that are right."""
    return float(np.mean([is_right(chain["final_answer"], right) for chain in votes["chains"]]))


def is_right(answer: str | None, right: str) -> bool:
    """Tell whether an answer is what a sum comes to."""
    return answer is not None and canonical(answer) == right


def estimated(shares: npt.NDArray[Any], drawn: npt.NDArray[Any]) -> str:
    """Return a mean with its confidence interval."""
    low, high = interval(shares[drawn])
    return f"{shares.mean():.3f} ({low:.3f} to {high:.3f})"


def interval(samples: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the 95 % interval of the means of bootstrap samples."""
    low, high = np.percentile(samples.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


# Whether it is the same again.


def repeated(data: Path | None) -> Iterator[Row]:
    """Compare a batch with itself, and then with as many at once as may be."""
    sums = [prompt_row(number, number, turns[0]) for number, (turns, _) in enumerate(held_out()[:REPEATED], 1)]
    sampled = BatchJob(NANO, sums, {"max_tokens": 64, "temperature": 0.8, "seed": SEED}, SAME)
    once, again = (in_subprocess(run_batch, sampled).rows for _ in range(2))
    differing = sum(a != b for a, b in zip(once, again, strict=True))
    what = f"batch of {REPEATED} rows, nano at temperature 0.8, {SAME} in parallel, twice: rows that differ"
    yield Row(what, str(differing), f"{REPEATED} rows", differing / REPEATED, "<= 0")
    yield same_texts(BatchJob(NANO, sums, {"max_tokens": 64}), "nano")
    if data:
        yield same_texts(BatchJob("starter", gsm8k(data, REPEATED), {"max_tokens": 64}), "starter")


def same_texts(work: BatchJob, name: str) -> Row:
    """Compare the likeliest texts that different numbers at once come to."""
    found = {count: in_subprocess(run_batch, replace(work, parallel=count)).rows for count in AT_ONCE}
    texts = [{each["text"] for each in same} for same in zip(*found.values(), strict=True)]
    first = found[AT_ONCE[0]]
    for count in AT_ONCE[1:]:
        same = sum(a["text"] == b["text"] for a, b in zip(first, found[count], strict=True))
        print(f"{name}: {same} of {len(first)} texts are the same with --parallel {count} as with {AT_ONCE[0]}")
    differing = sum(len(each) > 1 for each in texts)
    what = f"texts of {len(texts)} that differ between --parallel {', '.join(map(str, AT_ONCE))}, {name}"
    return Row(what, str(differing), f"{len(texts)} texts", differing / len(texts), "<= 0")


if __name__ == "__main__":
    main()
