"""Which model, how it is used and where it runs; and how it is loaded with these settings."""

from __future__ import annotations

from dataclasses import asdict, field, replace
from functools import partial
from typing import Any

from cerebrum_cli.core.errors import GrammarError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import read_text
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.sampling import SAMPLED_TEMPERATURE
from cerebrum_cli.core.settings import DEFAULT, EMBEDDED, GENERATION_KEYS, Layer, Settings, fold
from cerebrum_cli.core.text import text_digest
from cerebrum_cli.engine.drafter import MAX_ROLLBACK
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.memory import BLOCK_SIZE, QUANTIZED_CACHE_TYPES
from cerebrum_cli.engine.requests import ContextOptions, GgufFile, LoadOptions
from cerebrum_cli.formats.choice import SERVER, ChosenFormat, choose_format, mentions_reasoning
from cerebrum_cli.formats.prompt_format import RAW
from cerebrum_cli.gguf.header import Header, require_generative
from cerebrum_cli.gguf.sizes import facts_of
from cerebrum_cli.library.installed import Library
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.replies.installation import Installation, Servers, without_local

FINGERPRINTED = ("system", *GENERATION_KEYS, "tool_rounds", "ctx", "cache_type_k", "cache_type_v")
MAX_TEMPLATE_BYTES = 2**20
FLASH_ATTENTION = {"on": True, "off": False}
MAX_PARALLEL = 256  # sequences llama.cpp supports
AUTO_PARALLEL = 64  # more than this was nowhere faster
CHAT_CONTEXT = ContextOptions(slots=16, kv_unified=True)  # one sequence, except for votes


@frozen
class ModelSource:
    """Which model, how it is used, and where it runs: on `servers`, or in this process.

    - `context`: its sequences
    - `raw`: without a prompt format
    - `template_options`: variables of an embedded template
    - `vocabulary_only`: without weights, and so always in this process
    - `is_chat`: memory for the whole context is allocated while the model loads, and weights are repacked
    - `caches_prompts`: on disk
    """

    installation: Installation
    model: InstalledModel
    settings: Settings
    servers: Servers | None = None
    context: ContextOptions = ContextOptions()
    raw: bool = False
    template_options: JsonObject = field(default_factory=dict)
    vocabulary_only: bool = False
    is_chat: bool = False
    caches_prompts: bool = False

    def for_chat(self) -> ModelSource:
        """This for a chat, which is greedy only if that is recommended or set, as the cards of Cerebrum do."""
        settings = self.settings
        is_cerebrum = "cerebrum" in (settings.format, self.model.known_format)
        if settings.origin("temperature") == DEFAULT and not is_cerebrum:
            settings = replace(settings, temperature=SAMPLED_TEMPERATURE)
        return replace(self, settings=settings, context=CHAT_CONTEXT, is_chat=True, caches_prompts=True)

    def choose_format(self) -> ChosenFormat:
        chosen = replace(format_of(self.settings, self.model, self.raw), options=self.template_options)
        path = self.settings.template_file
        if chosen.template is not None and path:
            self.installation.try_template(path)
        chosen.check(path)
        return chosen

    def options(self) -> LoadOptions:
        """How to load the model. Raises UsageError for attention that is rejected.

        Speculative decoding needs copies of recurrent states: only if it was asked for.
        """
        model, settings, context = self.model, self.settings, self.context
        require_attention(model, settings, context.pad_steps)
        applied = () if self.vocabulary_only else model.adapters
        adapters = tuple((adapter.path, adapter.scale) for adapter in applied)
        if settings.speculative and facts_of(model.header.architecture).rolls_back:
            context = replace(context, n_rs_seq=MAX_ROLLBACK)
        context = replace(
            context,
            length=settings.ctx or 0,
            n_threads=settings.threads or 0,
            flash_attention=FLASH_ATTENTION.get(settings.flash_attn or "", context.flash_attention),
            cache_type_k=settings.cache_type_k or context.cache_type_k,
            cache_type_v=settings.cache_type_v or context.cache_type_v,
        )
        thinks = mentions_reasoning(model.header.chat_template)
        file = GgufFile(
            model.path,
            model.trained_context,
            model.sizes,
            adapters,
            model.is_verified,
            thinks,
            model.quantization,
        )
        return LoadOptions(
            file,
            context,
            settings.gpu_layers,
            vocabulary_only=self.vocabulary_only,
            whole_context=self.is_chat,
            cpu_moe=settings.cpu_moe,
        )

    def check_grammar(self, grammar: Grammar) -> NoticeEvent | None:
        """A notice of what an answer will not follow literally. Raises GrammarError for what cannot be enforced."""
        if self.servers is None:
            from cerebrum_cli.engine.guidance import byte_matcher, translate

            byte_matcher(grammar)
            return translate(grammar)[1]
        if grammar.is_schema:
            from cerebrum_cli.servers.json_schemas import schema_validator

            schema_validator(grammar.text)
        elif self.model.is_served:
            raise GrammarError(
                "chat completions do not support grammars", "use a schema, or llama-server, vLLM or SGLang"
            )
        elif grammar.kind != "gbnf":
            raise GrammarError(f"servers take GBNF, not {grammar.kind}", "convert it to GBNF, or use a local model")
        return None

    @property
    def reload_key(self) -> tuple[object, ...]:
        """A model that is loaded serves another source if that has the same key."""
        settings = self.settings
        served = self.model.name if self.model.is_served else None  # whose file is that of another
        return self.model.paths, served, settings.format, settings.chat_template, settings.cache_gb, self.options()

    def start_engine(self, format_name: str) -> Engine:
        """Start to load the model, or to connect to its servers, without waiting."""
        if self.servers and not self.vocabulary_only:
            return self._connect(self.servers)
        states = None
        if self.caches_prompts and not self.vocabulary_only:
            states = self.installation.prompt_cache(self.model, format_name, self.settings)
        return LocalEngine(partial(self.installation.open_file, self.options()), states)

    def _connect(self, servers: Servers) -> Engine:
        from cerebrum_cli.servers.description import ExpectedModel
        from cerebrum_cli.servers.remote_engine import RemoteEngine
        from cerebrum_cli.servers.timeouts import ServerTimeouts

        options = replace(self, context=ContextOptions(), vocabulary_only=True, is_chat=False).options()
        expected = partial(
            ExpectedModel, earlier=servers.earlier, may_differ=servers.may_differ, messages=self.model.is_served
        )
        return RemoteEngine(
            partial(self.installation.open_file, options),
            servers.endpoints,
            servers.window,
            replace(ServerTimeouts(), **servers.timeouts),
            expected,
        )


