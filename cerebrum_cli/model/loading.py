"""Open a model as its settings and its use require: here, on servers or on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from platform import machine
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import EngineError, FormatError, ModelFileError, UsageError
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.core.settings import ATTENTION_KEYS, GENERATION_KEYS, Settings
from cerebrum_cli.engine.backend import Backend, OpenBackend, StopFlag
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.load_options import AdapterFile, GgufFile, LoadOptions, Tuning, fallback_notice, plan_repacking
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.memory import BLOCK_SIZE, SINGLE, ContextOptions, is_quantized
from cerebrum_cli.engine.state_store import StateStore
from cerebrum_cli.engine.step_costs import DEFAULT_COSTS, MAX_ROLLBACK, StepCosts
from cerebrum_cli.formats.plain import EMBEDDED, RAW, SERVERS
from cerebrum_cli.gguf.architectures import facts_of
from cerebrum_cli.gguf.header import require_generative
from cerebrum_cli.model.format_choice import (
    FormatBuilder,
    choose_format,
    format_builder,
    prepare_format,
    read_template,
    require_valid,
    template_file,
)
from cerebrum_cli.model.profiles import DEFAULT, Profile, UseName, step_costs_of, tuning_of, without_user_settings
from cerebrum_cli.model.responder import Responder
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.model import Model

if TYPE_CHECKING:
    from cerebrum_cli.engine.remote.client import Endpoint

RELOADING = ("format", "chat_template", "ctx", "lora", "threads", "gpu_layers", "cpu_moe", *ATTENTION_KEYS, "cache_gb")
FLASH_ATTENTION = {"on": True, "off": False}
CHAT_CONTEXT = ContextOptions(slots=16, kv_unified=True)  # one sequence, except for votes

BackendFactory = Callable[[LoadOptions], OpenBackend]
"""Creates the function that opens a model: llama.cpp, or something smaller in tests."""

Host = Callable[[OpenBackend, "ReplySource"], Engine]
"""Connects to where a model runs, if not in this process; the vocabulary is that of a file here."""

PromptCacheFactory = Callable[[Model, str, Settings], StateStore | None]
"""Opens the prompt cache on disk of a model and prompt format; None if caching is off."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources for opening models in this process: a backend, a prompt cache on disk, and profiles of this machine.

    States of preempted sequences are saved in `swap_directory`, or in the system's directory for temporary files.
    `try_template` raises FormatError for a file whose chat template takes too much time or memory.
    """

    open_backend: BackendFactory
    prompt_cache: PromptCacheFactory = lambda *_: None
    profile: Callable[[Model, Settings], Profile | None] = lambda *_: None
    swap_directory: Path | None = None
    try_template: Callable[[Path, str], None] = lambda *_: None


@dataclass(frozen=True, slots=True)
class ModelUse:
    """How a command uses a model.

    - `context`: its sequences
    - `tuned_for`, `drafts_for`: the uses of a profile whose settings and costs of drafts apply; None for the defaults,
      and for no speculative decoding unless the settings ask for them
    - `raw`: without a prompt format
    - `template_options`: variables of an embedded template
    - `vocabulary_only`: without weights, and so always in this process
    - `is_chat`: memory for the whole context is allocated while the model loads, and weights are repacked
    - `caches_prompts`: on disk
    """

    context: ContextOptions = SINGLE
    tuned_for: UseName | None = None
    drafts_for: UseName | None = None
    raw: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)
    vocabulary_only: bool = False
    is_chat: bool = False
    caches_prompts: bool = False


CHAT = ModelUse(CHAT_CONTEXT, "chat", "chat", is_chat=True, caches_prompts=True)


@dataclass(frozen=True, slots=True)
class Servers:
    """Servers of a model, with `window` requests each at a time; with `earlier` records, only such servers.

    `timeouts` are fields of ServerTimeouts other than the defaults. With `may_differ`, each may have its own model.
    """

    endpoints: Sequence[Endpoint]
    window: int | None = None
    earlier: Sequence[Mapping[str, str]] = ()
    timeouts: Mapping[str, Any] = field(default_factory=dict)
    may_differ: bool = False

    def __call__(self, open_vocabulary: OpenBackend, source: ReplySource) -> Engine:
        from cerebrum_cli.engine.remote.remote_engine import RemoteEngine
        from cerebrum_cli.engine.remote.server_health import ServerTimeouts

        timeouts = replace(ServerTimeouts(), **self.timeouts)
        options = timeouts, self.earlier, self.may_differ, source.model.is_served
        return RemoteEngine(open_vocabulary, self.endpoints, self.window, *options)


@dataclass(frozen=True, slots=True)
class ReplySource:
    """Source of replies: a model with its settings, how it is used, and where it runs; None is this process."""

    resources: Resources
    model: Model
    settings: Settings
    use: ModelUse = ModelUse()
    host: Host | None = None

    def used(self, **changes: Any) -> ReplySource:
        return replace(self, use=replace(self.use, **changes))

    @property
    def profile(self) -> Profile | None:
        """Tuning profile of the model on this machine; None if it was never tuned, or runs elsewhere."""
        return None if self.host else self.resources.profile(self.model, self.settings)

    @property
    def format_name(self) -> str:
        """Name of the prompt format. Raises FormatError, UsageError."""
        if self.use.raw:
            return RAW.name
        return format_of(self.settings, self.model)[0]

    @property
    def format_builder(self) -> FormatBuilder:
        """Builder of the prompt format. Raises FormatError, UsageError."""
        name, template = (RAW.name, None) if self.use.raw else format_of(self.settings, self.model)
        if template is not None and (path := template_file(self.settings)):
            self.resources.try_template(path, template)
            require_valid(path, template)
        return format_builder(name, template, self.use.template_options)

    def validate(self) -> None:
        """Raise every error that can be found before the model is loaded."""
        require_generative(self.model.path, self.model.header)
        _ = self.format_builder
        require_attention(self.model, self.settings, self.use.context.pad_steps)

    def load_options(self, tuning: Tuning = DEFAULT) -> LoadOptions:
        """How to load the model with a tuning, within what the settings leave open."""
        use, context = self.use, replace(self.use.context, n_rs_seq=self._n_rs_seq)
        return load_options(self.model, self.settings, context, tuning, use.vocabulary_only, use.is_chat)

    @property
    def reload_key(self) -> tuple[object, ...]:
        """Values that require a reload when they change."""
        served = self.model.name if self.model.is_served else None  # whose file is that of another
        return self.model.paths, served, *(getattr(self.settings, key) for key in RELOADING), self._n_rs_seq

    def step_costs(self, drafts: bool | None) -> StepCosts | None:
        """Costs of steps with this setting of `drafts`; None if no tokens are drafted. The profile is read."""
        profile = self.profile if self.use.drafts_for else None
        return draft_costs(step_costs_of(profile, self.use.drafts_for), draft_problem(self.model), drafts)

    @property
    def _n_rs_seq(self) -> int:
        """Number of drafted tokens that can be rolled back from the recurrent state; 0 if none are drafted."""
        can_roll_back = facts_of(self.model.header.architecture).rolls_back
        return MAX_ROLLBACK if can_roll_back and self.step_costs(self.settings.drafts) else 0


@dataclass(slots=True)
class Opener:
    """Opens a model with its `options`, or with the defaults if that fails, as with less free memory.

    `repacks`: whether the model that was opened last has repacked weights.
    """

    factory: BackendFactory
    options: LoadOptions
    default: LoadOptions
    notice: NoticeEvent | None = None
    repacks: bool = False

    def __call__(self, on_event: Callable[[Event], None], stop: StopFlag) -> Backend:
        if self.notice:
            on_event(self.notice)
        backend = self._open(on_event, stop)
        self.repacks = backend.repacks
        return backend

    def _open(self, on_event: Callable[[Event], None], stop: StopFlag) -> Backend:
        if self.options != self.default:
            try:
                return self.factory(replace(self.options, baseline=self.default))(on_event, stop)
            except (EngineError, ModelFileError) as error:
                if stop:
                    raise
                on_event(fallback_notice(error))
        self.options = self.default
        return self.factory(self.default)(on_event, stop)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is loading or loaded, and its responder. `opener` opens its file, unless it runs elsewhere."""

    source: ReplySource
    format_name: str
    engine: Engine
    responder: Responder
    opener: Opener | None = None

    @property
    def model(self) -> Model:
        return self.source.model

    @property
    def is_remote(self) -> bool:
        return self.opener is None

    @property
    def repacks(self) -> bool | None:
        """Whether weights were repacked for speed; None behind a server."""
        return self.opener.repacks if self.opener else None

    def save_prompt_cache(
        self, min_tokens: int, conversation: Conversation | None = None, empties: bool = False
    ) -> NoticeEvent | None:
        """Save `min_tokens` or more evaluated tokens, of one conversation or all. Return a notice if that fails.

        With `empties`, they are then dropped from memory.
        """

        def save() -> None:
            prompt = self.responder.tokenize(conversation) if conversation and self.engine.is_loaded else None
            self.engine.save_prompt_cache(min_tokens, prompt, empties)

        return self._notice_of(save)

    def save_prefix(self, conversation: Conversation, is_slow: Callable[[int], bool]) -> NoticeEvent | None:
        """Save the prefix that conversations with this system prompt share, if it `is_slow` to evaluate.

        Return a notice if that fails. Tokens evaluated after the prefix are dropped from memory.
        """

        def save() -> None:
            prefix = self.responder.shared_prefix(conversation) if self.engine.is_loaded else ()
            if prefix and is_slow(len(prefix)):
                self.engine.save_prefix(prefix)

        return self._notice_of(save)

    def _notice_of(self, save: Callable[[], None]) -> NoticeEvent | None:
        """Save to the prompt cache, if the engine has one; return a notice if that fails."""
        try:
            if self.engine.has_prompt_cache:
                save()
        except FormatError:  # the conversation was never evaluated
            return None
        except EngineError as error:
            return NoticeEvent(f"prompt cache not saved: {error.message}", error.hint)
        return None


