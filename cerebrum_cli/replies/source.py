"""What a user has, which model of it is used where, and how that is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import read_text
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.sampling import SAMPLED_TEMPERATURE
from cerebrum_cli.core.settings import (
    CONFIG,
    DEFAULT,
    EMBEDDED,
    GENERATION_KEYS,
    LOCAL_KEYS,
    MAX_PARALLEL,
    Config,
    Layer,
    Settings,
    fold,
    read_config,
    without_keys,
    write_setting,
)
from cerebrum_cli.core.text import text_digest
from cerebrum_cli.engine.local import MachineRecords, open_engine, open_prompt_cache
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.formats.choice import SERVER, ChosenFormat, choose_format, mentions_reasoning
from cerebrum_cli.formats.prompt_format import RAW
from cerebrum_cli.gguf.contents import TENSOR_TYPES, TYPE_NUMBERS
from cerebrum_cli.gguf.header import Header, require_generative
from cerebrum_cli.gguf.sizes import facts_of
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library

if TYPE_CHECKING:
    from cerebrum_cli.core.ask import Votes
    from cerebrum_cli.core.saved_prompts import PromptDirectory
    from cerebrum_cli.engine.engine import Engine
    from cerebrum_cli.engine.local import OpenFile
    from cerebrum_cli.servers.endpoint import Endpoint, Servers

PROMPTS = "prompts"  # in the configuration directory
ONLY_HERE = "programs check only replies of a model on this machine", "omit --check, or --endpoint"
CHAT_SLOTS = 16  # one sequence, except for votes
USUAL_REASONING = 1000  # tokens, about, before an answer
AUTO_PARALLEL = 64  # sequences; more than this was nowhere faster
MAX_TEMPLATE_BYTES = 2**20
FINGERPRINTED = ("system", *GENERATION_KEYS, "ctx", "cache_type")
FLASH_ATTENTION = {"on": True, "off": False}


@dataclass
class Installation:
    """The directories of a user, the models and settings in them, and what opens a model file.

    `try_template` raises ModelFileError for a file whose chat template takes too much time or memory.
    """

    config_directory: Path
    data_directory: Path
    cache_directory: Path
    open_file: OpenFile  # loads a model file: llama.cpp, or something smaller in tests
    try_template: Callable[[Path], None] = lambda *_: None
    library: Library = field(init=False)
    machine: MachineRecords = field(init=False)

    def __post_init__(self) -> None:
        self.machine = MachineRecords(self.data_directory)
        capacity = self.machine.capacity
        self.library = Library.of_user(self.config_directory, self.data_directory, capacity, self.default_model)

    @classmethod
    def of_user(cls, **others: Any) -> Self:
        from platformdirs import PlatformDirs

        directories = PlatformDirs("cerebrum", appauthor=False)
        data = directories.user_data_path
        records = MachineRecords(data)
        return cls(
            directories.user_config_path,
            data,
            directories.user_cache_path,
            records.open_file,
            records.try_template,
            **others,
        )

    def write_setting(self, key: str, value: Any) -> None:
        """Write a setting into config.toml; remove it for None. Raises ConfigError."""
        write_setting(self.config_directory / CONFIG, key, value)
        vars(self).pop("config", None)  # it is read again

    def default_model(self) -> str | None:
        """The model that config.toml names. Raises ConfigError."""
        model: str | None = self.config.settings.get("model")
        return model

    @property
    def sessions_path(self) -> Path:
        """The database of sessions."""
        return self.data_directory / "sessions" / "sessions.db"

    @property
    def history_path(self) -> Path:
        """The questions typed at the prompt of a chat."""
        return self.data_directory / "history"

    @property
    def prompt_cache_directory(self) -> Path:
        """The prompt cache, which holds tokens of conversations."""
        return self.cache_directory / "states"

    def find_endpoints(
        self,
        texts: Sequence[str],
        settings: Settings,
        served_model_name: str | None = None,
    ) -> tuple[Endpoint, ...]:
        """Servers, by their URLs or the names of their tables in config.toml. Raises UsageError, ConfigError."""
        if not texts:
            return ()
        from cerebrum_cli.replies.endpoints import find_endpoints

        tables = self.config.endpoints
        return find_endpoints(self.library, tables, texts, settings, served_model_name)

    def find_model(self, settings: Settings, servers: Servers | None) -> InstalledModel:
        """The model of the servers, or one that is installed.

        Raises ModelNotFound, UsageError, and for servers ConfigError, EndpointError.
        """
        if servers is None:
            return self.library.resolve(settings.model)
        from cerebrum_cli.replies.endpoints import find_remote_model

        return find_remote_model(self.library, settings, servers.endpoints)

    def source(self, model: InstalledModel, servers: Servers | None, settings: Settings) -> ModelSource:
        """A model with its settings, on servers or on this machine. Raises UsageError, ModelFileError.

        Settings of a model on this machine, which config.toml may set, do not apply to servers.
        """
        require_generative(model.path, model.header)
        if servers:
            settings.require_no_adapters("--endpoint")
            defaults = Settings()
            settings = replace(settings, **{key: getattr(defaults, key) for key in LOCAL_KEYS})
        model = self.library.with_adapters(model, settings.lora)
        return ModelSource(self, model, settings, servers)

    def settings(self, overrides: Layer, recommended: Layer | None = None) -> Settings:
        """Merge all layers: defaults, what a model recommends, config.toml, then the environment and the command line.

        Raises ConfigError, UsageError.
        """
        return fold(recommended or {}, self.config.settings, overrides)

    def ignore_settings(self, keys: Collection[str]) -> None:
        self.config = replace(self.config, settings=without_keys(self.config.settings, keys))

    @property
    def prompts(self) -> PromptDirectory:
        from cerebrum_cli.core.saved_prompts import PromptDirectory

        return PromptDirectory(self.config_directory / PROMPTS)

    @cached_property
    def config(self) -> Config:
        """Contents of config.toml, read once. Raises ConfigError."""
        return read_config(self.config_directory / CONFIG)


@frozen
class ModelSource:
    """Which model, how it is used, and where it runs: on `servers`, or in this process.

    - `context`: its sequences
    - `raw`: without a prompt format
    - `template_variables`: variables of an embedded template
    - `vocabulary_only`: without weights, and so always in this process
    - `is_chat`: memory for the whole context is allocated while the model loads, and weights are repacked
    - `caches_prompts`: on disk
    - `answer_tokens`: expected tokens of the answer to a single question; 0 if unknown
    """

    installation: Installation
    model: InstalledModel
    settings: Settings
    servers: Servers | None = None
    context: ContextOptions = ContextOptions()
    raw: bool = False
    template_variables: JsonObject = field(default_factory=dict)
    vocabulary_only: bool = False
    is_chat: bool = False
    caches_prompts: bool = False
    answer_tokens: int = 0

    def for_chat(self) -> ModelSource:
        """A copy for chats. Temperature stays 0 only where the model's card or the user sets it."""
        settings = self.settings
        is_cerebrum = "cerebrum" in (settings.format, self.model.known_format)
        if settings.origin("temperature") == DEFAULT and not is_cerebrum:
            settings = replace(settings, temperature=SAMPLED_TEMPERATURE)
        return replace(
            self,
            settings=settings,
            context=ContextOptions(slots=CHAT_SLOTS, kv_unified=True),
            is_chat=True,
            caches_prompts=True,
        )

    def for_samples(self, by: str, slots: int | None = None) -> ModelSource:
        """A copy for several samples of a prompt, by the option `by`. Raises UsageError if temperature 0 is set."""
        context = self.context if slots is None else replace(self.context, slots=slots)
        return replace(self, settings=self.settings.for_samples(by), context=context)

    def for_rows(self, samples: int = MAX_PARALLEL, earlier: Sequence[Mapping[str, str]] = ()) -> ModelSource:
        """A copy for up to `samples` concurrent samples. Servers must be like those of the `earlier` run."""
        if self.servers:
            return replace(self, servers=replace(self.servers, earlier=earlier or self.servers.earlier))
        return replace(self, context=replace(self.context, slots=min(self.slots, samples)))

    @property
    def slots(self) -> int:
        """Number of sequences generated concurrently on this machine."""
        return self.context.slots or AUTO_PARALLEL

    @property
    def chosen_format(self) -> ChosenFormat:
        """The prompt format, whose template is not compiled: that may take any time. Raises FormatError, UsageError."""
        if self.model.is_served:
            return ChosenFormat(SERVER)
        if self.raw:
            return ChosenFormat(RAW)
        header, requested = self.model.header, self.settings.format
        template, origin = header.chat_template, f"embedded in {self.model.path.name}"
        if path := self.settings.template_file:
            requested, template, origin = EMBEDDED, read_text(path, MAX_TEMPLATE_BYTES), str(path)
        chosen = choose_format(requested, self.model.known_format or self.model.assumed_format, template)
        variables = self.template_variables
        return replace(chosen, origin=origin, architecture=header.architecture, variables=variables)

    @property
    def format_notice(self) -> NoticeEvent | None:
        """A notice of a format that is only a guess."""
        spec, assumed = self.model.spec, self.model.assumed_format
        if not (spec and assumed) or self.raw or self.settings.format or self.model.is_served:
            return None
        problem = f"the card of {spec.title} states no prompt format; {assumed} is a guess"
        return NoticeEvent(problem, "choose another with --format NAME, or /set format NAME in a chat")

    def choose_format(self) -> ChosenFormat:
        """The prompt format, checked. Raises FormatError, UsageError, ModelFileError."""
        chosen, path = self.chosen_format, self.settings.template_file
        if chosen.template is not None and path:
            self.installation.try_template(path)
        chosen.check(path)
        return chosen

    def options(self) -> LoadOptions:
        """How to load the model. Raises UsageError for cache types that it cannot have."""
        model, settings = self.model, self.settings
        require_cache_types(model.header, settings)
        applied = () if self.vocabulary_only else model.adapters
        thinks = mentions_reasoning(model.header.chat_template)
        return LoadOptions(
            model.path,
            model.trained_context,
            model.sizes,
            self._context_options,
            settings.gpu_layers,
            vocabulary_only=self.vocabulary_only,
            whole_context=self.is_chat,
            cpu_moe=settings.cpu_moe,
            reply_tokens=self._reply_tokens(thinks),
            adapters=tuple((adapter.path, adapter.scale) for adapter in applied),
            is_verified=model.is_verified,
            thinks=thinks,
            quantization=model.quantization,
        )

    @property
    def _context_options(self) -> ContextOptions:
        """Options of the context; speculative decoding, which needs copies of recurrent states, only if it is set."""
        settings, context = self.settings, self.context
        keys, values = settings.cache_types if settings.cache_type else (context.cache_type_k, context.cache_type_v)
        rolls_back = bool(settings.speculative) and facts_of(self.model.header.architecture).rolls_back
        return replace(
            context,
            length=settings.ctx or 0,
            n_threads=settings.threads or 0,
            flash_attention=FLASH_ATTENTION.get(settings.flash_attn or "", context.flash_attention),
            cache_type_k=keys,
            cache_type_v=values,
            rolls_back=context.rolls_back or rolls_back,
        )

    def _reply_tokens(self, thinks: bool) -> int:
        """About how many tokens an answer will have, with its reasoning; 0 is unknown."""
        if not self.answer_tokens:
            return 0
        expected = self.answer_tokens + (USUAL_REASONING if thinks and self.settings.thinks is not False else 0)
        return min(expected, self.settings.max_tokens or expected)

    def check(self, grammar: Grammar) -> None:
        """Raise GrammarError for what cannot be enforced."""
        if self.servers is None:
            from cerebrum_cli.grammars.validation import check_grammar

            check_grammar(grammar)
        else:
            self.servers.check_grammar(grammar, self.model.is_served)

    def require_check(self) -> None:
        """Raise UsageError if no programs can check answers: behind servers, and where Monty does not work."""
        from cerebrum_cli.programs.monty import find_monty

        if self.servers is not None:
            raise UsageError(*ONLY_HERE)
        find_monty()

    @property
    def reload_key(self) -> tuple[object, ...]:
        """A model that is loaded serves another source if that has the same key."""
        settings = self.settings
        served = self.model.name if self.model.is_served else None  # whose file is that of another
        return self.model.paths, served, settings.format, settings.cache_gb, self.options()

    def fingerprint(self, grammar: Grammar | None) -> JsonDict:
        """Everything that the model's answer to a prompt depends on, by readable names."""
        model, values, chosen = self.model, asdict(self.settings), self.chosen_format
        return {
            **({"engine": "servers"} if self.servers else {}),
            "template arguments": self.template_variables or None,
            "model": model.label,
            "model file": self.installation.library.identity(model, is_hashed=True),
            "adapter": model.adapter_identity,
            "format": chosen.name,
            **({"chat template": text_digest(chosen.template or "")} if self.settings.template_file else {}),
            **{key: values[key] for key in FINGERPRINTED},
            "grammar": grammar and text_digest(grammar.text),
        }

    def votes_fingerprint(self, votes: Votes) -> JsonDict:
        """What votes depend on besides the answers to a prompt, by readable names."""
        return {"votes": str(votes)}

    def start_engine(self, format_name: str) -> Engine:
        """Start to load the model, or to connect to its servers, without waiting."""
        if self.servers and not self.vocabulary_only:
            return self._connect(self.servers)
        open_cache = None
        if self.caches_prompts and self.settings.cache_gb and not self.vocabulary_only:
            limit = int(self.settings.cache_gb * 1e9)
            model = f"{self.installation.library.identity(self.model)} {self.model.adapter_identity or ''}".rstrip()
            directory = self.installation.prompt_cache_directory
            open_cache = partial(open_prompt_cache, directory, limit, model, format_name)
        return open_engine(self.options(), self.installation.open_file, open_cache)

    def _connect(self, servers: Servers) -> Engine:
        from cerebrum_cli.servers.remote_engine import RemoteEngine

        options = replace(self, context=ContextOptions(), vocabulary_only=True, is_chat=False).options()
        return RemoteEngine(partial(self.installation.open_file, options), servers, self.model.is_served)


def require_cache_types(header: Header, settings: Settings) -> None:
    """Raise UsageError for types of the KV cache that cannot be used with this model."""
    types = settings.cache_types
    for index, cache_type in enumerate(types):  # whose blocks must fill heads
        block_size = TENSOR_TYPES[TYPE_NUMBERS[cache_type.upper()]].block_size
        for lengths in header.sizes.head_lengths:
            if lengths[index] % block_size:
                needed = f"a head size that is a multiple of {block_size}"
                problem = f"cache_type={settings.cache_type} needs {needed}; this model's is {lengths[index]}"
                raise UsageError(problem, f"omit cache_type={settings.cache_type}")
    facts = facts_of(header.architecture)
    if types[0] != types[1] and (has_mla(header) or facts.needs_equal_cache_types):
        problem = f"the architecture {header.architecture} needs the same type for keys and values"
        raise UsageError(problem, "set one type, as in --set cache_type=q8_0")


def has_mla(header: Header) -> bool:
    return bool(header.metadata.get(f"{header.architecture}.attention.key_length_mla"))
