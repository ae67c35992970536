"""Accuracy of votes against tokens: on prose, on programs, on both, and on prose with a program after each sample.

Usage: python benchmarks/program_votes.py CHECKED.jsonl PROGRAMS.jsonl [GREEDY.jsonl] [--dry-run]
       python benchmarks/program_votes.py --plot FILE
       python benchmarks/program_votes.py --stops CHECKED.jsonl GREEDY.jsonl [CHECKED.jsonl GREEDY.jsonl] [--dry-run]

The files are runs on the same questions with the same model; questions without all samples are left out. The programs
of PROGRAMS run in Monty, and votes are replayed over all subsets of the samples. `--plot` draws accuracy against
tokens for all models in RESULTS.md, and prints their mean gain over all questions. `--stops` replays when a vote may
end, over all orders of the samples; its greedy replies are made with `--check python`, too. To make the runs:

    cerebrum eval gsm8k.jsonl -m MODEL --samples 4 --check python -o CHECKED.jsonl
    cerebrum eval gsm8k.jsonl -m MODEL --samples 4 --template "$ONLY_A_PROGRAM" -o PROGRAMS.jsonl
    cerebrum eval gsm8k.jsonl -m MODEL --temperature 0 -o GREEDY.jsonl

ONLY_A_PROGRAM='{question}

Write a short Python program that computes the answer from the numbers in the question, and prints only the final
answer. Reply with the program only.'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import cache
from itertools import chain, combinations, pairwise, permutations
from pathlib import Path
from statistics import mean
from textwrap import fill
from threading import Event
from typing import NamedTuple

from harness import argument_parser, read_sections, record_section

from cerebrum_cli.core.ask import Votes
from cerebrum_cli.core.text import format_count
from cerebrum_cli.eval.comparison import paired_interval, question_results
from cerebrum_cli.eval.estimates import QuestionVotes, majorities
from cerebrum_cli.eval.questions import Sample
from cerebrum_cli.eval.report import by_check, group_by_question, votes_of
from cerebrum_cli.eval.rescoring import rescored
from cerebrum_cli.eval.stored_runs import Run, require_run
from cerebrum_cli.programs.monty import find_monty
from cerebrum_cli.replies.checking import run_program
from cerebrum_cli.replies.majority_vote import MajorityVote
from cerebrum_cli.replies.tally import Program, SampleAnswer, Tally

GREEDY = "greedy"
HEADING = "Votes on programs"
INTRODUCTION = """\
{model}, {questions} questions of GSM8K, temperature 0.7; {day}, written by `benchmarks/program_votes.py`. One sample of
prose is right in {prose:.3f}, one program in {program:.3f}. The program that follows a sample prints its answer in
{checked:.3f}; then the sample is right in {if_checked:.3f}, otherwise in {if_not:.3f}. {no_program} of {samples}
samples have no program. Of votes of {votes} with the program after each, {trusted} end in a checked answer, right in
{if_trusted:.3f}, and {others} in another, right in {if_other:.3f}. The last column is the paired difference from votes
on prose that cost as many tokens, by interpolation, or from the largest vote if that costs fewer, with a 95% interval.
"""
HEAD = """\
| vote on | accuracy | tokens a question | difference from votes on prose, points |
|---|---|---|---|"""
MIXTURES = ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 4), (3, 3))
LINES = (  # label, names of its votes, style
    ("greedy", "greedy", "r*"),
    ("replies", r"\d of prose", "ko-"),
    ("a program after each reply", r"\d of prose with .*", "bs--"),
    ("only replies that it agrees with", r"\d of prose, only .*", "c.:"),
    ("replies and programs apart", r"\d of prose, \d .*", "g^"),
)
ROW = re.compile(r"^\| ([\w][^|]*?) \| (\d.*)$", re.M)  # a vote, and its figures
SHIPPED = "with the program after each"  # what `--check python` does


STOPS = "When checked votes may end"
STOPS_INTRODUCTION = """\
Qwen2.5-Coder Instruct (Q4_K_M) on {questions} questions of GSM8K, {samples} samples at temperature 0.7 and a greedy
reply, each with a program; {day}, written by `benchmarks/program_votes.py --stops`. Votes are replayed over all orders
of the samples. Differences are paired, in points, with 95% intervals; the two models have the same questions, which are
the clusters. The first checked answer is the leading one once a reply and a program give it, the second once two of
each do. The last column compares with votes of 2 to {samples} samples with programs, by interpolation of tokens.
Majorities have no programs. Ties are split.
"""
STOPS_HEAD = """\
| {model}, vote | accuracy | tokens a question | from the greedy reply | from {today} | from samples at equal tokens |
|---|---|---|---|---|---|"""
TODAY = "auto:2..{samples}"


class Drawn(NamedTuple):
    """The samples of prose to a question, with the programs after them, programs alone, and the greedy reply."""

    prose: list[Sample]
    programs: list[Sample]
    greedy: list[Sample]


class Curve(NamedTuple):
    """Accuracy of each question over all subsets of its samples, and the mean number of tokens."""

    accuracies: list[float]
    tokens: float


class Recorded(NamedTuple):
    """The number of questions of a model in RESULTS.md; by vote: accuracy, tokens, difference and its interval."""

    questions: int
    votes: dict[str, list[float]]


def plain(samples: Sequence[Sample]) -> QuestionVotes:
    return votes_of(samples, with_programs=False)


def only_checked(samples: Sequence[Sample]) -> QuestionVotes:
    """The samples whose program comes to their answer, or all if there is none."""
    vote, correct = votes_of(samples)
    agreeing = tuple(replace(answer, computed_form=None) for answer in vote.tally.answers if answer.is_checked)
    if not agreeing:
        return plain(samples)
    vote.tally = replace(vote.tally, read=agreeing)
    return QuestionVotes(vote, correct)


def curve(
    questions: Sequence[Drawn], prose: int, programs: int, count: Callable[[Sequence[Sample]], QuestionVotes] = plain
) -> Curve:
    accuracies, tokens = list[float](), list[float]()
    for drawn in questions:
        right, costs = list[float](), list[int]()
        for subset in combinations(drawn.prose, prose):
            for others in combinations(drawn.programs, programs):
                of_prose, of_others = count(subset), votes_of(others)
                answers = of_prose.vote.tally.answers + of_others.vote.tally.answers
                vote = MajorityVote(Votes(1, len(answers)))
                vote.tally = replace(vote.tally, read=answers)
                votes = QuestionVotes(vote, {**of_others.correct, **of_prose.correct})
                right += majorities([votes])[len(answers)]
                costs.append(sum(cost(sample, count is not plain) for sample in (*subset, *others)))
        accuracies.append(mean(right))
        tokens.append(mean(costs))
    return Curve(accuracies, mean(tokens))


def cost(sample: Sample, has_program: bool) -> int:
    return sample.completion_tokens + (sample.program_tokens if has_program else 0)


def curves(questions: Sequence[Drawn]) -> dict[str, Curve]:
    sizes = range(1, len(questions[0].prose) + 1)
    greedy = [sample for drawn in questions for sample in drawn.greedy]
    programs = len(questions[0].programs)
    found = dict[str, Curve]()
    if greedy:
        tokens = mean(sample.completion_tokens for sample in greedy)
        found[GREEDY] = Curve([sample.correct for sample in greedy], tokens)
    found |= {f"{size} of prose": curve(questions, size, 0) for size in sizes}
    found |= {format_count(size, "program"): curve(questions, 0, size) for size in range(1, programs + 1)}
    found |= {
        f"{a} of prose, {format_count(b, 'program')}": curve(questions, a, b) for a, b in MIXTURES if b <= programs
    }
    found |= {
        f"{size} of prose, only those that their program agrees with": curve(questions, size, 0, only_checked)
        for size in sizes
    }
    found |= {f"{size} of prose {SHIPPED}": curve(questions, size, 0, votes_of) for size in sizes}
    return found


def gains(found: dict[str, Curve], name: str) -> list[float]:
    """Differences of each question from votes on prose that cost as many tokens."""
    prose = {curve.tokens: curve.accuracies for name, curve in found.items() if name.endswith("of prose")}
    accuracies, tokens = found[name]
    return [here - there for here, there in zip(accuracies, at_tokens(prose, tokens), strict=True)]


def at_tokens(votes: Mapping[float, Sequence[float]], tokens: float) -> Sequence[float]:
    """Accuracies of the questions at a number of tokens: between those of two votes by their tokens, or of the nearest.

    The votes are in the order of their tokens.
    """
    for (less, before), (more, after) in pairwise(votes.items()):
        if less <= tokens <= more:
            share = (tokens - less) / (more - less) if more > less else 0.0
            return [(1 - share) * low + share * high for low, high in zip(before, after, strict=True)]
    return votes[min(votes) if tokens < min(votes) else max(votes)]


def interval(differences: Sequence[float], clusters: Sequence[object] | None = None) -> str:
    low, high = paired_interval(differences, clusters or range(len(differences)))
    return points(100 * mean(differences), 100 * low, 100 * high)


def points(value: float, low: float, high: float) -> str:
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


class Ballots(NamedTuple):
    """Samples of a question, and what each votes for."""

    samples: tuple[Sample, ...]
    answers: tuple[SampleAnswer, ...]


Stop = Callable[[tuple[SampleAnswer, ...]], int]  # how many of the ballots a vote takes


def fixed(size: int) -> Stop:
    return lambda _: size


def adaptive(least: int, most: int) -> Stop:
    """The rounds of `--votes auto:A..B`."""
    votes = Votes(least, most, checks=True)

    def taken(answers: tuple[SampleAnswer, ...]) -> int:
        size = 0
        while more := Tally(votes, answers[:size]).missing_samples:
            size += more
        return size

    return taken


def until_checked(times: int) -> Stop:
    """Until so many replies and programs give the leading answer."""

    def taken(answers: tuple[SampleAnswer, ...]) -> int:
        for size in range(1, len(answers)):
            leader = Tally(Votes(1, len(answers), checks=True), answers[:size]).winner
            if leader and min(leader.replies, leader.programs) >= times:
                return size
        return len(answers)

    return taken


def stop_rules(size: int) -> dict[str, tuple[Stop, bool]]:
    """By name, how a vote of up to `size` ends, and whether a greedy reply is its first ballot."""
    rules: dict[str, tuple[Stop, bool]] = {f"{k} samples": (fixed(k), False) for k in range(2, size + 1)}
    for begin, is_greedy in (("", False), ("greedy first, ", True)):
        rules |= {f"{begin}auto:{least}..{size}": (adaptive(least, size), is_greedy) for least in range(2, size)}
        rules[f"{begin}up to {size}, to the first checked answer"] = until_checked(1), is_greedy
        rules[f"{begin}up to {size}, to the second checked answer"] = until_checked(2), is_greedy
    return rules


def ballots(samples: Sequence[Sample]) -> Ballots:
    answers = list[SampleAnswer]()
    for sample in samples:
        answer = None if sample.finish_reason == "repetition" else sample.answer
        program = None if sample.program is None else Program(sample.program, sample.program_output)
        tally = Tally(Votes(1, 1)).add(answer, sample.basis == "stated", program)
        answers += tally.answers
    return Ballots(tuple(samples), tuple(answers))


def replay(question: Drawn, rules: Mapping[str, tuple[Stop, bool]]) -> dict[str, tuple[float, float]]:
    """Accuracy and tokens of votes on a question by each rule, over all orders of its samples."""
    drawn = ballots([*question.greedy, *question.prose])
    size = len(question.prose)

    @cache
    def vote(taken: frozenset[int]) -> tuple[float, int]:
        samples = [drawn.samples[place] for place in sorted(taken)]
        [right] = majorities([votes_of(samples)])[len(samples)]
        return right, sum(cost(sample, has_program=True) for sample in samples)

    found = {}
    for name, (stop, is_greedy) in rules.items():
        first = (0,) if is_greedy else ()
        outcomes = []
        for order in permutations(range(1, size + 1), size - len(first)):
            places = first + order
            taken = stop(tuple(drawn.answers[place] for place in places))
            outcomes.append(vote(frozenset(places[:taken])))
        right, tokens = zip(*outcomes, strict=True)
        found[name] = mean(right), mean(tokens)
    return found


def stop_curves(questions: Sequence[Drawn]) -> dict[str, Curve]:
    size = len(questions[0].prose)
    greedy = [sample for drawn in questions for sample in drawn.greedy]
    found = {GREEDY: Curve([sample.correct for sample in greedy], mean(s.completion_tokens for s in greedy))}
    found |= {f"majority of {k}": curve(questions, k, 0) for k in (1, 2, size)}
    rules = stop_rules(size)
    outcomes = [replay(drawn, rules) for drawn in questions]
    for name in rules:
        accuracies, tokens = zip(*(outcome[name] for outcome in outcomes), strict=True)
        found[name] = Curve(list(accuracies), mean(tokens))
    return found


def stop_table(models: Mapping[str, Sequence[Drawn]]) -> str:
    """A table for each model, and one for all of them if they are several."""
    size = max(len(drawn.prose) for questions in models.values() for drawn in questions)
    today = TODAY.format(samples=size)
    found = {model: stop_curves(questions) for model, questions in models.items()}
    count = min(map(len, models.values()))
    lines = [fill(STOPS_INTRODUCTION.format(questions=count, samples=size, day=date.today()), 120)]
    if len(found) > 1:
        several = list(found.values())
        found["all"] = {name: pooled([curves[name] for curves in several]) for name in several[0]}
    for model, curves in found.items():
        lines += ["", STOPS_HEAD.format(model=model, today=today)]
        samples = {
            curves[name].tokens: curves[name].accuracies for name in (f"{k} samples" for k in range(2, size + 1))
        }
        clusters = [place % count for place in range(len(curves[GREEDY].accuracies))]
        for name, (accuracies, tokens) in sorted(curves.items(), key=lambda item: item[1].tokens):
            cells = [name, f"{mean(accuracies):.3f}", f"{tokens:.0f}"]
            for other in (curves[GREEDY].accuracies, curves[today].accuracies, at_tokens(samples, tokens)):
                differences = [a - b for a, b in zip(accuracies, other, strict=True)]
                cells.append(interval(differences, clusters) if any(differences) else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pooled(several: Sequence[Curve]) -> Curve:
    return Curve(list(chain.from_iterable(each.accuracies for each in several)), mean(each.tokens for each in several))


def draw_for_stops(checked: Run, greedy: Run) -> list[Drawn]:
    """The questions that have all samples and a greedy reply, in the order of their numbers."""
    samples, replies = (group_by_question(rescored(run)[0]) for run in (checked, greedy))
    size = max(map(len, samples.values()))
    drawn = [Drawn(each, [], replies[id]) for id, each in samples.items() if len(each) == size and id in replies]
    return sorted(drawn, key=lambda question: str(question.prose[0].id))


def rows(found: dict[str, Curve]) -> Iterator[str]:
    for name, (accuracies, tokens) in sorted(found.items(), key=lambda item: item[1].tokens):
        has_gain = name != GREEDY and not name.endswith("of prose") and tokens >= found["1 of prose"].tokens
        cells = name, f"{mean(accuracies):.3f}", f"{tokens:.0f}", interval(gains(found, name)) if has_gain else ""
        yield f"| {' | '.join(cells)} |"


def draw(*runs: Run) -> list[Drawn]:
    """The questions of two or three runs with all samples; a program of the second answers only what it prints."""
    prose, programs, *others = (group_by_question(rescored(run)[0]) for run in runs)
    greedy = others[0] if others else {}
    sizes = [max(map(len, samples.values())) for samples in (prose, programs)]

    def as_program(sample: Sample) -> Sample:
        program = run_program(find_monty(), Event(), sample.text)
        return replace(sample, answer=None, program_output=program and program.output)

    return [
        Drawn(samples, [as_program(sample) for sample in programs[id]], greedy.get(id, []))
        for id, samples in prose.items()
        if [len(samples), len(programs.get(id, ()))] == sizes
    ]


def is_right(sample: Sample) -> bool:
    [result] = question_results({sample.id: [sample]}).values()
    return result.correct


def introduce(model: str, questions: Sequence[Drawn]) -> str:
    samples = [sample for drawn in questions for sample in drawn.prose]
    checked = [answer.is_checked for sample in samples for answer in votes_of([sample]).vote.tally.answers]
    by_program = {
        key: mean(sample.correct for sample, is_checked in zip(samples, checked, strict=True) if is_checked is key)
        for key in (True, False)
    }
    votes = by_check([drawn.prose for drawn in questions])
    text = INTRODUCTION.format(
        model=model,
        questions=len(questions),
        day=date.today(),
        prose=mean(sample.correct for sample in samples),
        program=mean(is_right(sample) for drawn in questions for sample in drawn.programs),
        checked=mean(checked),
        if_checked=by_program[True],
        if_not=by_program[False],
        no_program=sum(sample.program is None for sample in samples),
        samples=len(samples),
        votes=len(questions[0].prose),
        trusted=votes[True].n,
        if_trusted=votes[True].accuracy.value,
        others=votes[False].n,
        if_other=votes[False].accuracy.value,
    )
    return fill(text, 120)


def recorded() -> dict[str, Recorded]:
    """The models in RESULTS.md by name."""
    models = {}
    for heading, text in read_sections().items():
        if heading.startswith(HEADING):
            [questions] = re.findall(r"(\d+) questions", text)
            votes = {name: list(map(float, re.findall(r"[-+]?[\d.]+", cells))) for name, cells in ROW.findall(text)}
            models[heading.removeprefix(f"{HEADING}: ")] = Recorded(int(questions), votes)
    return models


def mean_gain(models: Collection[Recorded], name: str) -> str:
    """Difference and 95% interval of a vote over the questions of all models, which are independent."""
    total = sum(questions for questions, _ in models)
    gain, squares = 0.0, 0.0
    for questions, votes in models:
        _, _, difference, low, high = votes[name]
        gain += questions / total * difference
        squares += (questions / total * (high - low) / 2) ** 2
    return points(gain, gain - squares**0.5, gain + squares**0.5)


def plot(models: dict[str, Recorded], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (model, (_, votes)) in zip(
        figure.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True
    ):
        for label, names, style in LINES:
            shown = sorted((values[1], values[0]) for name, values in votes.items() if re.fullmatch(names, name))
            if shown:
                axes.plot(*zip(*shown, strict=True), style, markersize=4, label=label)
        axes.set(title=model, xlabel="tokens per question", ylabel="accuracy")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--stops", type=Path, nargs="+")
    options = parser.parse_args()
    if options.plot:
        models = recorded()
        plot(models, options.plot)
        for size in (2, 3, 4):
            print(size, mean_gain(models.values(), f"{size} of prose {SHIPPED}"))
        return
    if options.stops:
        pairs = [require_run(path) for path in options.stops]
        table = stop_table(
            {
                checked.model: draw_for_stops(checked, greedy)
                for checked, greedy in zip(pairs[::2], pairs[1::2], strict=True)
            }
        )
        print(table)
        if not options.dry_run:
            record_section(STOPS, table)
        return
    runs = [require_run(path) for path in options.runs]
    questions = draw(*runs)
    table = "\n".join([introduce(runs[0].model, questions), "", HEAD, *rows(curves(questions))])
    print(table)
    if not options.dry_run:
        record_section(f"{HEADING}: {runs[0].model}", table)


if __name__ == "__main__":
    main()
