"""What is asked of an engine: to load a model, and to generate replies, each a sample of a request."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import SystemRandom
from typing import Any, NamedTuple, Protocol, TypeAlias

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import FinishEvent, FinishReason, Forced, SequenceId, TokenEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.sampling import SEEDS, SamplingParams, TokenBias
from cerebrum_cli.core.text import Texts
from cerebrum_cli.core.token_ids import NO_TOKEN, TokenIds, TokenPredicate, Tokens
from cerebrum_cli.engine.repetition import STEP, repeats
from cerebrum_cli.formats.reply_text import ReplyRules, ReplyText, SplitText
from cerebrum_cli.gguf.sizes import ModelSizes

DEFAULT_CONTEXT = 8192
MAX_ROLLBACK = 7  # tokens that can be removed from a recurrent state: each takes as much memory as the state itself
OPENING_TOKENS = 16  # more than most formats begin a reply with
EXPECTED_REPLY_TOKENS = 1024  # for unlimited replies, where memory is shared out among several


@frozen
class ContextOptions:
    """Options of a context; until it is made, 0 is chosen for this machine.

    - `length`: maximum length of a sequence, which llama.cpp pads to 256
    - `slots`: maximum number of concurrent sequences, if memory allows
    - `n_threads`: of each step
    - `n_ubatch`: maximum number of rows in one decode, and so of prompt tokens in one step
    - `kv_unified`: all sequences share one KV cache of that length, in which copies take no space
    - `batch_invariant`: on the CPU, attention to a token is the same whatever runs beside it; costs a row per single
      sequence
    - `flash_attention`: None leaves it to llama.cpp
    - `cache_type_k`, `cache_type_v`: types of keys and values in the KV cache
    - `swa_full`: layers with a sliding window store all tokens, so that many slots can share their cells
    - `rolls_back`: MAX_ROLLBACK draft tokens can be removed from a recurrent state, each by a copy of the state
    """

    length: int = 0
    slots: int = 1
    n_threads: int = 0
    n_ubatch: int = 0
    kv_unified: bool = False
    batch_invariant: bool = False
    flash_attention: bool | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    swa_full: bool = False
    rolls_back: bool = False

    @property
    def n_rs_seq(self) -> int:
        return MAX_ROLLBACK if self.rolls_back else 0

    @property
    def n_streams(self) -> int:
        """Number of KV caches of that length."""
        return 1 if self.kv_unified else self.slots


@frozen
class LoadOptions:
    """A GGUF file, and how to load it; "auto" is chosen for this machine.

    - `sizes`, `trained_context`, `quantization`: facts of its header
    - `adapters`: to apply, each with the factor of its effect
    - `is_verified`: its digest is known to be right, or we wrote the file
    - `thinks`: the model marks its reasoning
    - `whole_context`: allocate the KV cache for the longest sequence while loading, as a chat needs it; otherwise it is
      allocated for the first request, so that a single answer starts sooner
    - `repack`: convert weights to CPU-optimized layouts: faster for a single sequence, slower for batches, a longer
      load and twice the memory; None decides as `plan_repacking` does
    - `cpu_moe`: number of the first layers whose experts stay in host memory, with "auto" all if only that lets all
      layers fit on the GPUs; "off" is none
    - `reply_tokens`: about how many a single reply will have; 0 is unknown
    """

    path: Path
    trained_context: int
    sizes: ModelSizes
    context: ContextOptions = ContextOptions()
    gpu_layers: str = "auto"
    repack: bool | None = None
    vocabulary_only: bool = False
    whole_context: bool = False
    cpu_moe: str = "auto"
    reply_tokens: int = 0
    adapters: tuple[tuple[Path, float], ...] = ()
    is_verified: bool = False
    thinks: bool = False
    quantization: str | None = None


class Force(NamedTuple):
    tokens: TokenIds


# Why the reply ends, tokens to force, or a bias of the logit of the next token, which servers ignore.
Intervention: TypeAlias = FinishReason | Force | TokenBias


class ReplyControl(Protocol):
    """State of one reply, which decides after each of its tokens whether to intervene."""

    def intervene(self, text: ReplyText, tokens: array[int]) -> Intervention | None:
        """Return the action after the tokens so far; not called while forced tokens are pending."""


# Creates the control of one reply.
ControlFactory: TypeAlias = Callable[[], ReplyControl]


@frozen
class Request:
    """A prompt with its sampling parameters, for what is asked.

    The grammar and the stop strings apply where the text is the answer by the `rules`. The text includes a control
    token only if it `is_visible`. If `speculative`, tokens may be drafted and verified in one step. `loop_check` ends a
    sample that repeats itself, or a list in it; `controls` may end one or force tokens into it, unless a grammar
    applies.

    The last `opening` tokens of a prompt begin the reply; the prompt of the next turn may differ from there on.
    A sample that ends by itself is followed by a reply to `follow_up`, whose prompt tokens continue it.

    `as_messages`, a server gets the conversation and applies its own chat template: the tokens of the prompt only
    estimate its length, and the grammar is of a JSON Schema. Servers report the `likeliest` most probable first tokens.
    """

    prompt_tokens: Tokens
    params: SamplingParams = field(default_factory=SamplingParams)
    ask: Ask = field(default_factory=Ask)
    is_visible: TokenPredicate = NO_TOKEN
    speculative: bool = False
    loop_check: bool = False
    controls: tuple[ControlFactory, ...] = ()
    rules: ReplyRules = field(default_factory=ReplyRules)
    opening: int = OPENING_TOKENS
    follow_up: Request | None = None
    as_messages: bool = False
    likeliest: int = 0

    def first_seed(self) -> int:
        """Seed of the first sample: that requested, or a random one. Raises UsageError if the prompt is empty."""
        if not self.prompt_tokens:
            raise UsageError("the prompt is empty", "write a prompt")
        return SystemRandom().randrange(SEEDS) if self.params.seed is None else self.params.seed

    @property
    def stop_anywhere(self) -> Texts:
        """The stop strings that a server may look for, which knows no reasoning."""
        if self.rules.stops_anywhere:
            return self.params.stop
        return ()

    @property
    def stop(self) -> Texts:
        """The stop strings to find in a reply; a server of conversations has found them, reasoning apart."""
        if self.as_messages:
            return ()
        return self.params.stop

    @property
    def has_grammar(self) -> bool:
        """Whether the answer has to match a grammar here; a server of conversations has its schema."""
        return self.ask.grammar is not None and not self.as_messages

    @property
    def beginning(self) -> tuple[Tokens, list[SplitText]]:
        """The tokens and texts of the reply that the request continues."""
        at = len(self.prompt_tokens) - self.rules.prefix_tokens
        return self.prompt_tokens[at:], ReplyText(replace(self.rules, prefix="")).feed_text(self.rules.prefix)

    def max_length(self, context_size: int) -> int:
        """Maximum length of a sample, in tokens of prompt and reply."""
        limit = self.params.max_tokens
        if limit is None:
            return context_size
        return min(context_size, len(self.prompt_tokens) + limit)

    def expected_length(self, context_size: int, generated: int = 0) -> int:
        """Length to reserve memory for at least; more is reserved if a sample outgrows it."""
        return min(self.max_length(context_size), len(self.prompt_tokens) + max(EXPECTED_REPLY_TOKENS, 2 * generated))


@dataclass(eq=False)
class ReplySample:
    """One sample of a request, on this machine or on a server: its text, its controls, and where tokens were forced."""

    id: SequenceId
    request: Request
    seed: int
    prompt: Tokens = field(init=False)
    text: ReplyText = field(init=False)
    controls: list[ReplyControl] = field(init=False)
    forced: list[Forced] = field(init=False, default_factory=list)
    checked: int = field(init=False, default=0)  # tokens that had been sampled at the last check for a loop

    def __post_init__(self) -> None:
        self.prompt = self.request.prompt_tokens
        self.text = ReplyText(self.request.rules, self.request.stop)
        self.controls = []
        for create in self.request.controls:
            self.controls.append(create())

    @property
    def is_constrained(self) -> bool:
        """Whether the next token has to match the grammar; controls do not intervene then."""
        return self.request.has_grammar and self.text.stage == "answer"

    @property
    def awaits_answer(self) -> bool:
        """Whether there is a grammar that does not apply yet."""
        return self.request.has_grammar and self.text.stage != "answer"

    def text_events(self, pieces: list[SplitText], tokens: Sequence[int] = ()) -> Iterator[TokenEvent]:
        """The events of pieces of text, the last of which has the tokens that complete them; it may have no text."""
        if self.text.correction:
            yield TokenEvent(self.id, "", self.text.correction, is_correction=True)
            self.text.correction = None
        if tokens and not pieces:
            pieces = [("thinking" if self.text.open_markup else "answer", "")]
        for channel, text in pieces[:-1]:
            yield TokenEvent(self.id, text, channel)
        for channel, text in pieces[-1:]:
            yield TokenEvent(self.id, text, channel, tokens)

    def repeats_itself(self, tokens: array[int], forced: int = 0) -> bool:
        """Whether the reply, of these tokens so far, has to end because it repeats itself.

        A number of them was `forced`, as by a grammar, which may repeat what it has to.
        """
        sampled = len(tokens) - forced
        if not self.request.loop_check or sampled < self.checked + STEP:
            return False
        self.checked = sampled
        return repeats(tokens)

    def finish_event(self, reason: FinishReason, **known: Any) -> FinishEvent:
        """The last event, with what is `known` of counts and times."""
        return FinishEvent(
            self.id,
            reason,
            seed=self.seed,
            forced=tuple(self.forced),
            in_reasoning=self.text.stage == "thinking",
            has_closed_list=self.text.has_closed_list,
            **known,
        )