def open_model(source: ReplySource) -> LoadedModel:
    """Start to load a model, or to connect to it, without waiting. Errors of file and format are raised before that."""
    model, settings, use, resources = source.model, source.settings, source.use, source.resources
    if model.is_served and (use.raw or use.vocabulary_only):
        option = "--raw" if use.raw else "--dry-run"
        raise UsageError(f"{option} needs the exact prompt, which the server builds", "omit it, or use llama-server")
    require_generative(model.path, model.header)
    name, build, prepare = source.format_name, source.format_builder, partial(prepare_format, source.format_name)
    if source.host and not use.vocabulary_only:
        engine = source.host(resources.open_backend(load_options(model, settings, vocabulary_only=True)), source)
        return LoadedModel(source, name, engine, Responder(engine, build, model.trained_context, prepare))
    profile = source.profile if use.tuned_for or use.drafts_for else None
    tuned, default = source.load_options(tuning_of(profile, use.tuned_for)), source.load_options()
    opener = Opener(resources.open_backend, tuned, default, draft_notice(model, settings.drafts))
    states = resources.prompt_cache(model, name, settings) if use.caches_prompts and not use.vocabulary_only else None
    local = LocalEngine(opener, states, resources.swap_directory)
    choose_drafts = partial(draft_costs, step_costs_of(profile, use.drafts_for), draft_problem(model))
    responder = Responder(local, build, model.trained_context, prepare, choose_drafts)
    return LoadedModel(source, name, local, responder, opener)


