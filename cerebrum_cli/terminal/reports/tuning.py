"""Results of `cerebrum tune`, as a table and a summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_table
from cerebrum_cli.tune.candidates import describe

if TYPE_CHECKING:
    from cerebrum_cli.inference.profiles import Profile, TunedUse
    from cerebrum_cli.tune.candidates import Candidate
    from cerebrum_cli.tune.tune import TuningResult

FEATURE = "speculative decoding"
NO_DRAFTS = f"no {FEATURE}"


def print_profile(streams: Streams, profile: Profile) -> None:
    """Print the settings of each use, their gain and their speeds, and what drafts cost."""
    rows = [_row(name, tuned) for name, tuned in profile.uses.items()]
    print_table(streams, ("use", "gain", "settings", "prompt t/s", "gen t/s", "load", "memory", "same top-1"), rows)
    chat, ask = (_draft_text(profile.uses[name]) for name in ("chat", "ask"))
    shared = chat if chat == NO_DRAFTS else f"{FEATURE}: {chat}"
    for line in [shared] if chat == ask else [f"{FEATURE}, chat: {chat}", f"{FEATURE}, ask: {ask}"]:
        streams.answer(f"{line}\n")


def _draft_text(tuned: TunedUse) -> str:
    """How long a step with a draft takes, in steps of one token."""
    if tuned.best_draft is None:
        return NO_DRAFTS
    rows, cost = tuned.best_draft
    return f"verifying {rows} tokens takes as long as generating {cost:.1f}"


def _row(title: str, tuned: TunedUse) -> tuple[Any, ...]:
    speeds = tuned.speeds
    return (
        title,
        f"{tuned.gain:.2f} x" if tuned.tuning.overrides else "",
        describe(tuned.tuning),
        f"{speeds.prompt:.1f}",
        f"{speeds.generate:.1f}",
        f"{speeds.load_s:.1f} s",
        format_size(speeds.memory),
        "" if tuned.agreement is None else f"{tuned.agreement:.1%}",
    )


def print_summary(streams: Streams, result: TuningResult, model: str) -> None:
    """Print what was measured, what was not and why, and which settings changed, on standard error.

    `model` may have a condition, such as "starter with --threads 1".
    """
    measured = [_measurement(each) for each in result.tried if each.speeds]
    unmeasured = {str(each): each.dropped for each in result.tried if not each.speeds}
    reasons = [f"{text}: {reason}" for text, reason in {**unmeasured, **result.untried}.items()]
    changes = [
        f"{name}: {describe(after)} (before: {describe(before)})" for name, (before, after) in result.changes.items()
    ]
    sections = {"measured, relative to the defaults": measured, "not measured": reasons, "changed": changes}
    for heading, lines in sections.items():
        if lines:
            streams.info(f"{heading}:")
        for line in lines:
            streams.write_line("  ", line)
    streams.write_line("", _conclusion(result, model))


def _measurement(candidate: Candidate) -> str:
    """Speeds of a candidate relative to the defaults, and why it is not used."""
    ratios = zip(("prompt", "gen"), candidate.ratios, strict=True)
    speeds = ", ".join(f"{kind} {ratio:.2f} x" for kind, ratio in ratios if ratio is not None)
    rejection = f"; {candidate.dropped}" if candidate.dropped else ""
    return f"{candidate}: {speeds}{rejection}"


def _conclusion(result: TuningResult, model: str) -> str:
    """Which settings are used from now on."""
    if not result.changes:
        reason = (
            "no settings proved faster than the defaults"
            if result.profile.is_default
            else "the same settings are fastest"
        )
        if names := sorted(result.profile.uses_with_drafts):
            uses = f"{' and '.join(names)} use{'s' * (len(names) < 2)} {FEATURE}"
            return f"settings unchanged for {model}: {reason}; {uses}"
        return f"nothing changed for {model}: {reason}"
    if result.profile.is_default:
        return f"ask, chat and batch use the defaults for {model} again"
    return f"ask, chat and batch now use these settings for {model}; --set no_profile=on ignores them"
