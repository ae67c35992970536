"""From a model and settings to a responder: the header is checked, the engine starts to load, the format is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from platform import machine
from typing import Any

from cerebrum_cli.application.inference.format_choice import chosen_format, format_builder, prepare_format
from cerebrum_cli.application.inference.profiles import DEFAULT, Profile, UseName, given_way
from cerebrum_cli.application.inference.responder import LocalResponder
from cerebrum_cli.application.models.model import Model, require_loadable
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import EngineError, FormatError, ModelFileError
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.core.settings import Layer, Settings
from cerebrum_cli.engine.backend import Backend, OpenBackend, StopFlag
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.plan import LoadOptions, Shape, Tuning, plan_repacking
from cerebrum_cli.engine.state_store import StateStore
from cerebrum_cli.formats.plain import RAW

BackendFactory = Callable[[LoadOptions], OpenBackend]
"""Return how to open a model; the runtime picks llama.cpp, tests something smaller."""

StatesFactory = Callable[[Model, str, Settings], StateStore | None]
"""Return where the states of a model asked in a format are kept; None where they are not."""


@dataclass(frozen=True, slots=True)
class Parallel:
    """How many sequences run at once, at most; `measured`: only as many as say more tokens a second together.

    Those that are `shared` have the room of one: what they begin with is held once, and the rest is divided. Where they
    are evaluated `evenly` none depends on what runs beside it.
    """

    slots: int = 1
    kv_unified: bool = False
    batch_invariant: bool = False

    @property
    def many(self) -> bool:
        """Whether it is many sequences that are to be fast; one in a batch is evaluated as many are."""
        return self.batch_invariant or (self.slots > 1 and not self.kv_unified)


SINGLE = Parallel()
CHAT_PARALLEL = Parallel(16, kv_unified=True)  # a chat: one sequence, but for votes


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What answers for a model: itself or another encoding of it, and what was measured of that."""

    model: Model
    profile: Profile | None = None

    @property
    def depends_on_prompt_length(self) -> bool:
        """Whether it is opened in another way for a long prompt."""
        return self.profile is not None and self.profile.long_from is not None

    def tuning(self, use: UseName, prompt_tokens: int = 0) -> Tuning:
        """Return how it is opened for a use."""
        return self.profile.tuning(use, prompt_tokens) if self.profile else DEFAULT


