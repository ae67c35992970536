"""Load a model with its settings: check the header, choose the prompt format, start the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import EngineError, FormatError, ModelFileError, UsageError
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.core.settings import LOCAL_KEYS, Layer, Settings
from cerebrum_cli.engine.backend import Backend, OpenBackend, StopFlag
from cerebrum_cli.engine.drafts.costs import DEFAULT_COSTS, StepCosts
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.load_options import LoadOptions, Tuning, fallback_notice
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.state_store import StateStore
from cerebrum_cli.formats.plain import RAW
from cerebrum_cli.inference.format_choice import choose_format, format_builder, prepare_format
from cerebrum_cli.inference.load_options import (
    CHAT_PARALLEL,
    SINGLE,
    Parallel,
    load_options,
    require_attention,
)
from cerebrum_cli.inference.profiles import DEFAULT, Profile, step_costs_of, tuning_of
from cerebrum_cli.inference.responder import Responder
from cerebrum_cli.models.generative import require_generative
from cerebrum_cli.models.model import Model

if TYPE_CHECKING:
    from cerebrum_cli.engine.cluster.node import Cluster
    from cerebrum_cli.engine.cluster.worker import OpenEngine
    from cerebrum_cli.engine.remote.endpoint import Endpoint

BackendFactory = Callable[[LoadOptions], OpenBackend]
"""Creates the function that opens a model: llama.cpp, or something smaller in tests."""

PromptCacheFactory = Callable[[Model, str, Settings], StateStore | None]
"""Opens the prompt cache on disk of a model and prompt format; None if caching is off."""


@dataclass(slots=True)
class Opener:
    """Opens a model with its `options`, or with the defaults if that fails, as with less free memory."""

    factory: BackendFactory
    options: LoadOptions
    default: LoadOptions
    notice: NoticeEvent | None = None

    def __call__(self, on_event: Callable[[Event], None], stop: StopFlag) -> Backend:
        if self.notice:
            on_event(self.notice)
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
    """A model that is loading or loaded, and its responder.

    `opener` opens its file; None with servers or nodes.
    """

    model: Model
    format_name: str
    opener: Opener | None
    engine: Engine
    responder: Responder

    @property
    def is_remote(self) -> bool:
        return self.opener is None

    @property
    def repacks(self) -> bool | None:
        """Whether weights are repacked for speed; None behind a server."""
        return self.opener.options.repack if self.opener else None

    def save_prompt_cache(self, min_tokens: int, conversation: Conversation | None = None) -> NoticeEvent | None:
        """Save the evaluated tokens of one conversation, or of all, if there are at least `min_tokens`.

        Return a notice if that fails.
        """

        if not self.engine.capabilities.prompt_cache:
            return None

        def save() -> None:
            prompt = self.responder.tokenize(conversation) if conversation and self.engine.is_loaded else None
            self.engine.save_prompt_cache(min_tokens, prompt)

        return cache_notice(save)

    def save_prefix(self, conversation: Conversation, is_slow: Callable[[int], bool]) -> NoticeEvent | None:
        """Save the prefix that conversations with this system prompt share, if it `is_slow` to evaluate.

        Return a notice if that fails. Tokens evaluated after the prefix are dropped from memory.
        """

        if not self.engine.capabilities.prompt_cache:
            return None

        def save() -> None:
            prefix = self.responder.shared_prefix(conversation) if self.engine.is_loaded else ()
            if prefix and is_slow(len(prefix)):
                self.engine.save_prefix(prefix)

        return cache_notice(save)


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Resolves model references and settings, and opens models for a chat."""

    resolve: Callable[[str | None], Model]
    fold: Callable[[Layer, Model], Settings]
    backend_factory: BackendFactory
    prompt_cache: PromptCacheFactory | None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    profile: Callable[[Model, Settings], Profile | None] = lambda *_: None
    endpoints: tuple[Endpoint, ...] = ()
    adapted: Callable[[Model, Settings], Model] = lambda model, _: model

    def resolve_settings(self, given: Layer) -> tuple[Model, Settings]:
        """Resolve the model and its settings. Raises every error that can be found before loading."""
        if self.endpoints and (local := next((key for key in LOCAL_KEYS if given.get(key) is not None), None)):
            raise UsageError(f"{local} cannot be set: the model runs on a server", "set it where the server is started")
        model = self.resolve(given.get("model"))
        settings = self.fold(given, model)
        require_generative(model.path, model.header)
        template = model.header.chat_template
        name = choose_format(settings.format, model.known_format, template)
        format_builder(name, template, self.template_options)
        require_attention(model, settings)
        return self.adapted(model, settings), settings

    def open(self, model: Model, settings: Settings) -> LoadedModel:
        """Start to load a model for a chat, or to connect to its servers, without waiting for it."""
        if self.endpoints:
            return open_servers(
                self.backend_factory, self.endpoints, model, settings, template_options=self.template_options
            )
        profile = self.profile(model, settings)
        return open_model(
            self.backend_factory,
            model,
            settings,
            template_options=self.template_options,
            whole_context=True,
            prompt_cache=self.prompt_cache,
            parallel=CHAT_PARALLEL,
            tuning=tuning_of(profile, "chat"),
            step_costs=step_costs_of(profile, "chat"),
        )


