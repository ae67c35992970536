"""Values of a search: the uses of a model that it measures, and the settings it tries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cerebrum_cli.core.text import format_count
from cerebrum_cli.engine.bench import JobKind
from cerebrum_cli.engine.model_options import Tuning
from cerebrum_cli.replies.profiles import Speeds, UseName

TRIED_SLOTS = (16, 32)  # fewer concurrent sequences than a batch has without a profile
TRIED_UBATCHES = (64, 256, 512)
LONG_PROMPT_TOKENS = 2048
MAX_LONGER = 1.25  # how much longer an answer may take for an earlier first token


class Use(NamedTuple):
    """A typical use of a model: tokens to prefill and to decode after loading it once; concurrently in a batch."""

    name: UseName
    prompt_tokens: int
    reply_tokens: int
    is_batch: bool = False

    def gain(self, speeds: Speeds, baseline: Speeds) -> float:
        """Speedup over the speeds of a baseline.

        For ask, of the first token, unless the whole answer is much longer then, or that to a long prompt.
        """

        def ratio(prompt: int, reply: int) -> float:
            return baseline.seconds(prompt, reply) / speeds.seconds(prompt, reply)

        whole = ratio(self.prompt_tokens, self.reply_tokens)
        if self.name != "ask":
            return whole
        slowest = min(whole, ratio(LONG_PROMPT_TOKENS, self.reply_tokens))
        return slowest if slowest < 1 / MAX_LONGER else ratio(self.prompt_tokens, 0)

    def shares(self, speeds: Speeds) -> dict[JobKind, float]:
        """Shares of the duration that prefill and decode take; for ask, prefill of the time to the first token."""
        total = speeds.seconds(self.prompt_tokens, self.reply_tokens)
        first = speeds.seconds(self.prompt_tokens, 0) if self.name == "ask" else total
        return {
            "prefill": self.prompt_tokens / speeds.prompt / first,
            "decode": self.reply_tokens / speeds.generate / total,
        }


CHAT = Use("chat", 8 * 64, 8 * 192)  # turns
ASK = Use("ask", 64, 256)
BATCH = Use("batch", 64 * 128, 64 * 128, is_batch=True)  # rows
USES = (CHAT, ASK, BATCH)


class SearchSpace(NamedTuple):
    """The default settings of each use, and what can be tried instead.

    `threads` are thread counts other than the default, and `depth` is the number of tokens after which a single
    sequence is decoded. `no_flash` has the values of `is_batch` for which flash attention may be turned off.
    """

    chat: Tuning
    ask: Tuning
    batch: Tuning
    threads: tuple[int, ...]
    layers: int
    depth: int
    no_flash: tuple[bool, ...]


@dataclass(slots=True, eq=False)
class Candidate:
    """Settings that were tried, and their speeds; `dropped` is the reason for not using them.

    `baseline` are the defaults that it is compared with, for a chat or for a batch; None for these. Speeds that the
    settings cannot affect are those of the candidate it is based on.
    """

    tuning: Tuning
    baseline: Candidate | None = None
    speeds: Speeds | None = None
    dropped: str | None = None

    def __str__(self) -> str:
        return describe(differences(self.tuning, self.baseline.tuning) if self.baseline else Tuning(), self.is_batch)

    @property
    def is_batch(self) -> bool:
        return self.tuning.slots is not None

    @property
    def known_speeds(self) -> Speeds:
        assert self.speeds
        return self.speeds

    @property
    def ratios(self) -> tuple[float | None, float | None]:
        """Speeds of prefill and of decode relative to the defaults; None if they were not measured."""
        new, old = self.speeds, (self.baseline or self).known_speeds
        return (new.prompt / old.prompt, new.generate / old.generate) if new else (None, None)


class Stage(NamedTuple):
    """Settings to try, none for the defaults; essential stages run even after the time limit."""

    is_batch: bool
    settings: Mapping[str, Any] = {}
    is_essential: bool = False

    def __str__(self) -> str:
        if not self.settings and not self.is_batch:
            return "ask, defaults"
        return describe(Tuning(**self.settings), self.is_batch)


def plan_stages(space: SearchSpace, has_gpu: bool) -> Iterator[Stage]:
    if space.ask != space.chat:
        yield Stage(False, is_essential=True)
    yield from _load_stages(space, has_gpu, is_batch=False)
    yield Stage(True, is_essential=True)
    yield from _load_stages(space, has_gpu, is_batch=True)
    yield from (Stage(True, {"slots": slots}) for slots in TRIED_SLOTS if slots < (space.batch.slots or 0))
    yield from (Stage(False, {"n_ubatch": size}) for size in TRIED_UBATCHES)


def _load_stages(space: SearchSpace, has_gpu: bool, is_batch: bool) -> Iterator[Stage]:
    default = space.batch if is_batch else space.chat
    if is_batch or space.ask == space.chat:
        yield Stage(is_batch, {"repack": not default.repack}, is_essential=not is_batch)
    if is_batch in space.no_flash and not has_gpu:
        yield Stage(is_batch, {"flash_attention": False})
    for layers in ("0", str(space.layers // 2)) if has_gpu else ():
        yield Stage(is_batch, {"gpu_layers": layers})
    for count in space.threads:
        yield Stage(is_batch, {"n_threads": count, "n_threads_batch": count})


def thread_counts_to_try(default: int, most: int) -> tuple[int, ...]:
    """Thread counts besides the default: the most that may be faster, half of the default, and one less."""
    return tuple(count for count in sorted({most, default - 1, (default + 1) // 2}) if count >= 1 and count != default)


def differences(tuning: Tuning, baseline: Tuning) -> Tuning:
    return Tuning(**{name: value for name, value in tuning.overrides.items() if value != getattr(baseline, name)})


def describe(tuning: Tuning, is_batch: bool = False) -> str:
    """Settings other than the defaults: "not repacked, 4 threads to decode"."""
    decode, prefill = tuning.n_threads, tuning.n_threads_batch
    threads = ((decode, ""),) if decode == prefill else ((decode, " to decode"), (prefill, " to prefill"))
    texts = (
        None if tuning.repack is None else "repacked" if tuning.repack else "not repacked",
        "no flash attention" if tuning.flash_attention is False else None,
        tuning.gpu_layers and f"{tuning.gpu_layers} layers offloaded",
        *(f"{format_count(count, 'thread')}{use}" for count, use in threads if count),
        f"n_ubatch {tuning.n_ubatch}" if tuning.n_ubatch else None,
        f"{tuning.slots} sequences" if tuning.slots else None,
    )
    settings = ", ".join(filter(None, texts)) or "defaults"
    return f"batch, {settings}" if is_batch else settings
