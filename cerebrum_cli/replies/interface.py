"""The library: open a model by any name that the commands take, or on a server, and iterate its replies."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from cerebrum_cli.core.ask import Ask, parse_votes
from cerebrum_cli.core.conversation import Conversation, Text, Tokens, conversation_from_messages
from cerebrum_cli.core.errors import CerebrumError, EngineError, FormatError, PromptTooLong, UsageError
from cerebrum_cli.core.events import (
    Event,
    Events,
    FinishEvent,
    LoadEvent,
    NoticeEvent,
    RefusedEvent,
    SequenceId,
    Timings,
    TokenEvent,
    raise_refusals,
    with_notices_behind,
)
from cerebrum_cli.core.grammar import Grammar, schema_grammar
from cerebrum_cli.core.settings import (
    LOAD_KEYS,
    MAX_PARALLEL,
    Layer,
    Settings,
    SourcedLayer,
    fold,
    reply_room,
    require_known,
)
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.requests import ContextOptions, Request
from cerebrum_cli.formats.choice import ChosenFormat
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.model_prompts import Prompts, require_no_pictures
from cerebrum_cli.replies.reply import LONG_PROMPT, Reply
from cerebrum_cli.replies.reply_controls import AnswerNow
from cerebrum_cli.replies.source import Installation, ModelSource

if TYPE_CHECKING:
    from cerebrum_cli.core.decision import Decision
    from cerebrum_cli.engine.engine import CancelScope
    from cerebrum_cli.engine.loglikelihood import Score
    from cerebrum_cli.replies.majority_vote import MajorityVote, Outcome, Row

Question = str | Conversation | Sequence[Mapping[str, Any]]
"""A question, a conversation that ends with one, or OpenAI's messages."""
GROWTH_STEP = 256  # tokens that llama.cpp rounds contexts up to
MIN_CACHED_TOKENS = 64  # fewer are evaluated as fast as they are read from disk


