"""Replay recorded evaluations with votes weighted by confidence, and compare them with the project's own votes.

Usage: python benchmarks/confidence.py RUN... [--dry-run]
       python benchmarks/confidence.py --trace eval TASK --samples 32 -o RUN ...

RUN is a file of `cerebrum eval --samples K`; its samples vote again in ORDERS seeded orders. Confidences are
`probability` and `lowest_window` of each sample. With `--trace`, the command that follows also writes RUN.trace, with
two figures that need the whole distribution of each token: self-certainty (arXiv:2502.18581), averaged over the reply,
and the lowest mean of 16 tokens' confidences as DeepConf defines them (arXiv:2508.15260), from the 20 likeliest tokens.

majority      All of k samples; the answer with the most wins, ties as in `--votes K`.
votes         `--votes K`, one sample after another or all at once, which stops when no other answer can win.
ties          As `majority`, but the probability also breaks ties of answers that have one sample each.
sum, softmax  A vote weighs its sample's confidence c, or exp(c / T), where T is the standard deviation of c in the
              vote: CISC (arXiv:2502.06233).
top           The half, or tenth, of k samples with the highest confidence votes, weighted by it: DeepConf, offline.
auto          `--votes auto:3..16`; `auto:2..16 at 0.85` stops when two samples agree, without any weights.
auto at P     As `auto`, but a vote stops when the Beta posterior of its weights reaches P, after one sample at the
              earliest: ReASC (arXiv:2601.02970). Weights have a mean of 1 in the run; calibrated ones are exp(z), where
              z counts standard deviations of the run, or of another one (`as in RUN`).
short-3       The first 3 of k samples to finish vote, and the others stop; ties go to the shortest (arXiv:2505.17813).

Tokens are all that were generated, those of stopped samples included; samples that run at once are equally fast.
Accuracies and tokens are averaged over the orders of a question; parentheses are paired bootstrap intervals over the
questions. Bold methods are at least as accurate as the baseline with at most 0.8 of its tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from harness import Row, argument_parser, record

from cerebrum_cli.answers.canonical import canonical
from cerebrum_cli.model.tally import AUTO

Array = npt.NDArray[Any]

ORDERS, RESAMPLES, SEED = 100, 10_000, 1
WINDOW, LIKELIEST = 16, 20  # tokens
SAVING = 0.8
PAIRS = ((4, 5), (8, 10))  # 4/5 of a number of votes
AUTO_VOTES = f"auto:{AUTO.minimum}..{AUTO.maximum}"
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)


class Question(NamedTuple):
    """The samples of a question in several orders, one a row: answers from 0 or -1, marks, tokens and confidences."""

    answers: Array
    correct: Array
    tokens: Array
    confidences: dict[str, Array]

    def first(self, k: int) -> Question:
        confidences = {name: values[:, :k] for name, values in self.confidences.items()}
        return Question(self.answers[:, :k], self.correct[:, :k], self.tokens[:, :k], confidences)


class Scale(NamedTuple):
    """Mean and standard deviation of a confidence in a run, and the mean of exp(z)."""

    mean: float
    deviation: float
    power: float


class Run(NamedTuple):
    questions: list[Question]
    scales: dict[str, Scale]


Outcome = tuple[Array, Array]
"""Whether the vote of each order is right, and its tokens."""

Method = Callable[[Question], Outcome]
Weigh = Callable[[Question], Array]


# Votes.


def scores(question: Question, weights: Array) -> Array:
    """Sum of the weights of each answer, by order, number of samples and answer; the first answer leads a tie."""
    labels = np.arange(question.answers.max(initial=0) + 1)
    votes = (question.answers[..., None] == labels) * weights[..., None]
    totals = votes.cumsum(axis=1)
    firsts = np.where(votes > 0, np.arange(weights.shape[1])[:, None], np.inf).min(axis=1)
    earliest = totals - 1e-9 * np.minimum(firsts, 999)[:, None]
    return np.asarray(np.where(totals > 0, earliest, -1.0))


def winner_is_right(question: Question, totals: Array) -> Array:
    """Whether the answer with the highest total is right, by order: its first sample decides; none is wrong."""
    best = totals.argmax(axis=1)
    same = (question.answers == best[:, None]) & (totals.max(axis=1) > 0)[:, None]
    return np.asarray(np.take_along_axis(question.correct, same.argmax(axis=1)[:, None], 1)[:, 0] & same.any(axis=1))


def counts(question: Question) -> Array:
    """As `scores` of equal weights; the sum of probabilities breaks a tie of several samples."""
    equal = scores(question, np.ones_like(question.tokens, float))
    sums = scores(question, question.confidences["probability"])
    return np.asarray(equal + np.where(equal > 1.5, 1e-3 * sums, 0))


def counts_and_ties(question: Question) -> Array:
    """As `counts`, but the probability also breaks a tie of single samples."""
    return counts(question) + 1e-3 * scores(question, question.confidences["probability"]).clip(0)


def weighted(name: str, kind: str, run: Run) -> Weigh:
    """Scores of a confidence; calibrated weights of the run have a mean of 1."""
    scale = run.scales[name]

    def weigh(question: Question) -> Array:
        values = question.confidences[name]
        if kind == "sum":
            return scores(question, values / scale.mean)
        if kind == "calibrated":
            return scores(question, np.exp((values - scale.mean) / scale.deviation) / scale.power)
        spread = np.maximum(values.std(axis=1, keepdims=True), 1e-9)
        return scores(question, np.exp((values - values.max(axis=1, keepdims=True)) / spread))

    return weigh


def vote(weigh: Weigh, k: int, level: float = 2.0, least: int = 1, stops: bool = False) -> Method:
    """The vote of k samples, or of those after which the posterior of the two best totals reaches a level.

    With `stops`, the vote also ends as soon as no other answer can win by count.
    """

    def method(question: Question) -> Outcome:
        part = question.first(k)
        totals = weigh(part)
        second, leader = np.moveaxis(np.sort(np.pad(totals.clip(0), ((0, 0), (0, 0), (2, 0))), axis=2)[..., -2:], 2, 0)
        samples = np.arange(1, k + 1)
        if weigh is counts:
            leader, second = leader.round(), second.round()
        done = (samples == k) | (samples >= least) & (posterior(leader, second) >= level - 1e-9)
        end = (done | (stops & (leader > second + k - samples))).argmax(axis=1)[:, None]
        at_end = np.take_along_axis(totals, end[..., None], 1)[:, 0]
        return winner_is_right(part, at_end), (part.tokens * (samples <= end + 1)).sum(axis=1)

    return method


def posterior(leader: Array, second: Array) -> Array:
    """Probability of more than 1/2 under Beta(leader + 1, second + 1)."""

    def integral(low: float, high: float) -> Array:
        x = low + (high - low) * (NODES + 1) / 2
        return np.asarray((x ** leader[..., None] * (1 - x) ** second[..., None]) @ NODE_WEIGHTS * (high - low))

    upper = integral(0.5, 1)
    return np.asarray(upper / (upper + integral(0, 0.5)))


def top(k: int, share: float, name: str) -> Method:
    """The vote of the most confident of k samples."""

    def method(question: Question) -> Outcome:
        part = question.first(k)
        values = part.confidences[name]
        limit = np.sort(values, axis=1)[:, -max(1, round(k * share))][:, None]
        kept = np.where(values >= limit, values, 0)
        return winner_is_right(part, scores(part, kept)[:, -1]), part.tokens.sum(axis=1)

    return method


def short(k: int, first: int = 3) -> Method:
    """The vote of the first of k samples that run at once to finish."""

    def method(question: Question) -> Outcome:
        part = question.first(k)
        by_length = part.tokens.argsort(axis=1, kind="stable")[:, :first]
        answers, correct, tokens = (np.take_along_axis(each, by_length, 1) for each in part[:3])
        end = tokens[:, -1:]
        chosen = Question(answers, correct, tokens, {})
        totals = scores(chosen, np.ones_like(tokens, float))[:, -1]
        return winner_is_right(chosen, totals), np.minimum(part.tokens, end).sum(axis=1)

    return method


def at_once(k: int) -> Method:
    """`--votes K` of samples that run at once: those that have not finished stop when no other answer can win."""

    def method(question: Question) -> Outcome:
        part = question.first(k)
        order = part.tokens.argsort(axis=1, kind="stable")
        answers, correct, tokens = (np.take_along_axis(each, order, 1) for each in part[:3])
        confidences = {name: np.take_along_axis(each, order, 1) for name, each in part.confidences.items()}
        _, finished = vote(counts, k, stops=True)(Question(answers, correct, tokens, confidences))
        last = (tokens.cumsum(axis=1) == finished[:, None]).argmax(axis=1)[:, None]
        used = np.minimum(part.tokens, np.take_along_axis(tokens, last, 1)).sum(axis=1)
        return vote(counts, k)(part)[0], used

    return method


# Comparisons.


def methods(run: Run, others: Mapping[str, Run]) -> Iterator[tuple[str, Method]]:
    """All methods by name; `others` are runs whose confidences calibrate weights."""
    for k in sorted({k for pair in PAIRS for k in pair}):
        yield f"majority of {k}", vote(counts, k)
        yield f"votes of {k}", vote(counts, k, stops=True)
        yield f"votes at once of {k}", at_once(k)
        yield f"short-3@{k}", short(k)
        yield f"ties by probability of {k}", vote(counts_and_ties, k)
        for name in run.scales:
            for kind in ("sum", "softmax"):
                yield f"{name}, {kind} of {k}", vote(weighted(name, kind, run), k)
            for share, text in ((0.5, "half"), (0.1, "tenth")):
                yield f"{name}, top {text} of {k}", top(k, share, name)
    yield AUTO_VOTES, vote(counts, AUTO.maximum, 0.9, AUTO.minimum, stops=True)
    yield "auto:2..16 at 0.85", vote(counts, AUTO.maximum, 0.85, 2, stops=True)
    for name in run.scales:
        for kind in ("sum", "calibrated"):
            for level in (0.9, 0.95):
                yield f"{name}, {kind}, auto at {level}", vote(weighted(name, kind, run), AUTO.maximum, level)
    for other, its in others.items():
        calibrated = weighted("probability", "calibrated", its)
        yield f"probability as in {other}, auto at 0.9", vote(calibrated, AUTO.maximum, 0.9)


def comparisons(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Methods and their baselines: with as many samples, with 5/4 of them, and adaptive ones."""
    for name in names:
        if "auto" in name and name != AUTO_VOTES:
            yield name, AUTO_VOTES
        for few, many in PAIRS:
            if name.endswith((f" of {few}", f"@{few}")) and not name.startswith(("majority", "votes")):
                baselines = f"majority of {few}", f"majority of {many}", f"votes of {many}", f"votes at once of {many}"
                yield from ((name, baseline) for baseline in baselines)


