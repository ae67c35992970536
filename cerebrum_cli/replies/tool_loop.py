"""A reply that may call functions: while it ends with calls, they are run, and the model replies to the results."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Message, Text
from cerebrum_cli.core.events import (
    CallEvent,
    Event,
    Events,
    FinishEvent,
    NoticeEvent,
    RoundEvent,
    SequenceId,
    TokenEvent,
)
from cerebrum_cli.core.tools import Round, ToolCall, ToolCalls
from cerebrum_cli.programs.functions import cut
from cerebrum_cli.replies.loaded_model import LoadedModel
from cerebrum_cli.replies.reply import Reply

RESULT_FRACTION = 4  # the results of a round may take 1/4 of the remaining context
UNKNOWN_CONTEXT = 8192  # tokens, assumed of a server that does not state its context
MAX_CHARS_PER_TOKEN = 8
REPLY = SequenceId(0)


class ToolLoop:
    """The rounds of one reply so far, and what is asked next: its end if that `is_last`, nothing if it `is_over`."""

    def __init__(self, model: LoadedModel, asked: Ask) -> None:
        self._model = model
        self._tools = {tool.spec.name: tool for tool in asked.tools}
        prefill = asked.conversation.prefill
        self.rounds = prefill.rounds if prefill else ()
        self._made = [(call.name, call.arguments) for part in self.rounds for call in part.calls]  # as they are written
        self._most_rounds = len(self.rounds) + asked.settings.tool_rounds
        self.asked = replace(asked, tools=())
        self.is_last = self.is_over = False
        self.completion_tokens = 0
        self.text = model.format.tool_format.filter(asked.conversation.tools)  # of the round that is generated

    @property
    def next(self) -> Ask:
        """The next request. A grammar would suppress calls, so it applies only after the last of them."""
        if self.is_last:
            return self.asked
        return replace(self.asked, grammar=None)

    def follow(self, reply: Reply) -> Events:
        """Run the calls that a round ends with; yield them, and the round.

        If they are refused, the end of the reply is asked for without functions.
        """
        self.completion_tokens += reply.finish.completion_tokens
        if self.is_last:
            self.is_over = True
            return
        calls, are_own = self.calls_in(reply)
        if not calls:
            self.is_last = True
            self.is_over = self.asked.grammar is None
            return
        text = self._model.format.tool_format.filter(self.asked.conversation.tools)
        text.feed(reply.text)
        preamble = text.shown.strip()
        if preamble and self.asked.grammar is None:
            yield TokenEvent(REPLY, "\n\n")
        if refusal := self.refusal(calls):
            yield refusal
            self.is_last = True
            self.asked = replace(self.asked, conversation=replace(self.asked.conversation, tools=()))
            return
        calls = yield from self.run(calls, reply.finish)
        part = Round(calls, preamble, reply.reasoning, reply.tokens if are_own else None)
        self.add(part)
        yield RoundEvent(REPLY, part)

    def calls_in(self, reply: Reply) -> tuple[ToolCalls, bool]:
        """The calls that a round ends with, and whether they are in the model's own syntax."""
        if reply.finish.reason != "stop" or reply.finish.calls:
            return reply.finish.calls, False
        tool_format = self._model.format.tool_format
        text = self._model.detokenize(reply.sampled) if tool_format.in_headers else reply.text
        return tool_format.read(text, self.asked.conversation.tools)

    def refusal(self, calls: ToolCalls) -> NoticeEvent | None:
        """Why calls are not run: there were too many rounds, or the same call before."""
        if len(self.rounds) == self._most_rounds:
            problem = f"no more calls after {self.asked.settings.tool_rounds} rounds"
            return NoticeEvent(problem, "allow more with --set tool_rounds=N")
        for call in calls:
            if (call.name, call.arguments) in self._made:
                return NoticeEvent(f"no more calls: the model repeated a call of {call.name}")
        return None

    def run(self, calls: ToolCalls, finish: FinishEvent) -> Generator[CallEvent, None, ToolCalls]:
        """Run functions one after the other, and return the calls with their results."""
        size = self._model.engine.context_size if finish.context_size else UNKNOWN_CONTEXT
        left = size - finish.prompt_tokens - finish.completion_tokens
        limit = max(0, left) // (RESULT_FRACTION * len(calls))
        done = []
        for call in calls:
            self._made.append((call.name, call.arguments))
            yield CallEvent(REPLY, call)
            ran = self._with_result(call)
            done.append(replace(ran, result=self._shortened(ran.result, limit)))
            yield CallEvent(REPLY, done[-1], is_done=True)
        return tuple(done)

    def _with_result(self, call: ToolCall) -> ToolCall:
        if call.result:
            return call
        if tool := self._tools.get(call.name):
            return tool.run(call.arguments)
        return replace(call, result=f"there is no function {call.name}; known: {', '.join(self._tools)}")

    def _shortened(self, result: str, limit: int) -> str:
        """A result truncated to about this many tokens."""
        beginning = result[: MAX_CHARS_PER_TOKEN * limit]
        tokens = len(self._model.engine.vocabulary.tokenize([Text(beginning)]))
        if tokens <= limit and beginning == result:
            return result
        return cut(result, len(beginning) * limit // max(tokens, limit))

    def add(self, part: Round) -> None:
        """Add a round whose calls have their results: the reply continues with these."""
        self.rounds = (*self.rounds, part)
        pending = Message("assistant", "", rounds=self.rounds)
        conversation = replace(self.asked.conversation, prefill=pending)
        self.asked = replace(self.asked, conversation=conversation, prefix_tokens=())


def reply_with_tools(model: LoadedModel, asked: Ask) -> Events:
    """Yield the events of a reply: text as it comes, calls and rounds; one FinishEvent, with the tokens of all rounds.

    A grammar would suppress calls, so it applies only after the last of them: the end of the reply is generated again,
    and no text before it is passed on. If calls are refused, the end is generated again without functions. A call in
    another form than the model's own syntax is rendered in that syntax.
    """
    yield from model.load()
    loop = ToolLoop(model, asked)
    while not loop.is_last:
        reply = Reply()
        if loop.asked.prefix_tokens:  # the reply may have been cut off in a call
            reply.begin(*model.prepare_reply(loop.asked).beginning)
        loop.text = model.format.tool_format.filter(asked.conversation.tools)
        with closing(model.reply_events(loop.next)) as events:
            yield from _passed_on(events, reply, loop, is_silent=asked.grammar is not None)
        yield from loop.follow(reply)
    if not loop.is_over:
        reply = Reply(model.reply_events(loop.next), loop.next.conversation)
        for event in reply.events():
            if not isinstance(event, FinishEvent):
                yield event
        yield from loop.follow(reply)
    else:
        yield TokenEvent(REPLY, loop.text.held)
    has_all_tokens = reply.finish.has_all_tokens and bool(loop.asked.conversation.tools)
    yield reply.finish._replace(completion_tokens=loop.completion_tokens, has_all_tokens=has_all_tokens)


def _passed_on(events: Events, reply: Reply, loop: ToolLoop, is_silent: bool) -> Iterator[Event]:
    """Feed a round with its events, and pass them on without calls."""
    for event in events:
        reply.emit(event)
        match event:
            case FinishEvent():
                continue
            case TokenEvent() if is_silent:
                continue
            case TokenEvent(channel="answer"):
                if event.ends_reasoning:
                    loop.text.held = loop.text.shown = ""
                event = event._replace(text=loop.text.feed(event.text))
        yield event
