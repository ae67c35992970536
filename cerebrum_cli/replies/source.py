"""Which model, how it is used and where it runs; and how it is loaded with these settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.errors import EngineError, ModelFileError, UsageError
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.core.sampling import SAMPLED_TEMPERATURE
from cerebrum_cli.core.settings import DEFAULT, GENERATION_KEYS, Settings
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.memory import BLOCK_SIZE, QUANTIZED_CACHE_TYPES, SINGLE, ContextOptions
from cerebrum_cli.engine.model_options import (
    AdapterFile,
    GgufFile,
    LoadOptions,
    Tuning,
    fallback_notice,
    plan_repacking,
)
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.engine.step_costs import DEFAULT_COSTS, MAX_ROLLBACK, StepCosts
from cerebrum_cli.formats.plain import CEREBRUM, EMBEDDED, RAW, SERVERS
from cerebrum_cli.formats.thinking import REASONING_MARKUPS
from cerebrum_cli.gguf.architectures import facts_of
from cerebrum_cli.gguf.header import Header, require_generative
from cerebrum_cli.library.installed import Library
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.replies.format_choice import (
    MAX_TEMPLATE_BYTES,
    FormatBuilder,
    choose_format,
    format_builder,
    require_valid,
    template_file,
)
from cerebrum_cli.replies.installation import Installation, Servers
from cerebrum_cli.replies.prompt_sources import read_text

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend
    from cerebrum_cli.replies.profiles import TunedUse, UseName

FINGERPRINTED = ("system", *GENERATION_KEYS, "ctx", "cache_type_k", "cache_type_v")
FLASH_ATTENTION = {"on": True, "off": False}
MAX_PARALLEL = 256  # sequences llama.cpp supports
AUTO_PARALLEL = 64  # more than this was nowhere faster
CHAT_CONTEXT = ContextOptions(slots=16, kv_unified=True)  # one sequence, except for votes


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Which model, how it is used, and where it runs: on `servers`, or in this process.

    - `context`: its sequences
    - `tuned_for`, `speculative_for`: the uses of a profile whose settings and costs of speculative decoding apply; None
      for the defaults, and for no speculative decoding unless the settings ask for it
    - `raw`: without a prompt format
    - `template_options`: variables of an embedded template
    - `vocabulary_only`: without weights, and so always in this process
    - `is_chat`: memory for the whole context is allocated while the model loads, and weights are repacked
    - `caches_prompts`: on disk
    - `is_tuned`: whether a tuning profile may apply
    """

    installation: Installation
    model: InstalledModel
    settings: Settings
    servers: Servers | None = None
    context: ContextOptions = SINGLE
    tuned_for: UseName | None = None
    speculative_for: UseName | None = None
    raw: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)
    vocabulary_only: bool = False
    is_chat: bool = False
    caches_prompts: bool = False
    is_tuned: bool = True

    def for_chat(self) -> ModelSource:
        """This for a chat, which is greedy only if that is recommended or set, as the cards of Cerebrum do."""
        settings = self.settings
        is_cerebrum = CEREBRUM.name in (settings.format, self.model.known_format)
        if settings.origin("temperature") == DEFAULT and not is_cerebrum:
            settings = replace(settings, temperature=SAMPLED_TEMPERATURE)
        return replace(
            self,
            settings=settings,
            context=CHAT_CONTEXT,
            tuned_for="chat",
            speculative_for="chat",
            is_chat=True,
            caches_prompts=True,
        )

    def tuned_use(self, name: UseName | None) -> TunedUse | None:
        """A use of the model's tuning profile on this machine; None if it was never tuned, or runs elsewhere."""
        if name is None or self.servers or not self.is_tuned:
            return None
        profile = self.installation.profile(self.model, self.settings)
        return profile.uses[name] if profile else None

    def choose_format(self) -> tuple[str, FormatBuilder]:
        name, template = (RAW.name, None) if self.raw else format_of(self.settings, self.model)
        if template is not None and (path := template_file(self.settings)):
            self.installation.try_template(path)
            require_valid(path, template)
        return name, format_builder(name, template, self.template_options)

    def validate(self) -> None:
        require_generative(self.model.path, self.model.header)
        self.choose_format()
        require_attention(self.model, self.settings, self.context.pad_steps)

    def options(self, tuning: Tuning | None = None) -> LoadOptions:
        """How to load the model; its recurrent states are copied if that is what speculative decoding needs."""
        rolls_back = facts_of(self.model.header.architecture).rolls_back
        speculative = rolls_back and draft_costs(self.measured_costs, self.model, self.settings.speculative)
        context = replace(self.context, n_rs_seq=MAX_ROLLBACK if speculative else 0)
        return load_options(self.model, self.settings, context, tuning, self.vocabulary_only, self.is_chat)

    @property
    def reload_key(self) -> tuple[object, ...]:
        """A model that is loaded serves another source if that has the same key."""
        settings = self.settings
        served = self.model.name if self.model.is_served else None  # whose file is that of another
        return self.model.paths, served, settings.format, settings.chat_template, settings.cache_gb, self.options()

    @property
    def measured_costs(self) -> StepCosts | None:
        """Costs of steps with draft tokens, as measured for this use; None without a profile, which is read."""
        use = self.tuned_use(self.speculative_for)
        return use.step_costs if use else None

    def start_engine(self, format_name: str) -> Engine:
        """Start to load the model, or to connect to its servers, without waiting.

        A tuning that cannot be used, as with less free memory than when it was measured, gives way to the defaults.
        """
        if self.servers and not self.vocabulary_only:
            return self._connect(self.servers)
        open_file, default, use = self.installation.open_file, self.options(), self.tuned_use(self.tuned_for)
        tuned = self.options(use.tuning) if use else default

        def open_backend(emit: Callable[[Event], None], stop: StopFlag) -> Backend:
            if self.settings.speculative and (notice := draft_notice(self.model)):
                emit(notice)
            if tuned != default:
                try:
                    return open_file(replace(tuned, baseline=default), emit, stop)
                except (EngineError, ModelFileError) as error:
                    if stop:
                        raise
                    emit(fallback_notice(error))
            return open_file(default, emit, stop)

        states = None
        if self.caches_prompts and not self.vocabulary_only:
            states = self.installation.prompt_cache(self.model, format_name, self.settings)
        return LocalEngine(open_backend, states, self.installation.cache_directory)

    def _connect(self, servers: Servers) -> Engine:
        from cerebrum_cli.engine.remote.remote_engine import RemoteEngine
        from cerebrum_cli.engine.remote.timeouts import ServerTimeouts

        options = load_options(self.model, self.settings, vocabulary_only=True)
        return RemoteEngine(
            lambda emit, stop: self.installation.open_file(options, emit, stop),
            servers.endpoints,
            servers.window,
            replace(ServerTimeouts(), **servers.timeouts),
            servers.earlier,
            servers.may_differ,
            self.model.is_served,
        )