def table(results: Mapping[str, Mapping[str, Array]]) -> str:
    """A table with a column for each run: baselines as they are, and what differs from them."""
    shared = [name for name in next(iter(results.values())) if all(name in each for each in results.values())]
    lines = [["method", "against", *results], ["---"] * (len(results) + 2)]
    for name in shared:
        if name == AUTO_VOTES or name.startswith(("majority", "votes")):
            lines.append([name, "", *(figures(each[name]) for each in results.values())])
    for name, baseline in comparisons(shared):
        lines.append([name, baseline, *(compare(each[name], each[baseline]) for each in results.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(run: str, results: Mapping[str, Array], name: str, baseline: str) -> Row:
    """The ratio of accuracies, for RESULTS.md."""
    ours, peer = results[name], results[baseline]
    ratio = float(ours[:, 0].mean() / peer[:, 0].mean())
    cells = f"{figures(ours)}, {compare(ours, peer).replace('**', '')}", figures(peer)
    return Row(f"accuracy of a vote on {run}, {name} / {baseline}", *cells, ratio, ">= 1.0")


def figures(outcomes: Array) -> str:
    accuracy, tokens = outcomes.mean(axis=0)
    return f"{accuracy:.3f} with {tokens:.0f} tokens"


def measure(run: Run, others: Mapping[str, Run]) -> dict[str, Array]:
    """Accuracy and tokens of each question by method."""
    return {
        name: np.array([(right.mean(), tokens.mean()) for right, tokens in map(method, run.questions)])
        for name, method in methods(run, others)
    }


def compare(ours: Array, baseline: Array) -> str:
    """Difference in accuracy and ratio of tokens, in bold if the method passes."""
    resampled = np.random.default_rng(SEED).integers(0, len(ours), (RESAMPLES, len(ours)))
    gains = (ours - baseline)[:, 0]
    low, high = np.percentile(gains[resampled].mean(axis=1), (2.5, 97.5))
    ratio = ours[:, 1].sum() / baseline[:, 1].sum()
    least, most = np.percentile(ours[:, 1][resampled].sum(1) / baseline[:, 1][resampled].sum(1), (2.5, 97.5))
    bold = "**" if gains.mean() >= 0 and round(ratio, 2) <= SAVING and most < 1 else ""
    return f"{bold}{gains.mean():+.3f}{bold} ({low:+.3f} to {high:+.3f}), x{ratio:.2f} ({least:.2f} to {most:.2f})"


# Runs.


def read(path: Path) -> Run:
    """The questions of a run that have all samples."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    trace = {each["seed"]: each for each in json_lines(Path(f"{path}.trace"))}
    for sample in json_lines(path):
        groups.setdefault(sample["id"], []).append({"lowest_window": 0.0, **sample, **trace.get(sample["seed"], {})})
    size = max(map(len, groups.values()))
    complete = [group for group in groups.values() if len(group) == size and group[0]["finish_reason"] != "skipped"]
    names = ["probability", "lowest_window", *(["self_certainty", "deepconf"] if trace else [])]
    values = {name: np.array([[sample[name] for sample in group] for group in complete]) for name in names}
    orders = np.random.default_rng(SEED).permuted(np.tile(np.arange(size), (len(complete), ORDERS, 1)), axis=2)
    questions = []
    for index, (group, order) in enumerate(zip(complete, orders, strict=True)):
        correct, tokens = (np.array([each[key] for each in group])[order] for key in ("correct", "completion_tokens"))
        confidences = {name: each[index][order] for name, each in values.items()}
        questions.append(Question(labels(group)[order], correct, tokens, confidences))
    return Run(questions, {name: scale_of(each) for name, each in values.items()})


def scale_of(values: Array) -> Scale:
    mean, deviation = values.mean(), values.std()
    return Scale(mean, deviation, np.exp((values - mean) / deviation).mean())


def labels(samples: Sequence[dict[str, Any]]) -> Array:
    """A number for each answer's normal form; -1 without one, and for a reply that ended in a repetition."""
    numbers: dict[str, int] = {}
    silent = [each["answer"] is None or each["finish_reason"] == "repetition" for each in samples]
    forms = [None if none else canonical(each["answer"]) for none, each in zip(silent, samples, strict=True)]
    return np.array([-1 if form is None else numbers.setdefault(form, len(numbers)) for form in forms])


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


# Figures that need all logits.


class TracedLogprob(float):
    """A token's log probability, with its self-certainty and its confidence as DeepConf defines it."""

    certainty: float
    likeliest: float


def trace_command(arguments: list[str]) -> None:
    """Run `cerebrum` in this process, and write the confidences of each reply beside the run."""
    from cerebrum_cli.__main__ import main as run

    with Path(f"{arguments[arguments.index('-o') + 1]}.trace").open("a", encoding="utf-8") as output:
        add_trace(output)
        sys.argv = ["cerebrum", *arguments]
        run()


def add_trace(output: IO[str]) -> None:
    """Replace what computes log probabilities and what collects replies: what is between them passes objects on."""
    from cerebrum_cli.core.events import Event, FinishEvent, TokenEvent
    from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
    from cerebrum_cli.model import concurrent_rows
    from cerebrum_cli.model.reply import Reply

    plain = LlamaBackend.logprob

    def logprob(backend: LlamaBackend, row: int, token: int) -> float:
        traced = TracedLogprob(plain(backend, row, token))
        logits: Array = backend.logits(row)
        total = float(logits[token]) - traced
        traced.certainty = total - float(logits.mean(dtype=float)) - log(len(logits))
        traced.likeliest = total - float(np.partition(logits, -LIKELIEST)[-LIKELIEST:].mean())
        return traced

    class TracingReply(Reply):
        def __init__(self) -> None:
            super().__init__()
            self.traced: list[TracedLogprob] = []

        def emit(self, event: Event) -> None:
            super().emit(event)
            if isinstance(event, TokenEvent):
                self.traced += (each for each in event.logprobs if isinstance(each, TracedLogprob))
            elif isinstance(event, FinishEvent) and event.reason != "cancelled":
                print(json.dumps({"seed": event.seed, **traced_figures(self.traced)}), file=output)

    LlamaBackend.logprob = logprob  # type: ignore[assignment, method-assign]
    setattr(concurrent_rows, "Reply", TracingReply)  # noqa: B010


def traced_figures(tokens: list[TracedLogprob]) -> dict[str, float]:
    confidences = [each.likeliest for each in tokens] or [0.0]
    windows = [confidences[at : at + WINDOW] for at in range(max(1, len(confidences) - WINDOW + 1))]
    certainty = float(np.mean([each.certainty for each in tokens] or [0.0]))
    return {"self_certainty": certainty, "deepconf": float(min(map(np.mean, windows)))}


def main() -> None:
    """Replay runs, and record the table; or trace a command."""
    if "--trace" in sys.argv[1:2]:
        trace_command(sys.argv[2:])
        return
    parser = argument_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run file of `cerebrum eval`")
    options = parser.parse_args()
    runs = {path.stem: read(path) for path in options.runs}
    results = {name: measure(run, runs) for name, run in runs.items()}
    print(table(results))
    pairs = (("probability, softmax of 8", "majority of 10"), ("probability, calibrated, auto at 0.9", AUTO_VOTES))
    record([row(run, each, *pair) for run, each in results.items() for pair in pairs], options.dry_run)


if __name__ == "__main__":
    main()