def cache_notice(save: Callable[[], None]) -> NoticeEvent | None:
    """Save to the prompt cache, and return a notice if that fails."""
    try:
        save()
    except FormatError:  # the conversation was never evaluated
        return None
    except EngineError as error:
        return NoticeEvent(f"prompt cache not saved: {error.message}", error.hint)
    return None


def open_model(
    factory: BackendFactory,
    model: Model,
    settings: Settings,
    *,
    raw: bool = False,
    template_options: Mapping[str, Any] | None = None,
    vocabulary_only: bool = False,
    whole_context: bool = False,
    prompt_cache: PromptCacheFactory | None = None,
    parallel: Parallel = SINGLE,
    tuning: Tuning = DEFAULT,
    step_costs: StepCosts | None = None,
) -> LoadedModel:
    """Start to load a model, without waiting for it.

    With `step_costs`, tokens are drafted unless the settings forbid it. Errors in the file or the choice of format are
    raised before loading starts.
    """
    require_generative(model.path, model.header)
    template = model.header.chat_template
    name = RAW.name if raw else choose_format(settings.format, model.known_format, template)
    build = format_builder(name, template, template_options or {})
    default = load_options(model, settings, parallel, vocabulary_only, whole_context)
    tuned = load_options(model, settings, parallel, vocabulary_only, whole_context, tuning)
    opener = Opener(factory, tuned, default, draft_notice(model, settings.drafts))
    engine = LocalEngine(opener, prompt_cache(model, name, settings) if prompt_cache and not vocabulary_only else None)
    choose_drafts = partial(draft_costs, step_costs, draft_problem(model))
    responder = Responder(engine, build, model.trained_context, partial(prepare_format, name), choose_drafts)
    return LoadedModel(model, name, opener, engine, responder)


def open_servers(
    factory: BackendFactory,
    endpoints: Sequence[Endpoint],
    model: Model,
    settings: Settings,
    *,
    raw: bool = False,
    template_options: Mapping[str, Any] | None = None,
    window: int | None = None,
    earlier: Sequence[Mapping[str, str]] = (),
) -> LoadedModel:
    """Start to connect to servers of a model, whose file gives the vocabulary and the prompt format.

    A server is given at most `window` requests at a time. With records of servers in `earlier`, only such are used.
    """
    from cerebrum_cli.engine.remote.engine import RemoteEngine

    def engine(vocabulary: OpenBackend) -> Engine:
        return RemoteEngine(vocabulary, endpoints, window, earlier=earlier)

    return _open_remote(factory, engine, model, settings, raw, template_options or {})


def open_cluster(
    factory: BackendFactory,
    cluster: Cluster,
    open_engine: OpenEngine,
    model: Model,
    settings: Settings,
    template_options: Mapping[str, Any],
) -> LoadedModel:
    """Start to open a model on the nodes of a cluster; its file here gives the vocabulary and the prompt format."""
    from cerebrum_cli.engine.cluster.engine import ClusterEngine

    def engine(vocabulary: OpenBackend) -> Engine:
        return ClusterEngine(vocabulary, cluster, open_engine)

    return _open_remote(factory, engine, model, settings, False, template_options)


def _open_remote(
    factory: BackendFactory,
    engine_for: Callable[[OpenBackend], Engine],
    model: Model,
    settings: Settings,
    raw: bool,
    template_options: Mapping[str, Any],
) -> LoadedModel:
    require_generative(model.path, model.header)
    template = model.header.chat_template
    name = RAW.name if raw else choose_format(settings.format, model.known_format, template)
    build = format_builder(name, template, template_options)
    engine = engine_for(factory(load_options(model, settings, vocabulary_only=True)))
    responder = Responder(engine, build, model.trained_context, partial(prepare_format, name))
    return LoadedModel(model, name, None, engine, responder)


def draft_problem(model: Model) -> str | None:
    """Why drafts cannot pay for a model; None if they can."""
    if model.header.expert_count:
        return "each token of a mixture of experts needs different weights"
    if any(layer.state_bytes for layer in model.sizes.layers):
        return "a recurrent state cannot be rolled back"
    return None


def draft_notice(model: Model, drafts: bool | None) -> NoticeEvent | None:
    """Notice that drafts were requested of a model that gets none."""
    problem = draft_problem(model) if drafts else None
    return NoticeEvent(f"speculative decoding is off for this model: {problem}", "omit drafts=on") if problem else None


def draft_costs(measured: StepCosts | None, problem: str | None, drafts: bool | None) -> StepCosts | None:
    """What steps cost: as measured, if drafts can pay; if they are asked for, in any case; None for no drafts."""
    if problem or drafts is False:
        return None
    if drafts:
        return measured or DEFAULT_COSTS
    return measured if measured and measured.best_draft else None