def slots_of(source: ModelSource) -> int:
    use = source.tuned_use("batch")
    return source.context.slots or (use and use.tuning.slots) or AUTO_PARALLEL


def format_of(settings: Settings, model: InstalledModel) -> tuple[str, str | None]:
    if model.is_served:
        return SERVERS.name, None
    if path := template_file(settings):
        return EMBEDDED, read_text(path, MAX_TEMPLATE_BYTES)  # not compiled: that may take any time
    embedded = model.header.chat_template
    return choose_format(settings.format, model.known_format, embedded), embedded


def load_options(
    model: InstalledModel,
    settings: Settings,
    context: ContextOptions = SINGLE,
    tuning: Tuning | None = None,
    vocabulary_only: bool = False,
    whole_context: bool = False,
) -> LoadOptions:
    """The options of a context, then a tuning, then the user. Raises UsageError for attention that is rejected."""
    require_attention(model, settings, context.pad_steps)
    adapters = tuple(AdapterFile(str(adapter.path), adapter.scale) for adapter in model.adapters)
    context = replace(
        context,
        length=settings.ctx or 0,
        n_threads=settings.threads or 0,
        flash_attention=FLASH_ATTENTION.get(settings.flash_attn or "", context.flash_attention),
        cache_type_k=settings.cache_type_k or context.cache_type_k,
        cache_type_v=settings.cache_type_v or context.cache_type_v,
    )
    thinks = any(markup.open in (model.header.chat_template or "") for markup in REASONING_MARKUPS)
    options = LoadOptions(
        GgufFile(model.path, model.trained_context, model.sizes, adapters, model.is_verified, thinks),
        context,
        settings.gpu_layers,
        plan_repacking(model.quantization, is_chat=whole_context, is_batch=context.slots > 1 or context.pad_steps),
        vocabulary_only,
        whole_context,
        settings.cpu_moe,
    )
    return options.with_tuning(without_user_settings(replace(tuning, slots=None), settings)) if tuning else options


