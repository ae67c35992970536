"""What tuning came to, as lines and a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import print_table

if TYPE_CHECKING:
    from cerebrum_cli.application.inference.profiles import Profile, Tuned
    from cerebrum_cli.engine.plan import Tuning

TITLES = {"chat": "chat", "ask": "ask", "ask-long": "ask, long prompt", "batch": "batch"}


def tuning_text(tuning: Tuning) -> str:
    """Return a tuning in words: "weights as they are, 6 threads (4 to say)"; what is as usual is left out."""
    return ", ".join(_words(tuning)) or "defaults"


def _words(tuning: Tuning) -> Iterator[str]:
    if tuning.repack is not None:
        yield "repacked" if tuning.repack else "not repacked"
    if tuning.gpu_layers is not None:
        yield f"{tuning.gpu_layers} layers offloaded"
    say, read = tuning.n_threads, tuning.n_threads_batch
    if say is not None and say == read:
        yield _counted(say, "thread")
    else:
        if say is not None:
            yield f"{_counted(say, 'thread')} to decode"
        if read is not None:
            yield f"{_counted(read, 'thread')} to prefill"
    if tuning.n_ubatch is not None:
        yield f"n_ubatch {tuning.n_ubatch}"
    if tuning.flash_attention is not None:
        yield f"flash attention {'on' if tuning.flash_attention else 'off'}"
    if tuning.cache_type is not None:
        yield f"cache {tuning.cache_type}"
    if tuning.slots is not None:
        yield f"{tuning.slots} sequences"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def print_profile(streams: Streams, profile: Profile) -> None:
    """Print the way to open a model for each use, and what it gains."""
    rows = [_row(TITLES[name], tuned) for name, tuned in profile.uses.items()]
    print_table(streams, ("use", "gain", "settings", "prompt t/s", "gen t/s", "load", "memory", "agreement"), rows)
    if (limit := profile.long_from) is not None:
        streams.answer(f"prompts of {limit} tokens or more count as long\n")


def _row(title: str, tuned: Tuned) -> tuple[Any, ...]:
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


def tried_lines(tried: Iterable[tuple[Tuning, Mapping[str, Any]]]) -> Iterator[str]:
    """Yield a line for each way that was tried: how fast it was beside the usual one, or why it cannot be used."""
    for tuning, told in tried:
        if told["dropped"]:
            yield f"{tuning_text(tuning)}: {told['dropped']}"
        else:
            ratios = (("prompt", told["read"]), ("gen", told["say"]))
            said = (f"{what} {ratio:.2f} x" for what, ratio in ratios if ratio is not None)
            yield f"{tuning_text(tuning)}: {', '.join(said)}"
