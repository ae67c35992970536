"""Results of `cerebrum tune`, as a table and a summary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_table
from cerebrum_cli.tune.candidates import differences, speed_ratios

if TYPE_CHECKING:
    from cerebrum_cli.engine.load_options import Tuning
    from cerebrum_cli.inference.profiles import Profile, TunedUse
    from cerebrum_cli.tune.candidates import Candidate
    from cerebrum_cli.tune.tune import TuningResult


def tuning_text(tuning: Tuning) -> str:
    """Settings other than the defaults: "not repacked, 4 threads to decode"."""
    return ", ".join(_descriptions(tuning)) or "defaults"


def _descriptions(tuning: Tuning) -> Iterator[str]:
    if tuning.repack is not None:
        yield "repacked" if tuning.repack else "not repacked"
    if tuning.gpu_layers is not None:
        yield f"{tuning.gpu_layers} layers offloaded"
    decode, prefill = tuning.n_threads, tuning.n_threads_batch
    if decode is not None and decode == prefill:
        yield _thread_text(decode)
    else:
        if decode is not None:
            yield f"{_thread_text(decode)} to decode"
        if prefill is not None:
            yield f"{_thread_text(prefill)} to prefill"
    if tuning.n_ubatch is not None:
        yield f"n_ubatch {tuning.n_ubatch}"
    if tuning.flash_attention is not None:
        yield f"flash attention {'on' if tuning.flash_attention else 'off'}"
    if tuning.cache_type is not None:
        yield f"cache {tuning.cache_type}"
    if tuning.slots is not None:
        yield f"{tuning.slots} sequences"


def _thread_text(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def print_profile(streams: Streams, profile: Profile) -> None:
    """Print the settings of each use, their gain and their speeds, and what drafts cost."""
    rows = [_row(name, tuned) for name, tuned in profile.uses.items()]
    print_table(streams, ("use", "gain", "settings", "prompt t/s", "gen t/s", "load", "memory", "same top-1"), rows)
    for line in _draft_lines(profile.uses["chat"], profile.uses["ask"]):
        streams.answer(f"{line}\n")


def _draft_lines(chat: TunedUse, ask: TunedUse) -> Iterator[str]:
    """How long a step with a draft takes, in steps of one token; one line if it is the same for both uses."""
    if chat.best_draft == ask.best_draft:
        yield _draft_text("drafts: ", chat)
    else:
        yield _draft_text("drafts, chat: ", chat)
        yield _draft_text("drafts, ask: ", ask)


def _draft_text(label: str, tuned: TunedUse) -> str:
    if tuned.best_draft is None:
        return f"{label.removesuffix('drafts: ')}no drafts"
    rows, cost = tuned.best_draft
    return f"{label}verifying {rows} tokens takes as long as generating {cost:.1f}"


def _row(title: str, tuned: TunedUse) -> tuple[Any, ...]:
    speeds = tuned.speeds
    return (
        title,
        f"{tuned.gain:.2f} x" if tuned.tuning.overrides else "",
        tuning_text(tuned.tuning),
        f"{speeds.prompt:.1f}",
        f"{speeds.generate:.1f}",
        f"{speeds.load_s:.1f} s",
        format_size(speeds.memory),
        "" if tuned.agreement is None else f"{tuned.agreement:.1%}",
    )


def print_summary(streams: Streams, result: TuningResult, model: str, condition: str) -> None:
    """Print what was measured, what was not and why, and which settings changed, on standard error.

    `condition` is text like " with --threads 1".
    """
    measured = [_measurement(*pair) for pair in result.tried if pair[0].speeds]
    unmeasured = {_candidate_text(*pair): pair[0].dropped for pair in result.tried if not pair[0].speeds}
    reasons = [f"{text}: {reason}" for text, reason in {**unmeasured, **result.untried}.items()]
    changes = [
        f"{name}: {tuning_text(after)} (before: {tuning_text(before)})"
        for name, (before, after) in result.changes.items()
    ]
    sections = {"measured, relative to the defaults": measured, "not measured": reasons, "changed": changes}
    for heading, lines in sections.items():
        if lines:
            streams.info(f"{heading}:")
        for line in lines:
            streams.write_line("  ", line)
    streams.write_line("", _conclusion(result, f"{model}{condition}"))


def _measurement(candidate: Candidate, baseline: Candidate) -> str:
    """Speeds of a candidate relative to the defaults, and why it is not used."""
    ratios = zip(("prompt", "gen"), speed_ratios(candidate, baseline).values(), strict=True)
    speeds = ", ".join(f"{kind} {ratio:.2f} x" for kind, ratio in ratios if ratio is not None)
    rejection = f"; {candidate.dropped}" if candidate.dropped else ""
    return f"{_candidate_text(candidate, baseline)}: {speeds}{rejection}"


def _candidate_text(candidate: Candidate, baseline: Candidate) -> str:
    """Settings of a candidate that differ from the defaults: "batch, 16 sequences"."""
    return f"{'batch, ' * candidate.is_batch}{tuning_text(differences(candidate.tuning, baseline.tuning))}"


def _conclusion(result: TuningResult, model: str) -> str:
    """Which settings are used from now on."""
    if not result.changes:
        reason = (
            "no settings proved faster than the defaults"
            if result.profile.is_default
            else "the same settings are fastest"
        )
        if names := sorted(result.profile.uses_with_drafts):
            return f"settings unchanged for {model}: {reason}; {' and '.join(names)} use{'s' * (len(names) < 2)} drafts"
        return f"nothing changed for {model}: {reason}"
    if result.profile.is_default:
        return f"ask, chat and batch use the defaults for {model} again"
    return f"ask, chat and batch now use these settings for {model}; --no-profile ignores them"
