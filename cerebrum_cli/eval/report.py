"""The report of a run: accuracy, majority votes and pass@k with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from cerebrum_cli.answers.equality import equals_reference
from cerebrum_cli.core.ask import Votes
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.eval.answered import Answered
from cerebrum_cli.eval.estimates import Estimate, estimate, pass_at, vote_sizes
from cerebrum_cli.replies.tally import Tally, comes_to

MAJORITY, WITH_PROGRAMS = "maj", "checked"  # kinds of votes


@frozen
class VoteReport:
    """The accuracy of a kind of vote of the first `samples` of each question, and its mean number of tokens."""

    kind: str
    samples: int
    accuracy: Estimate
    tokens: float


@frozen
class Checked:
    """How many questions have an answer that a reply and a program came to, and how often it is right."""

    n: int
    accuracy: Estimate


@frozen
class Report:
    """Estimates of a run of `samples` samples a question.

    `n` is the number of questions that were answered. `accuracy` is the mean over these. `votes` and `pass_at` are over
    those that have all samples, for each k of `vote_sizes`; empty if there are none. Of all samples, `no_answer` is the
    share of those that ended without an answer, `truncated` of those that reached a limit before; `tokens` is their
    mean. `checked` are the votes of all samples, of a run with programs.
    """

    n: int
    samples: int
    accuracy: Estimate
    votes: tuple[VoteReport, ...]
    pass_at: Mapping[int, Estimate]
    no_answer: float
    truncated: float
    tokens: float
    checked: Checked | None = None

    def votes_of(self, kind: str) -> list[VoteReport]:
        return [vote for vote in self.votes if vote.kind == kind]

    @property
    def object(self) -> JsonDict:
        object: JsonDict = {
            "n": self.n,
            "samples": self.samples,
            "accuracy": self.accuracy.value,
            "interval": self.accuracy.interval,
            "maj": {vote.samples: asdict(vote.accuracy) for vote in self.votes_of(MAJORITY)},
            "pass_at": {k: asdict(found) for k, found in self.pass_at.items()},
            "no_answer": self.no_answer,
            "truncated": self.truncated,
            "tokens_per_sample": self.tokens,
        }
        if self.votes_of(WITH_PROGRAMS):
            object |= {"votes": [asdict(vote) for vote in self.votes], "checked": self.checked and asdict(self.checked)}
        return object


def summarize(rows: Sequence[Answered], samples: int, votes: bool = True, checks: bool = False) -> Report:
    """Summarize a run, which may be in progress, with at least one row.

    `samples` is how many of them each question gets. Programs are not put to `votes`. If it `checks`, programs that
    were written after the samples vote, too.
    """
    complete = [row for row in rows if len(row.verdicts) == samples]
    kinds = (MAJORITY, WITH_PROGRAMS) if checks else (MAJORITY,)
    taken = [verdict for row in rows for verdict in row.verdicts]
    truncated = sum(verdict.is_truncated for verdict in taken)
    return Report(
        n=len(rows),
        samples=samples,
        accuracy=estimate([row.accuracy for row in rows]),
        votes=tuple(vote for kind in kinds for vote in vote_reports(complete, kind)) if votes and complete else (),
        pass_at=pass_estimates(complete, samples) if complete else {},
        no_answer=(sum(verdict.has_no_answer for verdict in taken) - truncated) / len(taken),
        truncated=truncated / len(taken),
        tokens=sum(row.tokens for row in rows) / len(taken),
        checked=checked_votes(complete) if checks else None,
    )


def vote_reports(rows: Sequence[Answered], kind: str) -> list[VoteReport]:
    """Votes of a kind on questions of as many samples each."""
    results = [vote_results(row, kind == WITH_PROGRAMS) for row in rows]
    tokens = sum(row.tokens for row in rows)
    if kind == WITH_PROGRAMS:
        tokens += sum(row.program_tokens for row in rows)
    each = tokens / sum(len(row.verdicts) for row in rows)
    return [VoteReport(kind, k, estimate([result[k].is_correct for result in results]), k * each) for k in results[0]]


@frozen
class VoteResult:
    """The normal form of the answer that won a vote, None without any, and whether it is correct."""

    form: str | None
    is_correct: bool
    is_checked: bool = False


def vote_results(row: Answered, with_programs: bool = True) -> dict[int, VoteResult]:
    """The votes of the first k samples, for every k of `vote_sizes`.

    Of several samples, one that ended in a repetition votes for nothing. Programs vote, too, unless it is without them.
    """
    tally, results = Tally(Votes(1, len(row.verdicts))), {}
    sizes = vote_sizes(len(row.verdicts))
    for k, verdict in enumerate(row.verdicts, 1):
        is_repetition = verdict.finish_reason == "repetition" and len(row.verdicts) > 1
        answer = None if is_repetition else verdict.answer
        tally = tally.add(answer, verdict.is_stated, verdict.program if with_programs else None)
        if k in sizes:
            results[k] = vote_result(row, tally)
    return results


def vote_result(row: Answered, tally: Tally) -> VoteResult:
    winner, number = tally.winner, tally.winning_sample
    if winner is None or number is None:
        return VoteResult(None, False)
    verdict = row.verdicts[number]
    is_correct = verdict.is_correct
    if tally.answers[number].form != winner.form:  # only programs come to it
        output = (verdict.program.output if verdict.program else None) or ""
        is_correct = any(
            equals_reference(winner.answer, reference) or comes_to(output, reference) for reference in row.references
        )
    return VoteResult(winner.form, is_correct, winner.is_checked)


def wrong_answers(rows: Sequence[Answered], has_votes: bool) -> Iterator[tuple[Answered, str | None]]:
    """Yield the questions that were answered wrongly, with the answer of the vote, or of the first of all programs."""
    for row in rows:
        if len(row.verdicts) == 1 or not has_votes:
            if not any(verdict.is_correct for verdict in row.verdicts):
                yield row, row.verdicts[0].answer
        elif not (vote := vote_results(row)[len(row.verdicts)]).is_correct:
            yield row, vote.form


def checked_votes(rows: Sequence[Answered]) -> Checked | None:
    """The votes of all samples whose answer a reply and a program came to; None without any."""
    votes = [vote_results(row)[len(row.verdicts)] for row in rows]
    right = [float(vote.is_correct) for vote in votes if vote.is_checked]
    return Checked(len(right), estimate(right)) if right else None


def pass_estimates(rows: Sequence[Answered], samples: int) -> dict[int, Estimate]:
    """pass@k of questions with `samples` samples each."""
    correct = [sum(verdict.is_correct for verdict in row.verdicts) for row in rows]
    return {k: estimate([pass_at(samples, count, k) for count in correct]) for k in vote_sizes(samples)}
