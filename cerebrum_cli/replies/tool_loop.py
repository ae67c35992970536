"""A reply that may call functions: while it ends with calls, they are run, and the model replies to the results."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

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
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import cut_middle, truncate
from cerebrum_cli.core.tools import Round, ToolCall, ToolCalls
from cerebrum_cli.formats.prompt_format import written_result
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.replies.reply_controls import new_calls

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model

MAX_ROUNDS = 5  # of calls in a reply
RESULT_FRACTION = 4  # the results of a round may take 1/4 of the remaining context
UNKNOWN_CONTEXT = 8192  # tokens, assumed of a server that does not state its context
MAX_CHARS_PER_TOKEN = 8
PROBLEM_LENGTH = 200  # characters of a notice
REPLY = SequenceId(0)


@frozen
class WrittenCalls:
    """What a round has: the text that was `shown`, the text `beside` the calls after it, and the calls.

    If they `are_own`, they are given back to the model as it wrote them. `reasoning` is what precedes all of that.
    """

    shown: str
    beside: str
    reasoning: str | None = None
    calls: ToolCalls = ()
    are_own: bool = False

    @property
    def text(self) -> str:
        return "\n\n".join(filter(None, (self.shown, self.beside)))

    @property
    def unshown(self) -> str:
        """What follows the text that was shown, up to the results."""
        rest = self.text.removeprefix(self.shown)
        return f"{rest}\n\n" if self.text else ""


class ToolLoop:
    """The rounds of one reply so far, and what is asked next: its end if that `is_last`, nothing if it `is_over`."""

    def __init__(self, model: Model, asked: Ask) -> None:
        self._model = model
        self._tools = {tool.spec.name: tool for tool in asked.tools}
        prefill = asked.conversation.prefill
        self.rounds = prefill.rounds if prefill else ()
        self._most_rounds = len(self.rounds) + MAX_ROUNDS
        self.asked = replace(asked, tools=())
        self.conversation = asked.conversation  # with the rounds
        self.is_last = self.is_over = False
        self.completion_tokens = 0
        self._known = asked.conversation.tools
        self.text = model.prompts.format.tool_format.filter(self._known)  # of the round that is generated

    @property
    def next(self) -> Ask:
        """The next request. A grammar would suppress calls, so it applies only after the last of them."""
        if self.is_last:
            return self.asked
        return replace(self.asked, grammar=None)

    def follow(self, reply: Reply) -> Events:
        """Run the calls that a round ends with; yield them, and the round. A call that cannot be run has an error.

        After the last round, or if a call is repeated, the question is asked with the results and without functions.
        """
        self.completion_tokens += reply.finish.completion_tokens
        written = self.calls_in(reply)
        is_complete = reply.finish.reason == "stop" or bool(reply.finish.calls)
        if self.is_last or not written.calls or not is_complete:
            yield from self._end(written, reply.finish)
            return
        if self.asked.grammar is None:
            yield TokenEvent(REPLY, written.unshown)
        new = new_calls(written.calls, self.rounds)
        if new:
            calls = yield from self.run(new, reply.finish)
            tokens = reply.tokens if written.are_own and len(new) == len(written.calls) else None
            part = Round(calls, written.text, written.reasoning, tokens)
            self.add(part)
            yield RoundEvent(part)
        if len(new) < len(written.calls):
            yield NoticeEvent(f"no more calls: the model repeated a call of {written.calls[len(new)].name}")
            self._ask_with_results()
        elif len(self.rounds) == self._most_rounds:
            yield NoticeEvent(f"no more calls after {MAX_ROUNDS} rounds")
            self._ask_with_results()

    def _ask_with_results(self) -> None:
        """Let the next request end the reply: the question with all results, without calls that models would repeat."""
        self.is_last = True
        conversation = self.conversation
        results = [written_result(call) for part in self.rounds for call in part.calls]
        asked = conversation.with_question("\n\n".join([conversation.question, *results]))
        self.asked = replace(self.asked, conversation=replace(asked, prefill=None, tools=()), prefix_tokens=())

    def _end(self, written: WrittenCalls, finish: FinishEvent) -> Iterator[Event]:
        """End the reply, or ask for its end with a grammar; yield what was withheld, and a notice of calls in it."""
        self.is_over = self.is_last or self.asked.grammar is None
        if not self.is_last and self.is_over:
            yield TokenEvent(REPLY, self.text.held)
        self.is_last = True
        if written.calls and self.asked.grammar is None and finish.reason != "cancelled":
            problem = "the reply was cut off" if finish.reason != "stop" else self._problem(written.calls[0])
            yield NoticeEvent(f"the answer has a function call that was not run: {problem or written.calls[0]}")

    def calls_in(self, reply: Reply) -> WrittenCalls:
        """The calls that a round ends with."""
        tool_format, answer = self._model.prompts.format.tool_format, reply.text
        passed = tool_format.filter(self._known)
        passed.feed(answer)
        shown = passed.shown
        written = WrittenCalls(shown.strip(), answer[len(shown) :].strip(), reply.reasoning)
        if reply.finish.calls:
            return replace(written, calls=reply.finish.calls)
        if tool_format.in_headers:
            found = tool_format.read(self._model.prompts.detokenize(reply.sampled), self._known)
            if found.are_own:
                return replace(written, calls=found.calls, are_own=True)
        found = tool_format.read(answer, self._known)
        if found.calls:
            beside = "\n".join(filter(None, (found.before[len(shown) :].strip(), found.behind)))
            return replace(written, beside=beside, calls=found.calls, are_own=found.are_own)
        if not answer.strip():  # a model may call functions without ending its reasoning
            found = tool_format.read(reply.reasoning or "", self._known)
            if found.are_own and not found.behind:
                return replace(written, reasoning=found.before or None, calls=found.calls, are_own=True)
        return written

    def run(self, calls: ToolCalls, finish: FinishEvent) -> Generator[CallEvent | NoticeEvent, None, ToolCalls]:
        """Run functions one after the other, and return the calls with their results."""
        size = self._model.engine.context_size if finish.context_size else UNKNOWN_CONTEXT
        left = size - finish.prompt_tokens - finish.completion_tokens
        limit = max(0, left) // (RESULT_FRACTION * len(calls))
        done = []
        for call in calls:
            if problem := self._problem(call):
                yield NoticeEvent(f"a function call was not run: {problem}")
                done.append(replace(call, result=self._shortened(call.result or problem, limit)))
                continue
            yield CallEvent(call)
            result = self._tools[call.name].run(call.arguments)
            done.append(replace(call, result=self._shortened(result, limit)))
            yield CallEvent(done[-1], is_done=True)
        return tuple(done)

    def _problem(self, call: ToolCall) -> str:
        """Why a call cannot be run, in one line; empty if it can."""
        if call.result:
            return truncate(call.result.partition("\n")[0], PROBLEM_LENGTH)
        if call.name not in self._tools:
            return f"there is no function {call.name}; known: {', '.join(self._tools)}"
        return ""

    def _shortened(self, result: str, limit: int) -> str:
        """A result truncated to about this many tokens."""
        beginning = result[: MAX_CHARS_PER_TOKEN * limit]
        tokens = len(self._model.engine.vocabulary.tokenize([Text(beginning)]))
        if tokens <= limit and beginning == result:
            return result
        return cut_middle(result, len(beginning) * limit // max(tokens, limit))

    def add(self, part: Round) -> None:
        """Add a round whose calls have their results: the reply continues with these."""
        self.rounds = (*self.rounds, part)
        pending = Message("assistant", "", rounds=self.rounds)
        self.conversation = replace(self.conversation, prefill=pending)
        self.asked = replace(self.asked, conversation=self.conversation, prefix_tokens=())


def reply_with_tools(model: Model, asked: Ask) -> Events:
    """Yield the events of a reply: text as it comes, calls and rounds; one FinishEvent, with the tokens of all rounds.

    A grammar would suppress calls, so it applies only after the last of them: the end of the reply is generated again,
    and no text before it is passed on. After MAX_ROUNDS rounds, the end is generated without functions. A call in
    another form than the model's own syntax is rendered in that syntax.
    """
    yield from model.load()
    loop = ToolLoop(model, asked)
    while not loop.is_last:
        reply = Reply()
        if loop.asked.prefix_tokens:  # the reply may have been cut off in a call
            reply.begin(*model.prepare_reply(loop.asked).beginning)
        loop.text = model.prompts.format.tool_format.filter(asked.conversation.tools)
        with closing(model.reply_events(loop.next)) as events:
            yield from _passed_on(events, reply, loop, is_silent=asked.grammar is not None)
        yield from loop.follow(reply)
    if not loop.is_over:
        reply = Reply(model.reply_events(loop.next), loop.next.conversation)
        for event in reply.events():
            if not isinstance(event, FinishEvent):
                yield event
        yield from loop.follow(reply)
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
            case TokenEvent(channel="thinking", is_correction=True):
                yield TokenEvent(event.sequence, loop.text.held)
                loop.text.clear()
            case TokenEvent(channel="answer"):
                event = event._replace(text=loop.text.feed(event.text))
        yield event
