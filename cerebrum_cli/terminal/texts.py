"""Format values as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cerebrum_cli.core.events import EvalProgress, FinishEvent, RowCounts, RowEvent, ServerTokens, TallyEvent
from cerebrum_cli.terminal.escapes import strip_controls

SHOWN_SERVERS = 8
WEIGHTS = {True: "weights repacked where possible", False: "weights as in the file (not repacked)"}


def stats_line(finish: FinishEvent, model: str, format_name: str, repacks: bool | None) -> str:
    """Line printed by `--stats`; `repacks` is None where a server holds the weights."""
    timings = finish.timings
    cached = f" ({finish.cached_tokens} cached)" if finish.cached_tokens else ""
    drafts = f", {timings.draft_n_accepted} of {timings.draft_n} drafted tokens accepted" if timings.draft_n else ""
    return " | ".join(
        (
            model,
            f"format {format_name}",
            "on a server" if repacks is None else f"load {timings.load_s:.2f} s | {WEIGHTS[repacks]}",
            f"prompt {finish.prompt_tokens} tokens{cached}{_rate(timings.prompt_tokens_per_second)}",
            f"generated {finish.completion_tokens} tokens{_rate(timings.tokens_per_second)}{drafts}",
            f"first token {timings.ttft_s:.2f} s",
            f"context {finish.context_size}",
            f"seed {finish.seed}",
            f"finish reason {finish.reason}",
        )
    )


def tally_text(event: TallyEvent, tokens: int) -> str:
    """Tally of a running vote: "4/5 x5 · 0.9 x1 (6 of 3-16 samples, 81 tokens)"."""
    answers = " · ".join(f"{one_line(answer)} x{count}" for answer, count in event.tally) or "no answer yet"
    planned = f"{event.minimum}-{event.maximum}" if event.minimum < event.maximum else event.maximum
    return f"{answers} ({event.samples} of {planned} samples, {tokens} tokens)"


def result_text(event: TallyEvent) -> str:
    """Result of a vote: "4/5: 5 of 6 votes (83%); runner-up 0.9: 1"."""
    if not event.tally:
        return f"no final answer in {event.samples} samples"
    (winner, count), *others = event.tally
    runner_up = f"; runner-up {one_line(others[0][0])}: {others[0][1]}" if others else ""
    return f"{one_line(winner)}: {count} of {event.samples} votes ({count / event.samples:.0%}){runner_up}"


def one_line(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())


def batch_text(
    event: RowEvent | EvalProgress, tokens: int, seconds: float, servers: Sequence[ServerTokens] = ()
) -> str:
    """Progress of a batch or an evaluation, and its throughput, also that of each of several servers."""
    exceptions = "".join(f", {text}" for text in exceptions_text(event))
    speed = ""
    if tokens and seconds:
        rates = server_rates([server._replace(is_lost=False) for server in servers], seconds)
        each = f": {rates}" if rates else ""
        speed = f", {tokens} tokens in {seconds:.1f} s ({tokens / seconds:.1f} t/s{each})"
    done, total = counter(event)
    noun = (" question" if total == 1 else " questions") if isinstance(event, EvalProgress) else ""
    return f"{done} of {total}{noun} done{exceptions}{speed}"


def server_rates(servers: Sequence[ServerTokens], seconds: float) -> str:
    """Tokens per second of each server: "a:8080 31.4, b:8080 lost"; of many, the least and the most."""
    rates = [server.tokens / seconds for server in servers]
    if len(servers) > SHOWN_SERVERS:
        lost = sum(server.is_lost for server in servers)
        problem = f", {lost} lost" if lost else ""
        return f"{len(servers)} servers, {min(rates):.1f} to {max(rates):.1f} each{problem}"
    return ", ".join(
        f"{strip_controls(server.name).rpartition('://')[2]} {'lost' if server.is_lost else f'{rate:.1f}'}"
        for server, rate in zip(servers, rates, strict=True)
    )


def counter(event: RowEvent | EvalProgress) -> tuple[int, int]:
    """How many of all rows of a batch, or of all questions of an evaluation, are done."""
    return (event.questions, event.all_questions) if isinstance(event, EvalProgress) else (event.done, event.total)


def exceptions_text(event: RowEvent | EvalProgress) -> Iterator[str]:
    """Clauses about a batch's exceptions, or about an evaluation's score so far; the most important one first."""
    if isinstance(event, RowEvent):
        yield from counts_text(event.counts)
        return
    if event.accuracy is not None and event.interval is not None:
        low, high = event.interval
        yield f"accuracy {event.accuracy:.3f} ({low:.3f} to {high:.3f})"
    if event.no_answer:
        yield f"{event.no_answer:.0%} no answer"
    if event.cut_off:
        yield f"{event.cut_off:.0%} truncated"
    if event.skipped:
        yield f"{event.skipped} skipped"


def counts_text(counts: RowCounts) -> Iterator[str]:
    """Clauses such as "2 failed", for counts that are not 0."""
    if counts.failed:
        yield f"{counts.failed} failed"
    if counts.truncated:
        yield f"{counts.truncated} truncated"
    if counts.undecided:
        yield f"{counts.undecided} without a winner"


def context_text(used: int, size: int) -> str:
    """Context usage in tokens."""
    return f"context {used}/{size} ({used / size:.0%})"


def settings_lines(values: Mapping[str, Any]) -> str:
    """Settings, one per line."""
    width = max(map(len, values))
    return "\n".join(f"{key:<{width}}  {_setting_text(value)}" for key, value in values.items())


def _setting_text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(repr(str(each)) for each in value) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _rate(tokens_per_second: float) -> str:
    return f", {tokens_per_second:.1f} t/s" if tokens_per_second else ""