@dataclass(eq=False)
class Model:
    """A model that replies to questions. `open_model` creates it; close it, or leave its `with` block, to free it.

    It is for one thread. Settings are those of the commands, by the same names: `temperature`, `max_tokens`, `seed`,
    `think`, `system`. A `schema` is a JSON Schema, as a mapping or text, a pydantic model, or fields as in
    "name, age int"; a `grammar` is GBNF with the rule `root`, or a Grammar. With `answer_now`, the reasoning of the
    reply that is being generated can be ended.
    """

    source: ModelSource
    engine: Engine
    chosen_format: ChosenFormat
    answer_now: AnswerNow = field(default_factory=AnswerNow, init=False)
    _notices: dict[NoticeEvent, bool] = field(default_factory=dict, init=False)  # whether it was taken
    _timings: list[Timings] = field(default_factory=list, init=False)  # of single replies

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, frees: bool = True) -> None:
        """Cancel what is running, free the model unless the process ends, and record how fast it was."""
        self.engine.close(frees)
        if self._timings and not self.is_remote:
            self.source.installation.machine.record_replies(self.model.sizes, self._timings)

    def reply(
        self,
        question: Question,
        *,
        tools: Iterable[Callable[..., Any] | str] = (),
        schema: Any = None,
        grammar: str | Grammar | None = None,
        **settings: Any,
    ) -> Reply:
        """A reply to a question: iterate it. Nothing happens before.

        It may call the `tools`: Python functions, those of a file by its path, and "python", which runs programs. The
        iteration raises PromptTooLong, EngineError if the model cannot be loaded, and NoAnswer for a complete answer
        that does not match its schema.
        """
        request = self._request(question, schema, grammar, settings)
        return self.respond(replace(request, tools=self._allowed(tools)))

    def respond(self, request: Ask) -> Reply:
        """Start a reply: nothing happens before it is iterated. Raises PromptTooLong before any evaluation."""
        if not request.tools:
            return Reply(self.reply_events(request), request.conversation, request.grammar)
        from cerebrum_cli.replies.tool_loop import reply_with_tools

        return Reply(reply_with_tools(self, request), request.conversation, request.grammar)

    def vote(
        self,
        question: Question,
        samples: int | str = 8,
        *,
        check: str | None = None,
        schema: Any = None,
        grammar: str | Grammar | None = None,
        **settings: Any,
    ) -> MajorityVote:
        """Take several samples, and count their final answers; `samples` is a number, "auto" or "auto:3..16".

        With `check="python"`, each sample is asked for a program, whose output votes, too.
        """
        from cerebrum_cli.replies.majority_vote import MajorityVote

        for vote in self.replies([question], samples, check=check, schema=schema, grammar=grammar, **settings):
            assert isinstance(vote, MajorityVote)
            return vote
        raise UsageError("the vote was cancelled", "call it again")

    def replies(
        self,
        questions: Iterable[Question],
        samples: int | str | None = None,
        *,
        check: str | None = None,
        tools: Iterable[Callable[..., Any] | str] = (),
        schema: Any = None,
        grammar: str | Grammar | None = None,
        **settings: Any,
    ) -> Iterator[Reply | MajorityVote]:
        """Answer many questions concurrently; yield replies, or votes on `samples`, as they finish.

        `index` of each is the position of its question. Replies may call the `tools`. Raises the error of a question
        that cannot be answered when all others are done.
        """
        from cerebrum_cli.replies.majority_vote import MajorityVote, Outcome, Row

        if samples is not None:
            sampled = self.source.settings.changed(settings).for_samples("a vote")
            settings["temperature"] = sampled.temperature
        elif check is not None:
            raise UsageError("programs check only votes", "set samples, or omit check")
        allowed = self._allowed(tools)
        if allowed and samples is not None:
            raise UsageError.conflict("tools", "samples")
        votes = None if samples is None else parse_votes(str(samples), check)

        def row(index: int, question: Question) -> Row:
            request: Ask | CerebrumError
            try:
                request = replace(self._request(question, schema, grammar, settings), tools=allowed)
            except CerebrumError as problem:
                request = problem
            return Row(index, request, MajorityVote(votes) if votes else None)

        error: CerebrumError | None = None
        with closing(self.run_rows(row(*pair) for pair in enumerate(questions))) as events:
            for outcome in (event for event in events if isinstance(event, Outcome)):
                if problem := outcome.error:
                    error = error or problem
                elif not isinstance(outcome.result, RefusedEvent):
                    outcome.result.index = outcome.row.key
                    yield outcome.result
        if error:
            raise error

    def run_rows(
        self,
        rows: Iterable[Row],
        scope: CancelScope | None = None,
        in_order: bool = False,
    ) -> Generator[Event | Outcome, None, None]:
        """Answer rows, as `concurrent_rows` describes; yield all events, and an Outcome for all that finishes."""
        from cerebrum_cli.replies.concurrent_rows import run_rows

        return run_rows(self, rows, scope, in_order)

    def vote_events(self, request: Ask, vote: MajorityVote) -> Events:
        """Yield the events of all samples, and each new tally. Raises the error of a sample if all were refused."""
        from cerebrum_cli.replies.concurrent_rows import vote_events

        return vote_events(self, request, vote)

    def score(self, context: str, continuations: Sequence[str]) -> tuple[Score, ...]:
        """Log-probabilities of texts after a context, whose special tokens are recognized. Raises EngineError."""
        from cerebrum_cli.engine.loglikelihood import LogprobScores, ScoreRequest

        for _ in self.load():
            pass
        vocabulary = self.engine.vocabulary
        before = vocabulary.tokenize([Text(context, trusted=True)]) or self.prompts.prefix_tokens
        after = (vocabulary.tokenize([Tokens(before), Text(text, trusted=True)]) for text in continuations)
        request = ScoreRequest(before, tuple(tokens[len(before) :] for tokens in after))
        with closing(self.engine.score([request])) as events:
            for event in raise_refusals(events):
                if isinstance(event, LogprobScores):
                    return event.scores
        raise UsageError("scoring was cancelled", "call it again")

    def decide(
        self,
        question: Question,
        choices: Iterable[str] | Mapping[str, str] = ("yes", "no"),
        *,
        score: tuple[int, int] | None = None,
        letters: bool = False,
        votes: int | None = None,
    ) -> Decision:
        """Choose among given answers, and give the probability of each, without generating a reply.

        `choices` are names, or names with descriptions; `score` is the least and the largest number to answer with
        instead. With `letters`, choices are listed after letters, and a reply gives one of these. With `votes`, for a
        model that reasons, the probabilities are shares of as many replies. Raises UsageError, PromptTooLong,
        EngineError, and EndpointError for a server without log probabilities.
        """
        from cerebrum_cli.decide.deciding import decide_one

        conversation = self._request(question, None, None, {}).conversation
        return decide_one(self, conversation, choices, score, votes, by_letter=letters)

    def _allowed(self, tools: Iterable[Callable[..., Any] | str]) -> Tools:
        """The tools that a reply may call; without any, what makes them is not imported."""
        if not tools:
            return ()
        from cerebrum_cli.programs.functions import tools_of

        return tools_of(tools, self.note)

    def _request(self, question: Question, schema: Any, grammar: str | Grammar | None, changes: Layer) -> Ask:
        if schema is not None and grammar is not None:
            raise UsageError.conflict("schema", "grammar")
        if fixed := [key for key in changes if key in LOAD_KEYS and key != "system"]:
            raise UsageError(f"{fixed[0]} is set when a model is opened", f"open_model(..., {fixed[0]}=...)")
        settings = self.source.settings.changed(changes)
        if isinstance(question, str):
            question = Conversation().user(question)
        elif not isinstance(question, Conversation):
            question = conversation_from_messages(question, "messages")
        if question.system_prompt is None:
            question = replace(question, system_prompt=settings.system)
        if schema is not None:
            grammar = schema_grammar(schema)
        elif isinstance(grammar, str):
            grammar = Grammar("gbnf", grammar)
        if grammar is not None and not isinstance(grammar, Grammar):
            raise UsageError.invalid("grammar", grammar, "text, or a Grammar")
        if grammar is not None:
            self.source.check(grammar)
        return Ask(question, settings, grammar)

    # For the commands.

    @property
    def model(self) -> InstalledModel:
        return self.source.model

    @property
    def format_name(self) -> str:
        return self.chosen_format.name

    @property
    def format_setting(self) -> str:
        """The value of `format` that means the same in any directory."""
        path = self.source.settings.template_file
        return str(path.absolute()) if path else self.format_name

    @property
    def is_remote(self) -> bool:
        return self.source.servers is not None and not self.source.vocabulary_only

    @property
    def served_name(self) -> str | None:
        """The model that answers, as its servers name it once they are connected; None for one on this machine."""
        records = self.engine.builds if self.engine.is_loaded else ()
        return records[0]["model"] if records else None

    @property
    def context_size(self) -> int | None:
        """Tokens in the context of the loaded model; None before it is loaded."""
        return self.engine.context_size if self.engine.is_loaded else None

    def load(self) -> Iterator[Event]:
        """Load the model and yield the events of loading. Raises what made it fail, and FormatError."""
        for event in self.engine.load():
            if isinstance(event, LoadEvent):
                self.chosen_format.preload()  # while native code loads
            yield event
        is_named = self.prompts.format.is_servers  # by the server
        served = self.served_name
        if served and not is_named and self.model.path.name not in served:
            self.note(NoticeEvent(f"the server answers with {served}"))

    def cancel(self) -> None:
        self.engine.cancel()

    @cached_property
    def prompts(self) -> Prompts:
        """What the model gets of conversations, once its vocabulary is loaded."""
        return Prompts(self.engine, self.chosen_format, self.model.trained_context, self.is_remote)

    def check_settings(self, settings: Settings, system_prompt: str | None = None) -> None:
        """Raise UsageError for settings that the loaded model cannot follow, with their system prompt or another.

        One that has no effect gets a notice.
        """
        self.note(self.prompts.controls.check(settings, system_prompt or settings.system))

    def note(self, notice: NoticeEvent | None) -> None:
        """Report a notice, once, with the next event."""
        if notice:
            self._notices.setdefault(notice, False)

    def note_closed_list(self, finish: FinishEvent) -> None:
        """Report that a list was ended, where it was: its end is not the model's."""
        if finish.has_closed_list:
            problem = "a list that only repeated its last entries was ended"
            self.note(NoticeEvent(problem, "--set loop_check=off lets it repeat"))

    def take_notices(self) -> Iterator[NoticeEvent]:
        """What the prompts so far lack, and settings without effect: each notice once."""
        for notice, is_taken in self._notices.items():
            self._notices[notice] = True
            if not is_taken:
                yield notice

    def preview(self, conversation: Conversation, settings: Settings | None = None) -> tuple[str, TokenIds]:
        """Load the model, and return the exact prompt of a conversation, as text and token ids, without evaluating it.

        Special tokens are spelled out in the text. Raises UsageError for settings that a reply could not follow.
        """
        for _ in self.load():
            pass
        if self.prompts.format.is_servers:
            raise UsageError("the server builds the prompt, which is not known here", "use llama-server or vLLM")
        if settings:
            self.check_settings(settings, conversation.system_prompt)
        for notice in self.prompts.notices(conversation):
            self.note(notice)
        ids, text = self.prompts.tokenize(conversation), self.prompts.text(conversation)
        bos = self.engine.vocabulary.special_token_text("bos")
        if self.prompts.detokenize(ids[:1]) == bos and not text.startswith(bos):
            text = bos + text
        return text, ids

    def reply_events(self, request: Ask) -> Events:
        """Load the model, and yield the events of a reply without tools. Raises PromptTooLong before any evaluation."""
        require_no_pictures(request.conversation, self.chosen_format)
        yield from self.load()
        self.answer_now = AnswerNow()
        try:
            prepared = self.prepare_reply(replace(request, stream=True))
        except PromptTooLong:
            yield from self.take_notices()  # they may name what is too long
            raise
        yield from self.take_notices()
        if request.conversation.prefill and not request.prefix_tokens:
            tokens, texts = prepared.beginning
            yield TokenEvent(SequenceId(0), "", tokens=tokens)
            for channel, text in texts:
                yield TokenEvent(SequenceId(0), text, channel)
        with closing(self.engine.complete([prepared])) as events:
            for event in with_notices_behind(raise_refusals(events)):
                if isinstance(event, FinishEvent):
                    self._timings.append(event.timings)
                    self.note_closed_list(event)
                    yield from self.take_notices()
                yield event

    def prepare_reply(self, asked: Ask) -> Request:
        """What the engine gets for a question. Raises UsageError as `check_settings` does.

        Also PromptTooLong if no room is left for a reply, and FormatError if the format cannot render the conversation.
        """
        self.note(self.prompts.controls.check(asked.settings, asked.conversation.system_prompt))
        for notice in self.prompts.notices(asked.conversation):
            self.note(notice)
        request = self.prompts.request(asked, self.answer_now)
        tokens = len(request.prompt_tokens)
        self.make_room(tokens, asked.settings)
        self.prompts.require_room(tokens)
        return request

    def make_room(self, tokens: int, settings: Settings) -> None:
        """Double what a prompt needs, unless the context has room, or its size was chosen."""
        size, trained, source = self.engine.context_size, self.model.trained_context, self.source
        room = reply_room(size, settings.max_tokens)
        may_grow = source.caches_prompts and not source.settings.ctx
        if may_grow and not self.is_remote and tokens + room > size and tokens < trained:
            doubled = 2 * tokens
            self.grow(min(doubled + -doubled % GROWTH_STEP, trained))

    def grow(self, length: int) -> None:
        """Enlarge the context for the next prompt, as far as memory allows, with a notice."""
        size = self.engine.context_size
        self.save_prompt_cache()
        self.engine.grow(length)
        if self.engine.context_size > size:
            problem = f"increasing the context from {size} to {self.engine.context_size} tokens"
            self._notices[NoticeEvent(problem, "set ctx to choose its size")] = False

    def save_prompt_cache(
        self,
        conversation: Conversation | None = None,
        is_slow: Callable[[int], bool] | None = None,
        min_tokens: int | None = MIN_CACHED_TOKENS,
    ) -> NoticeEvent | None:
        """Save `min_tokens` or more evaluated tokens, of one conversation or all, and drop them from memory.

        The prefix that conversations with the same system prompt share is saved too if it `is_slow` to evaluate this
        many tokens. Return a notice if saving fails.
        """
        if not self.engine.is_loaded:
            conversation = None
        try:
            if min_tokens is not None:
                prompt = self.prompts.tokenize(conversation) if conversation else None
                self.engine.save_prompts(min_tokens, prompt)
            if is_slow and conversation:
                prefix = self.prompts.shared_prefix(conversation)
                if prefix and is_slow(len(prefix)):
                    self.engine.save_prefix(prefix)
        except FormatError:  # the conversation was never evaluated
            return None
        except EngineError as error:
            return NoticeEvent(f"prompt cache not saved: {error.message}", error.hint)
        return None

    def save_prompt_of(self, replies: Sequence[Reply], conversation: Conversation) -> NoticeEvent | None:
        """Save the prompt of replies, and the prefix that such prompts share, if they took long to evaluate."""
        is_long = any(reply.has_long_prompt for reply in replies)
        slow = [reply for reply in replies if reply.has_slow_prefill(reply.finish.prompt_tokens)]
        if not (is_long or slow):  # rendering and tokenizing the prefix takes time
            return None
        return self.save_prompt_cache(
            conversation,
            is_slow=lambda tokens: any(reply.has_slow_prefill(tokens) for reply in slow),
            min_tokens=LONG_PROMPT if is_long else None,
        )