def format_of(settings: Settings, model: Model) -> tuple[str, str | None]:
    """The name of a model's prompt format, and its chat template, if any. Raises FormatError, UsageError."""
    if model.is_served:
        return SERVERS.name, None
    if path := template_file(settings):
        return EMBEDDED, read_template(path)
    embedded = model.header.chat_template
    return choose_format(settings.format, model.known_format, embedded), embedded


def load_options(
    model: Model,
    settings: Settings,
    context: ContextOptions = SINGLE,
    tuning: Tuning = DEFAULT,
    vocabulary_only: bool = False,
    whole_context: bool = False,
) -> LoadOptions:
    """The options of a context, then a tuning, then the user. Raises UsageError for attention that is rejected."""
    require_attention(model, settings, context.pad_steps)
    adapters = tuple(AdapterFile(str(each.path), each.scale) for each in model.adapters)
    context = replace(
        context,
        length=settings.ctx or 0,
        n_threads=settings.threads or 0,
        flash_attention=FLASH_ATTENTION.get(settings.flash_attn or "", context.flash_attention),
        cache_type_k=settings.cache_type_k or context.cache_type_k,
        cache_type_v=settings.cache_type_v or context.cache_type_v,
    )
    options = LoadOptions(
        GgufFile(model.path, model.trained_context, model.sizes, adapters, model.is_verified),
        context,
        settings.gpu_layers,
        plan_repacking(model.quantization, whole_context, machine()),
        vocabulary_only,
        whole_context,
        settings.cpu_moe,
    )
    return options.with_tuning(without_user_settings(replace(tuning, slots=None), settings))


