"""Count majority votes: which answer leads, whether more samples can change that, how many to run.

Self-consistency is from Wang et al. 2022 (arXiv:2203.11171); stopping early from Aggarwal et al. 2023, "Let's Sample
Step by Step: Adaptive-Consistency" (arXiv:2305.11860). Samples with a program vote for what it printed, too, and an
answer that both a reply states and a program printed outvotes all others; PROVE (arXiv:2410.12608) counts no others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import comb
from typing import NamedTuple

from cerebrum_cli.core.ask import Votes
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import format_count, one_line

_LONG = re.compile(r"-?\d+\.\d{10,}", re.ASCII)  # floats have 15 to 17 digits
_LABEL = re.compile(
    r"(?i)[^\w{]*(?![A-H]:)[a-z][^,;=\[\]{}]*(?:(?<=\S):(?=[*_]*\s)|(?<=[a-z)]):|\s(?:is|are|equals)(?=[*_]*\s))"
    r"[*_]*\s*((?!.*:\s)\S.*?)\.?"
)
# The value of a list, a tuple, a set or a dictionary of one.
_ALONE = re.compile(r"""\A[\[({]\s*(?:['"]?[\w ]+['"]?:\s*)?(['"]?)([^\[\](){},;:'"]+?)\1,?\s*[\])}]\Z""")
_AMOUNT = re.compile(r"\d[\d.,/]*")
_NUMBER_FORM = re.compile(r"-?\d+(?:/\d+)?")
_WORD = re.compile(r"[^\W\d_]{2,}")
_PRINTED = {"True": "yes", "False": "no", **dict.fromkeys(("", "None", "nan", "inf", "-inf"))}


class Program(NamedTuple):
    """A program that computes an answer, and the last line that it printed.

    `output` is None if it failed, or `is_unsupported`: if it needs a part of Python that Monty lacks.
    """

    code: str
    output: str | None
    is_unsupported: bool = False

    @property
    def answer(self) -> str | None:
        """Its output as an answer, without a label and the error of its arithmetic; None if it is none."""
        value = _LONG.sub(lambda number: f"{float(number[0]):.12g}", _value(self.output or ""))
        return _PRINTED.get(value, value)


@frozen
class SampleAnswer:
    """A finished sample: its final answer as the model wrote it, its normal form, and the answer of its program.

    `number` is that of one which states no answer. The program's form is that of the reply if the program comes to its
    answer.
    """

    answer: str | None
    form: str | None
    is_stated: bool
    computed: str | None
    computed_form: str | None
    number: str | None = None

    @property
    def is_checked(self) -> bool:
        """Whether its program comes to the answer of its reply."""
        return self.form is not None and self.form == self.computed_form


@frozen
class Count:
    """One candidate as most of its samples wrote it, and their number.

    A sample counts once, whether its reply or its program comes to the candidate, or both.
    """

    answer: str
    count: int
    form: str
    stated: int = 0
    replies: int = 0
    programs: int = 0

    @property
    def is_checked(self) -> bool:
        """Whether both a reply and a program come to it, of one sample or of two."""
        return bool(self.replies and self.programs)

    @property
    def rank(self) -> tuple[bool, int, int]:
        return self.is_checked, self.count, self.stated

    @property
    def sources(self) -> str:
        """How many replies and programs come to it."""
        return f"{format_count(self.replies, 'reply', 'replies')} and {format_count(self.programs, 'program')}"


@frozen
class Tally:
    """Answers of the first samples, in their order: the outcome does not depend on which finishes first.

    `read` has each as it is alone. If most of them are numbers, the number of a line is what counts of it.
    """

    votes: Votes
    read: tuple[SampleAnswer, ...] = ()

    @property
    def answers(self) -> tuple[SampleAnswer, ...]:
        numeric = sum(_NUMBER_FORM.fullmatch(sample.form or "") is not None for sample in self.read)
        if 2 * numeric <= sum(sample.form is not None for sample in self.read) or numeric == len(self.read):
            return self.read
        return tuple(map(_as_number, self.read))

    def add(
        self,
        answer: str | None,
        is_stated: bool = False,
        program: Program | None = None,
        number: str | None = None,
    ) -> Tally:
        from cerebrum_cli.answers.equality import canonical  # its patterns take long to compile

        form = None if answer is None else canonical(answer)
        computed = program and program.answer
        agrees = program is not None and answer is not None and comes_to(program.output or "", answer)
        computed_form = form if agrees else computed and canonical(computed)
        sample = SampleAnswer(answer, form, is_stated, computed, computed_form, number)
        return replace(self, read=(*self.read, sample))

    @property
    def samples(self) -> int:
        return len(self.read)

    @property
    def counts(self) -> tuple[Count, ...]:
        """Candidates, best first.

        Checked ones come first, then those of more samples, then those that more samples state or compute, then that of
        the earlier sample.
        """
        groups: dict[str, list[SampleAnswer]] = {}
        for sample in self.answers:
            for form in dict.fromkeys((sample.form, sample.computed_form)):
                if form is not None:
                    groups.setdefault(form, []).append(sample)
        counts = [_count(form, group) for form, group in groups.items()]
        return tuple(sorted(counts, key=lambda count: count.rank, reverse=True))

    @property
    def winner(self) -> Count | None:
        return next(iter(self.counts), None)

    @property
    def result(self) -> str:
        """The two leading answers: "4/5: 5 of 6 votes (83%), decided early of 8; runner-up 0.9: 1".

        With programs: "4/5: 5 replies and 4 programs of 6 samples; runner-up 0.9: 0 replies and 1 program".
        """
        samples = format_count(self.samples, "sample")
        leading = self.counts[:2]
        if not leading:
            return f"no final answer in {samples}"
        if self.votes.checks:
            votes = [count.sources for count in leading]
            votes[0] += f" of {samples}"
        else:
            votes = [str(count.count) for count in leading]
            votes[0] += f" of {self.samples} votes ({leading[0].count / self.samples:.0%})"
        if self.is_decided and self.samples < self.votes.maximum:
            votes[0] += f", decided early of {self.votes.maximum}"
        return "; runner-up ".join(
            f"{one_line(count.answer)}: {text}" for count, text in zip(leading, votes, strict=True)
        )

    @property
    def tied(self) -> tuple[Count, ...]:
        """The leading answers if only their order decides between several, else none."""
        counts = self.counts
        leading = tuple(count for count in counts if count.rank == counts[0].rank)
        if len(leading) == 1:
            return ()
        return leading

    @property
    def winning_sample(self) -> int | None:
        """The first sample whose reply has the leading answer, or, if none has, whose program has it."""
        if self.winner is None:
            return None
        forms = [answer.form for answer in self.answers]
        if self.winner.form not in forms:
            forms = [answer.computed_form for answer in self.answers]
        return forms.index(self.winner.form)

    @property
    def agreement(self) -> float:
        if self.winner is None:
            return 0.0
        return self.winner.count / self.samples

    @property
    def is_decided(self) -> bool:
        """Whether the outcome is certain, or, if `votes` is adaptive, likely enough."""
        return self._is_decided_with(0)

    @property
    def missing_samples(self) -> int:
        """Samples to start if none is running: all, or, if `votes` is adaptive, the minimum, then as few as may do."""
        if self.is_decided:
            return 0
        if self.samples < self.votes.minimum:
            return self.votes.minimum - self.samples
        more = 1
        while not self._is_decided_with(more):
            more += 1
        return more

    def _is_decided_with(self, more: int) -> bool:
        """Whether the vote is decided if `more` samples, replies and programs, all agree with the leader."""
        votes, new = self.votes, Count("", 0, "")
        first, *others = (*self.counts, new)
        left = votes.maximum - self.samples - more
        if left <= 0:
            return True
        if votes.takes_all:
            return False
        leader = more
        if first.is_checked or not votes.checks:
            leader += first.count
        second = max((count.count for count in others), default=0)
        if leader > second + left:  # also if the second is not checked: it may be with the next sample
            return True
        is_adaptive = votes.minimum < votes.maximum  # a likely outcome is enough, it need not be certain
        return is_adaptive and self.samples + more >= votes.minimum and is_lead_certain(leader, second)


def _as_number(sample: SampleAnswer) -> SampleAnswer:
    from cerebrum_cli.answers.equality import canonical

    if sample.number is None or sample.is_checked or _NUMBER_FORM.fullmatch(sample.form or ""):
        return sample
    return replace(sample, answer=sample.number, form=canonical(sample.number))


def _count(form: str, group: Sequence[SampleAnswer]) -> Count:
    """The count of a form, from the samples whose replies or programs come to it."""
    replies = [sample for sample in group if sample.form == form]
    programs = [sample for sample in group if sample.computed_form == form]
    # Of two spellings that are equally frequent, the first is shown.
    spellings = Counter(sample.answer or "" for sample in replies)
    if not replies:
        spellings = Counter(sample.computed or "" for sample in programs)
    [(spelling, _)] = spellings.most_common(1)
    stated = sum(sample.is_stated or sample.computed_form == form for sample in group)
    return Count(spelling, len(group), form, stated, len(replies), len(programs))


def _value(output: str) -> str:
    """What a program prints after a label, as the only number of a sentence, or alone in brackets; otherwise all."""
    from cerebrum_cli.answers.final import final_answer

    found = final_answer("", output)
    if found and found.is_stated:
        output = found.text
    elif label := _LABEL.fullmatch(output):
        output = label[1]
    elif len(_WORD.findall(output)) > 2 and len(_AMOUNT.findall(output)) == 1:
        number = final_answer("", output, kind="number")
        output = number.text if number else output
    return _ALONE.sub(r"\2", output)


def comes_to(output: str, answer: str) -> bool:
    """Whether a program's output is an answer, which may be rounded to some decimals."""
    from cerebrum_cli.answers.equality import canonical

    form, printed = canonical(answer), canonical(Program("", output).answer or output)
    if form in (printed, canonical(output)):
        return True
    try:
        value, computed = Fraction(form), Fraction(printed)
    except (ValueError, ZeroDivisionError):
        return False
    precision = abs(value) / 10**9
    if decimals := re.fullmatch(r"[^.]*\.(\d+)\D*", answer):
        precision = Fraction(1, 2 * 10 ** len(decimals[1]))
    return abs(value - computed) <= precision


def is_lead_certain(leader: int, runner_up: int) -> bool:
    """Whether the leader is the likelier of the two best answers with a probability of at least 9/10.

    The Beta posterior of Adaptive-Consistency, I_1/2(runner_up + 1, leader + 1), by tosses of a coin.
    """
    tosses = leader + runner_up + 1
    unlikely = sum(comb(tosses, heads) for heads in range(runner_up + 1))
    return 10 * ((1 << tosses) - unlikely) >= 9 << tosses  # three equal answers are enough, two are not
