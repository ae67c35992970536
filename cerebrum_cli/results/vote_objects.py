"""JSON objects of votes and programs, in results and for --json."""

from __future__ import annotations

from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.replies.tally import Count, Tally
from cerebrum_cli.replies.voting import MajorityVote


def program_object(reply: Reply) -> JsonDict:
    """The program that the model wrote after a sample, and its output."""
    return {
        "program": reply.program and reply.program.code,
        "program_output": reply.program and reply.program.output,
        "program_tokens": reply.total_tokens - reply.finish.completion_tokens,
    }


def votes_object(vote: MajorityVote) -> JsonDict:
    """The object that `--json` prints of a vote; of programs only if they check it."""
    tally = vote.tally
    known = {
        "sample_count": tally.samples,
        "winner": vote.final_answer,
        "tie": bool(tally.tied),
        "tally": [count_object(count, tally.votes.checks) for count in tally.counts],
        "agreement": round(tally.agreement, 4),
    }
    if tally.votes.checks:
        known["checked"] = tally.winner is not None and tally.winner.is_checked
    known["samples"] = [sample_object(reply, tally, sample) for sample, reply in sorted(vote.replies.items())]
    return known


def count_object(count: Count, checks: bool) -> JsonDict:
    known = {"answer": count.answer, "count": count.count}
    if checks:
        known |= {"replies": count.replies, "programs": count.programs}
    return known


def sample_object(reply: Reply, tally: Tally, sample: int) -> JsonDict:
    known = {
        "seed": reply.finish.seed,
        "text": reply.text,
        "final_answer": reply.vote,
        "finish_reason": reply.finish.reason,
    }
    if tally.votes.checks:
        known |= program_object(reply)
        known["checked"] = tally.answers[sample].is_checked
    return known