def open_source(source: ModelSource) -> Model:
    """Start to load a model, or to connect to it, without waiting. Errors of file and format are raised before that."""
    if source.model.is_served and (source.raw or source.vocabulary_only):
        option = "--raw" if source.raw else "--dry-run"
        hint = "omit it, or pull the server's model, and use llama-server"
        raise UsageError(f"{option} needs the exact prompt, which the server builds", hint)
    chosen = source.choose_format()
    model = Model(source, source.start_engine(chosen.name), chosen)
    model.note(source.format_notice)
    return model


def open_model(
    name: str | None = None,
    *,
    endpoint: str | Sequence[str] = (),
    parallel: int | None = None,
    raw: bool = False,
    installation: Installation | None = None,
    **settings: Any,
) -> Model:
    """Open an installed model, by any name that the commands take; without one, the default model.

    It starts to load immediately, and the first reply waits for it. With `endpoint`, servers generate: their URLs, or
    names of their tables in config.toml; `name` is that of their model. `parallel` is the number of replies that are
    generated at a time, 16 by default. `raw` continues texts without a prompt format. Other settings are those of the
    commands; config.toml's, except its model, and CEREBRUM_* variables are not read. Raises ModelNotFound, UsageError,
    ConfigError.
    """
    if parallel is not None and parallel not in range(1, MAX_PARALLEL + 1):
        raise UsageError.invalid("parallel", parallel, f"a number from 1 to {MAX_PARALLEL}")
    installation = installation or Installation.of_user()
    urls = (endpoint,) if isinstance(endpoint, str) else tuple(endpoint)
    overrides = SourcedLayer({"model": name}, settings)
    require_known(overrides)

    requested = fold(overrides)
    endpoints = installation.find_endpoints(urls, requested)
    servers = None
    if endpoints:
        from cerebrum_cli.servers.endpoint import Servers

        servers = Servers(endpoints, parallel)
    model = installation.find_model(requested, servers)
    source = replace(installation.source(model, servers, fold(model.recommended, overrides)), raw=raw)
    if source.servers is None:
        source = source.for_chat()
        if parallel is not None:
            context = ContextOptions(slots=parallel, batch_invariant=True)
            source = replace(source, context=context, is_chat=False)
    return open_source(source)
