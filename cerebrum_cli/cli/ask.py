"""Answer one question: the run of `cerebrum ask`."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from cerebrum_cli.chat.session_recorder import SessionRecorder
from cerebrum_cli.cli.generation import generation_settings, read_grammar, require_effective
from cerebrum_cli.cli.models import find_model, find_profile
from cerebrum_cli.cli.saved_prompts import apply_prompt
from cerebrum_cli.cli.servers import find_endpoints, without_local
from cerebrum_cli.inference.load_options import SINGLE, Parallel
from cerebrum_cli.inference.loading import open_model, open_servers
from cerebrum_cli.inference.profiles import step_costs_of, tuning_of
from cerebrum_cli.inference.question import Question, template_options
from cerebrum_cli.inference.reply_stream import GenerationRequest
from cerebrum_cli.models.library import with_adapters
from cerebrum_cli.terminal.keyboard import Keyboard

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import Runtime
    from cerebrum_cli.cli.options import AskOptions
    from cerebrum_cli.core.conversation import Conversation
    from cerebrum_cli.core.settings import Layer, Settings
    from cerebrum_cli.inference.loading import LoadedModel
    from cerebrum_cli.inference.voting import MajorityVote
    from cerebrum_cli.models.model import Model


def ask(runtime: Runtime, prompt: str | None, given: Layer, options: AskOptions, typed: frozenset[str]) -> None:
    """Answer one question, by one reply or by a vote, and save the exchange; or save the question as a prompt.

    `typed` are the parameters on the command line.
    """
    if options.save_prompt is not None:
        from cerebrum_cli.cli.prompts import save

        save(runtime, options.save_prompt, prompt, given, options, typed)
        return
    saved, given, options = apply_prompt(runtime, given, options, typed)
    notice = (lambda _: None) if options.quiet else runtime.streams.notice
    question = Question(prompt, options.file, options.messages, options.raw, notice, saved)
    question.validate(runtime.streams.piped)
    options.validate()
    saves = not (options.no_log or options.raw)
    recorder = SessionRecorder(
        lambda: runtime.history, runtime.streams.notice, continues=options.continue_, saves=saves
    )
    with closing(recorder):
        answer(runtime, question, recorder, given, options, typed)


def answer(
    runtime: Runtime,
    question: Question,
    recorder: SessionRecorder,
    given: Layer,
    options: AskOptions,
    typed: frozenset[str],
) -> None:
    """Resolve the model and its settings, load it, and answer a question."""
    given = recorder.with_defaults(given, is_remote=bool(options.endpoint))
    model = find_model(runtime, given, options)
    vote = new_vote(options)
    settings = generation_settings(runtime, given, model, "--votes" if vote else None)
    model = model if options.endpoint else with_adapters(runtime.library, model, settings.lora)
    require_effective(settings, typed, options)
    grammar, piped = read_grammar(runtime, options), runtime.streams.piped

    def read() -> Conversation:
        conversation = recorder.prepend(question.read(piped, settings, given.get("system")), model, given)
        return replace(conversation, thinks=settings.thinks)

    conversation = None if piped else read()  # standard input is read while the model loads
    loaded = start_loading(runtime, model, settings, vote, options)
    with closing(loaded.engine):
        from cerebrum_cli.cli.answer import Answer, show_prompt

        conversation = conversation or read()
        if options.dry_run:
            show_prompt(runtime.streams, loaded, conversation, options)
            return
        request = GenerationRequest(conversation, settings, grammar)
        keyboard = Keyboard()
        with keyboard.without_echo() if runtime.streams.out_is_terminal else nullcontext():
            Answer(runtime.streams, loaded, recorder, request, options, keyboard).show(vote)


def start_loading(
    runtime: Runtime, model: Model, settings: Settings, vote: MajorityVote | None, options: AskOptions
) -> LoadedModel:
    """Start to load the model, or to connect to its server. A dry run needs the vocabulary only."""
    arguments = template_options(options.template_arg)
    endpoints = find_endpoints(runtime, options)
    if endpoints and not options.dry_run:
        settings = without_local(settings)
        return open_servers(
            runtime.open_backend, endpoints, model, settings, raw=options.raw, template_options=arguments
        )
    profile = find_profile(runtime, model, settings, options)
    return open_model(
        runtime.open_backend,
        model,
        settings,
        raw=options.raw,
        template_options=arguments,
        vocabulary_only=options.dry_run,
        prompt_cache=runtime.prompt_cache,
        parallel=Parallel(vote.max_samples) if vote else SINGLE,
        tuning=tuning_of(profile, "batch" if vote else "ask"),
        step_costs=step_costs_of(profile, "ask"),
    )


def new_vote(options: AskOptions) -> MajorityVote | None:
    """The vote that `--votes` asks for, before its first sample."""
    bounds = options.vote_bounds
    if bounds is None:
        return None
    from cerebrum_cli.inference.voting import MajorityVote

    return MajorityVote(bounds)