def as_it_is(model: Model, _: Settings) -> ResolvedModel:
    """Have every model answer itself, opened as usual."""
    return ResolvedModel(model)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its way into memory, and the responder that will speak for it; `file` is the model that answers."""

    model: Model
    file: Model
    format_name: str
    engine: Engine
    responder: LocalResponder

    def save_prompt_cache(self, least: int, conversation: Conversation | None = None) -> NoticeEvent | None:
        """Keep what the model has read, of one conversation or of all, if that is `least` tokens or more.

        Return why that cannot be done.
        """

        def keep() -> None:
            prompt = self.responder.tokens(conversation) if conversation and self.engine.is_loaded else None
            self.engine.save_prompt_cache(least, prompt)

        return told(keep)

    def save_prefix(self, conversation: Conversation, took_long: Callable[[int], bool]) -> NoticeEvent | None:
        """Keep what other conversations with this system prompt begin with, if so many tokens take long to read.

        Return why that cannot be done. What the model has read after them is forgotten.
        """

        def keep() -> None:
            beginning = self.responder.beginning(conversation) if self.engine.is_loaded else ()
            if beginning and took_long(len(beginning)):
                self.engine.save_prefix(beginning)

        return told(keep)


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """How models are opened here: found by a reference, asked with settings folded for them, their states kept."""

    resolve: Callable[[str | None], Model]
    fold: Callable[[Layer, Model], Settings]
    factory: BackendFactory
    states: StatesFactory | None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    answering: Callable[[Model, Settings], ResolvedModel] = as_it_is

    def settled(self, given: Layer) -> tuple[Model, Settings]:
        """Return the model that is meant and its settings; what can be wrong with either is raised here."""
        model = self.resolve(given.get("model"))
        settings = self.fold(given, model)
        require_loadable(model.path, model.header)
        template = model.header.chat_template
        name = chosen_format(settings.format, model.known_format, template)
        format_builder(name, template, self.template_options)
        return model, settings

    def open(self, model: Model, settings: Settings) -> LoadedModel:
        """Begin to load a model for a talk, and return at once."""
        return open_model(
            self.factory,
            model,
            settings,
            template_options=self.template_options,
            whole_context=True,
            states=self.states,
            parallel=CHAT_PARALLEL,
            file=(answering := self.answering(model, settings)).model,
            tuning=answering.tuning("chat"),
        )


def told(keep: Callable[[], None]) -> NoticeEvent | None:
    """Keep what a model has read, or return why that cannot be done."""
    try:
        keep()
    except FormatError:  # nothing of it was read
        return None
    except EngineError as error:
        return NoticeEvent(f"what was read is not kept, and will be read again: {error.message}", error.hint)
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
    states: StatesFactory | None = None,
    parallel: Parallel = SINGLE,
    file: Model | None = None,
    tuning: Tuning = DEFAULT,
) -> LoadedModel:
    """Begin to load a model, or the file that answers for it, and return at once.

    What is wrong with a file or format is raised before.
    """
    file = file or model
    require_loadable(file.path, file.header)
    template = file.header.chat_template
    name = RAW.name if raw else chosen_format(settings.format, model.known_format, template)
    build = format_builder(name, template, template_options or {})
    usual = load_options(file, settings, parallel, vocabulary_only, whole_context)
    tuned = load_options(file, settings, parallel, vocabulary_only, whole_context, tuning)
    engine = Engine(
        factory(usual) if tuned == usual else falling_back(factory, tuned, usual),
        states(file, name, settings) if states and not vocabulary_only else None,
    )
    responder = LocalResponder(engine, build, file.trained_context, partial(prepare_format, name))
    return LoadedModel(model, file, name, engine, responder)


def falling_back(factory: BackendFactory, tuned: LoadOptions, usual: LoadOptions) -> OpenBackend:
    """Return how to open a model as it is tuned, or as usual where that fails: what was measured may not fit today."""
    open_tuned = factory(tuned)

    def open_backend(tell: Callable[[Event], None], stop: StopFlag) -> Backend:
        try:
            return open_tuned(tell, stop)
        except (EngineError, ModelFileError) as error:
            if stop:
                raise
            tell(NoticeEvent(f"the model cannot be opened as it was tuned: {error.message}", "all is as usual now"))
        return factory(usual)(tell, stop)

    return open_backend


def load_options(
    model: Model,
    settings: Settings,
    parallel: Parallel = SINGLE,
    vocabulary_only: bool = False,
    whole_context: bool = False,
    tuning: Tuning = DEFAULT,
) -> LoadOptions:
    """Return how a model is to be loaded: as it is tuned, but for what was asked for."""
    header = model.header
    usual = LoadOptions(
        path=model.path,
        shape=Shape(model.trained_context, model.size, header.n_layers, header.kv_bytes_per_token),
        context_size=settings.ctx,
        gpu_layers=settings.gpu_layers,
        n_threads=settings.threads,
        slots=parallel.slots,
        vocabulary_only=vocabulary_only,
        whole_context=whole_context,
        repack=plan_repacking(model.quantization, parallel.many, machine()),
        kv_unified=parallel.kv_unified,
        batch_invariant=parallel.batch_invariant,
    )
    return usual.with_tuning(given_way(replace(tuning, slots=None), settings))


def loaded_with(settings: Settings) -> tuple[object, ...]:
    """Return the settings for which a model has to be opened anew."""
    return settings.format, settings.ctx, settings.threads, settings.gpu_layers, settings.cache_gb