def complete_source(
    installation: Installation,
    model: InstalledModel,
    servers: Servers | None,
    overrides: Layer,
    *,
    configured: Layer,
    samples_by: str | None = None,
    **use: Any,
) -> ModelSource:
    """A model with what is recommended for it, on servers or on this machine.

    `overrides` are settings above those that are `configured`. `samples_by` is what asks for several samples, if there
    are any; `use` are further fields. Raises UsageError, ModelFileError.
    """
    require_generative(model.path, model.header)
    settings = fold(model.recommended, configured, overrides)
    if samples_by:
        settings = settings.for_samples(samples_by)
    if servers:
        settings = without_local(settings)
    model = installation.library.with_adapters(model, settings.lora)
    return ModelSource(installation, model, settings, servers, **use)


def slots_of(source: ModelSource) -> int:
    return source.context.slots or AUTO_PARALLEL


def format_of(settings: Settings, model: InstalledModel, is_raw: bool = False) -> ChosenFormat:
    if model.is_served:
        return ChosenFormat(SERVER)
    if is_raw:
        return ChosenFormat(RAW)
    requested, template, origin = settings.format, model.header.chat_template, f"embedded in {model.path.name}"
    if path := settings.template_file:
        requested, origin = EMBEDDED, str(path)
        template = read_text(path, MAX_TEMPLATE_BYTES)  # not compiled: that may take any time
    chosen = choose_format(requested, model.known_format, template)
    return replace(chosen, origin=origin, architecture=model.header.architecture)


def require_attention(model: InstalledModel, settings: Settings, pad_steps: bool) -> None:
    """Raise UsageError for cache types, or a choice of flash attention, that cannot be used with this model."""
    header = model.header
    if pad_steps and settings.flash_attn == "off":
        raise UsageError.conflict("batch_invariant", "flash_attn=off")
    if pad_steps and not has_stable_attention(header):
        name = header.architecture
        problem = f"batch_invariant=on: attention of the architecture {name} depends on other rows in llama.cpp"
        raise UsageError(problem, "omit batch_invariant=on")
    require_block_sizes(model, "cache_type_k", settings.cache_type_k, 0)
    require_block_sizes(model, "cache_type_v", settings.cache_type_v, 1)
    facts = facts_of(header.architecture)
    types = settings.cache_type_k or "f16", settings.cache_type_v or "f16"
    if types[0] != types[1] and (has_mla(header) or facts.needs_equal_cache_types):
        raise UsageError(
            f"the architecture {header.architecture} needs the same type for keys and values",
            "set both with --set cache_type=TYPE",
        )


def require_block_sizes(model: InstalledModel, key: str, cache_type: str | None, index: int) -> None:
    """Raise UsageError for a quantized cache whose blocks do not fill heads; `index` is that of keys, or of values."""
    if cache_type not in QUANTIZED_CACHE_TYPES:
        return
    for lengths in model.header.sizes.head_lengths:
        if lengths[index] % BLOCK_SIZE:
            needed = f"heads with a multiple of {BLOCK_SIZE} elements"
            problem = f"{key}={cache_type} needs {needed}; this model's have {lengths[index]}"
            raise UsageError(problem, f"omit {key}={cache_type}")


def has_stable_attention(header: Header) -> bool:
    """Whether attention with padded steps does not depend on other sequences: with MLA, it multiplies by slot."""
    return facts_of(header.architecture).has_stable_attention and not has_mla(header)


def has_mla(header: Header) -> bool:
    return bool(header.metadata.get(f"{header.architecture}.attention.key_length_mla"))


def generation_fingerprint(
    settings: Settings, grammar: Grammar | None, model: InstalledModel, library: Library, is_raw: bool = False
) -> JsonDict:
    values, chosen = asdict(settings), format_of(settings, model, is_raw)
    return {
        "model": model.label,
        "model file": library.hashed_identity(model),
        "adapter": model.adapter_identity,
        "format": chosen.name,
        **({"chat template": text_digest(chosen.template or "")} if settings.template_file else {}),
        **{key.replace("_", " "): values[key] for key in FINGERPRINTED},
        "grammar": grammar and text_digest(grammar.text),
    }