def require_attention(model: Model, settings: Settings, pad_steps: bool = False) -> None:
    """Raise UsageError for cache types, or a choice of flash attention, that cannot be used with this model."""
    if pad_steps and settings.flash_attn == "off":
        raise UsageError.conflict("batch_invariant", "flash_attn=off")
    types = {"cache_type_k": settings.cache_type_k, "cache_type_v": settings.cache_type_v}
    header, name = model.header, model.header.architecture
    for index, (key, given) in enumerate(types.items()):
        lengths = [each[index] for each in header.sizes.head_lengths] if is_quantized(given) else []
        if wrong := next((length for length in lengths if length % BLOCK_SIZE), None):
            problem = f"{key}={given} needs heads with a multiple of {BLOCK_SIZE} elements; this model's have {wrong}"
            raise UsageError(problem, f"omit {key}={given}")
    wants_flash = "flash_attn=on" if settings.flash_attn == "on" else None
    if is_quantized(settings.cache_type_v):
        wants_flash = f"cache_type_v={settings.cache_type_v}"
        if settings.flash_attn == "off":
            raise UsageError(f"{wants_flash} needs flash attention", "omit flash_attn=off, or the cache type")
    if pad_steps:
        wants_flash = "batch_invariant=on"  # without it, kernels depend on the number of rows per slot
    if wants_flash and not facts_of(name).has_flash_attention:
        raise UsageError(
            f"{wants_flash}: llama.cpp has no flash attention for the architecture {name}", f"omit {wants_flash}"
        )
    has_one_type = facts_of(name).needs_equal_cache_types or f"{name}.attention.key_length_mla" in header.metadata
    if has_one_type and len({given or "f16" for given in types.values()}) > 1:
        problem = f"the architecture {name} needs the same type for keys and values"
        raise UsageError(problem, "set both with --set cache_type=TYPE")


def draft_problem(model: Model) -> str | None:
    """Why tokens cannot be drafted for a model; None if they can."""
    name = model.header.architecture
    if any(layer.state_bytes for layer in model.sizes.layers) and not facts_of(name).rolls_back:
        return f"llama.cpp cannot roll back recurrent states of the {name} architecture"
    return None


def draft_notice(model: Model, drafts: bool | None) -> NoticeEvent | None:
    """Notice that speculative decoding was requested of a model that gets none."""
    problem = draft_problem(model) if drafts else None
    return NoticeEvent(f"speculative decoding is off for this model: {problem}", "omit drafts=on") if problem else None


def draft_costs(measured: StepCosts | None, problem: str | None, drafts: bool | None) -> StepCosts | None:
    """Costs of steps for drafting: as measured, if it can pay off; measured or default ones, if `drafts` is on.

    None if tokens are not drafted. Mixtures of experts are no exception: the costs of their additional experts are
    measured too.
    """
    if problem or drafts is False:
        return None
    if drafts:
        return measured or DEFAULT_COSTS
    return measured if measured and measured.best_draft else None


def generation_fingerprint(settings: Settings, grammar: str | None, model: Model, library: Library) -> dict[str, Any]:
    values, (name, template) = asdict(settings), format_of(settings, model)
    keys = ("system", *GENERATION_KEYS, "ctx", "cache_type_k", "cache_type_v")
    return {
        "model": model.label,
        "model file": library.file_identity(model),
        "adapter": model.adapter_identity,
        "format": name,
        **({"chat template": sha256((template or "").encode()).hexdigest()} if template_file(settings) else {}),
        **{key.replace("_", " "): values[key] for key in keys},
        "grammar": grammar and sha256(grammar.encode()).hexdigest(),
    }
