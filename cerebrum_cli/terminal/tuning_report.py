"""Results of `cerebrum tune`, as a table and lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_table

if TYPE_CHECKING:
    from cerebrum_cli.application.inference.profiles import Profile, TunedUse
    from cerebrum_cli.engine.plan import Tuning

TITLES = {"chat": "chat", "ask": "ask", "ask-long": "ask, long prompt", "batch": "batch"}


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
    """Print the settings of each use, their gain and their speeds."""
    rows = [_row(TITLES[name], tuned) for name, tuned in profile.uses.items()]
    print_table(streams, ("use", "gain", "settings", "prompt t/s", "gen t/s", "load", "memory", "same top-1"), rows)
    if (limit := profile.long_from) is not None:
        streams.answer(f"prompts of {limit} tokens or more count as long\n")


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


def candidate_lines(candidates: Iterable[tuple[Tuning, Mapping[str, Any]]]) -> Iterator[str]:
    """One line per candidate: its speeds relative to the defaults, or why it was dropped."""
    for tuning, candidate in candidates:
        if candidate["dropped"]:
            yield f"{tuning_text(tuning)}: {candidate['dropped']}"
        else:
            ratios = zip(("prompt", "gen"), candidate["ratios"].values(), strict=True)
            speeds = (f"{kind} {ratio:.2f} x" for kind, ratio in ratios if ratio is not None)
            yield f"{tuning_text(tuning)}: {', '.join(speeds)}"