def without_user_settings(tuning: Tuning, settings: Settings) -> Tuning:
    is_set = {
        "n_threads": settings.threads,
        "n_threads_batch": settings.threads,
        "gpu_layers": settings.gpu_layers != "auto",
        "flash_attention": settings.flash_attn,
    }
    return replace(tuning, **dict.fromkeys(name for name, value in is_set.items() if value))


def require_attention(model: InstalledModel, settings: Settings, pad_steps: bool = False) -> None:
    """Raise UsageError for cache types, or a choice of flash attention, that cannot be used with this model."""
    if pad_steps and settings.flash_attn == "off":
        raise UsageError.conflict("batch_invariant", "flash_attn=off")
    types = {"cache_type_k": settings.cache_type_k, "cache_type_v": settings.cache_type_v}
    header, name = model.header, model.header.architecture
    if pad_steps and not has_stable_attention(header):
        raise UsageError(
            f"batch_invariant=on: attention of the architecture {name} depends on other rows in llama.cpp",
            "omit batch_invariant=on",
        )
    for index, (key, cache_type) in enumerate(types.items()):
        lengths = (key_and_value[index] for key_and_value in header.sizes.head_lengths)
        wrong = next((length for length in lengths if length % BLOCK_SIZE), None)
        if cache_type in QUANTIZED_CACHE_TYPES and wrong:
            name_and_value = f"{key}={cache_type}"
            raise UsageError(
                f"{name_and_value} needs heads with a multiple of {BLOCK_SIZE} elements; this model's have {wrong}",
                f"omit {name_and_value}",
            )
    wants_flash = "flash_attn=on" if settings.flash_attn == "on" else None
    if settings.cache_type_v in QUANTIZED_CACHE_TYPES:
        wants_flash = f"cache_type_v={settings.cache_type_v}"
        if settings.flash_attn == "off":
            raise UsageError(f"{wants_flash} needs flash attention", "omit flash_attn=off, or the cache type")
    if wants_flash and not facts_of(name).has_flash_attention:
        raise UsageError(
            f"{wants_flash}: llama.cpp has no flash attention for the architecture {name}", f"omit {wants_flash}"
        )
    is_mixed = len({cache_type or "f16" for cache_type in types.values()}) > 1
    if is_mixed and (has_mla(header) or facts_of(name).needs_equal_cache_types):
        raise UsageError(
            f"the architecture {name} needs the same type for keys and values", "set both with --set cache_type=TYPE"
        )


def has_stable_attention(header: Header) -> bool:
    """Whether attention with padded steps does not depend on other sequences: with MLA, it multiplies by slot."""
    return facts_of(header.architecture).has_stable_attention and not has_mla(header)


def has_mla(header: Header) -> bool:
    return bool(header.metadata.get(f"{header.architecture}.attention.key_length_mla"))


def draft_problem(model: InstalledModel) -> str | None:
    name = model.header.architecture
    if any(layer.state_bytes for layer in model.sizes.layers) and not facts_of(name).rolls_back:
        return f"llama.cpp cannot roll back recurrent states of the {name} architecture"
    return None


def draft_notice(model: InstalledModel) -> NoticeEvent | None:
    cause = draft_problem(model)
    return NoticeEvent(f"speculative decoding is off for this model: {cause}", "omit speculative=on") if cause else None


def draft_costs(measured: StepCosts | None, model: InstalledModel, speculative: bool | None) -> StepCosts | None:
    """Costs of steps with draft tokens: as measured, if it can pay off; measured or default ones, if asked for.

    None without speculative decoding. Mixtures of experts are no exception: their additional experts are measured too.
    """
    can_pay = measured is not None and measured.best_draft is not None
    is_wanted = can_pay if speculative is None else speculative
    return (measured or DEFAULT_COSTS) if is_wanted and not draft_problem(model) else None


def generation_fingerprint(
    settings: Settings, grammar: str | None, model: InstalledModel, library: Library
) -> dict[str, Any]:
    values, (name, template) = asdict(settings), format_of(settings, model)
    return {
        "model": model.label,
        "model file": library.file_identity(model),
        "adapter": model.adapter_identity,
        "format": name,
        **({"chat template": sha256((template or "").encode()).hexdigest()} if template_file(settings) else {}),
        **{key.replace("_", " "): values[key] for key in FINGERPRINTED},
        "grammar": grammar and sha256(grammar.encode()).hexdigest(),
    }
