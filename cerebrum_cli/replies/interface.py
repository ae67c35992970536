"""The library: open a model by any name that the commands take, or on a server, and iterate its replies."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Text, Tokens
from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.events import Event, Events, RefusedEvent, raise_refusals
from cerebrum_cli.core.grammar import Grammar, schema_grammar
from cerebrum_cli.core.messages import conversation_from_messages
from cerebrum_cli.core.settings import LOAD_KEYS, MAX_PARALLEL, OPTIONS, Layer, Settings, SourcedLayer, fold
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.engine.requests import ContextOptions
from cerebrum_cli.replies.loaded_model import LoadedModel
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.replies.source import Installation, ModelSource

if TYPE_CHECKING:
    from cerebrum_cli.core.decision import Decision
    from cerebrum_cli.engine.engine import CancelScope, Score
    from cerebrum_cli.replies.majority_vote import MajorityVote, Outcome, Row

Question = str | Conversation | Sequence[Mapping[str, Any]]
"""A question, a conversation that ends with one, or OpenAI's messages."""


class Model(LoadedModel):
    """A model that replies to questions. `open_model` creates it; close it, or leave its `with` block, to free it.

    It is for one thread. Settings are those of the commands, by the same names: `temperature`, `max_tokens`, `seed`,
    `think`, `system`. A `schema` is a JSON Schema, as a mapping or text, a pydantic model, or fields as in
    "name, age int"; a `grammar` is GBNF with the rule `root`, or a Grammar.
    """

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
        from cerebrum_cli.core.votes import parse_votes
        from cerebrum_cli.replies.majority_vote import MajorityVote, Outcome, Row

        if samples is not None:
            sampled = changed(self.source.settings, settings).for_samples("a vote")
            settings["temperature"] = sampled.temperature
        elif check is not None:
            raise UsageError("programs check only votes", "set samples, or omit check")
        allowed = self._allowed(tools)
        if allowed and samples is not None:
            raise UsageError.conflict("tools", "samples")
        votes = None if samples is None else parse_votes(str(samples), check)

        def rows() -> Iterator[Row]:
            for index, question in enumerate(questions):
                request: Ask | CerebrumError
                try:
                    request = self._request(question, schema, grammar, settings)
                except CerebrumError as problem:
                    request = problem
                else:
                    request = replace(request, tools=allowed)
                yield Row(index, request, MajorityVote(votes) if votes else None)

        error: CerebrumError | None = None
        with closing(self.run_rows(rows())) as events:
            for row, _, result, _ in (event for event in events if isinstance(event, Outcome)):
                if isinstance(result, RefusedEvent):
                    error = error or result.error
                elif isinstance(result, MajorityVote) and result.reply is None:
                    error = error or result.refusals[0].error
                elif mismatch := result.mismatch:
                    error = error or mismatch
                else:
                    result.index = row.key
                    yield result
        if error:
            raise error

    def run_rows(
        self,
        rows: Iterable[Row],
        scope: CancelScope | None = None,
        in_order: bool = False,
        sorts: bool = True,
    ) -> Generator[Event | Outcome, None, None]:
        """Answer rows, as `concurrent_rows` describes; yield all events, and an Outcome for all that finishes."""
        from cerebrum_cli.replies.concurrent_rows import run_rows

        return run_rows(self, rows, scope, in_order, sorts)

    def vote_events(self, request: Ask, vote: MajorityVote) -> Events:
        """Yield the events of all samples, and each new tally. Raises the error of a sample if all were refused."""
        from cerebrum_cli.replies.concurrent_rows import vote_events

        return vote_events(self, request, vote)

    def score(self, context: str, continuations: Sequence[str]) -> tuple[Score, ...]:
        """Log-probabilities of texts after a context, whose special tokens are recognized. Raises EngineError."""
        from cerebrum_cli.engine.engine import LogprobScores
        from cerebrum_cli.engine.requests import ScoreRequest

        for _ in self.load():
            pass
        vocabulary = self.engine.vocabulary
        before = vocabulary.tokenize([Text(context, trusted=True)]) or self.prefix_tokens
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
        fast: bool = False,
        votes: int | None = None,
    ) -> Decision:
        """Choose among given answers, and give the probability of each, without generating a reply.

        `choices` are names, or names with descriptions; `score` is the least and the largest number to answer with
        instead. With `letters`, choices are listed after letters, and a reply gives one of these; `fast` lists them in
        one order only. With `votes`, for a model that reasons, the probabilities are shares of as many replies. Raises
        UsageError, PromptTooLong, EngineError, and EndpointError for a server without log probabilities.
        """
        try:
            from cerebrum_cli.decide.deciding import decide_one
        except ModuleNotFoundError as error:
            raise UsageError("this installation has no package `decide`", "install cerebrum-cli again") from error
        conversation = self._request(question, None, None, {}).conversation
        return decide_one(self, conversation, choices, score, votes, in_one_order=fast, by_letter=letters)

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
        settings = changed(self.source.settings, changes)
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
    commands; config.toml's and CEREBRUM_* variables are not read. Raises ModelNotFound, UsageError, ConfigError.
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


def changed(settings: Settings, changes: Layer) -> Settings:
    """Settings with changes by name. Raises UsageError for an unknown name or an invalid value."""
    require_known(changes)
    layer = SourcedLayer(changes)
    values = {key: OPTIONS[key].validate(value, key) for key, value in layer.items()}
    return replace(settings, **values, origins={**settings.origins, **layer.origins})


def require_known(names: Iterable[str]) -> None:
    for name in names:
        if name not in OPTIONS:
            raise UsageError(f"unknown setting {name!r}", "cerebrum ask --set help lists them")
