"""A reply as its events come: its texts, tokens, calls and end, its final answer, and how sure the model was."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import NoAnswer, UsageError
from cerebrum_cli.core.events import (
    CallEvent,
    Channel,
    Event,
    Events,
    FinishEvent,
    FinishReason,
    ForcedTokens,
    NoticeEvent,
    RoundEvent,
    TokenEvent,
    answer_text,
)
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.token_ids import TokenIds, Tokens
from cerebrum_cli.core.tools import Round, ToolCalls
from cerebrum_cli.formats.reply_text import SplitText

if TYPE_CHECKING:
    from cerebrum_cli.answers.final import Answer
    from cerebrum_cli.replies.tally import Program

SLOW_PREFILL_S = 0.25  # shared prefixes that take longer to evaluate are cached on disk
LONG_PROMPT = 256  # tokens; longer prompts are cached on disk
TIMING_DIGITS = {  # decimals of what `--json` prints
    "load_s": 4,
    "prefill_s": 4,
    "ttft_s": 4,
    "decode_s": 4,
    "prompt_tokens_per_second": 2,
    "tokens_per_second": 2,
    "draft_n": 0,
    "draft_n_accepted": 0,
}
UNFINISHED_REASONING = {"length": "raise --max-tokens", "stop": "ask again"}  # hints by how a reply finished


class Reply:
    """One reply: its texts, its tokens and how it finished. Iterate it for the pieces of its answer as they come.

    Its properties wait for the whole reply, except while it is iterated: then they are of what there is so far. A reply
    of many that run together has no events of its own, and is fed with `emit`. If the model was asked for a `program`
    afterwards, `program_reply` is what it replied to that.
    """

    def __init__(
        self, events: Events | None = None, conversation: Conversation | None = None, grammar: Grammar | None = None
    ) -> None:
        self.index = 0  # of the question among several
        self.program: Program | None = None
        self.program_reply: Reply | None = None
        self._events = events
        self._conversation = conversation
        self._grammar = grammar
        self._texts: dict[Channel, list[str]] = {"answer": [], "thinking": []}
        self._rounds: list[Round] = []
        if conversation and conversation.prefill:
            self._rounds += conversation.prefill.rounds
        self._round_ends = {"answer": 0, "thinking": 0}  # numbers of pieces
        self._tokens = array("i")
        self._finish: FinishEvent | None = None
        self._forced: ForcedTokens = ()  # in the reply that this one continues

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces of the answer as they come; leaving the loop ends the reply."""
        with closing(self.events()) as events:
            for event in events:
                if text := answer_text(event):
                    yield text

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces of the answer, waiting for events in a thread, so that an event loop runs on.

        A task that is cancelled ends the reply at its next event.
        """
        import asyncio

        events = self.events()
        waiting = None
        try:
            while True:
                waiting = asyncio.ensure_future(asyncio.to_thread(next, events, None))
                event = await asyncio.shield(waiting)
                if event is None:
                    return
                if text := answer_text(event):
                    yield text
        finally:
            if waiting:
                await asyncio.wait([waiting])  # a generator that runs cannot be closed
            await asyncio.to_thread(events.close)

    def events(self) -> Events:
        """All events of loading the model and of the reply, once; nothing later.

        Raises NoAnswer after the last one if the answer does not match its schema.
        """
        events, self._events = self._events, None
        if events is None:
            return
        with closing(events):
            for event in events:
                self.emit(event)
                yield event
        if self._finish and self.mismatch:
            raise self.mismatch

    def begin(self, tokens: Sequence[int], texts: Iterable[SplitText], forced: ForcedTokens = ()) -> None:
        """Add the tokens and texts of the reply that this one continues, and where tokens were forced into it."""
        self._tokens.extend(tokens)
        self._forced = forced
        for channel, text in texts:
            self._texts[channel].append(text)

    def emit(self, event: Event) -> None:
        match event:
            case TokenEvent():
                if event.is_correction:
                    self._correct(event.channel)
                self._texts[event.channel].append(event.text)
                self._tokens.extend(event.tokens)
            case CallEvent(is_done=False):  # if the call is interrupted, the round is generated again
                self._tokens = array("i")
            case RoundEvent():
                self._rounds.append(event.round)
                self._round_ends = {channel: len(pieces) for channel, pieces in self._texts.items()}
                self._tokens = array("i")
            case FinishEvent():
                self._finish = event._replace(forced=(*self._forced, *event.forced))

    def _correct(self, channel: Channel) -> None:
        """Correct the channel of the text since the last calls; what is of the answer will be repeated."""
        other: Channel = "answer" if channel == "thinking" else "thinking"
        start = self._round_ends[other]
        if channel == "thinking":
            self._texts[channel] += self._texts[other][start:]
        del self._texts[other][start:]

    def wait(self) -> Self:
        """Generate the rest of a reply that nobody iterates, and return it. Raises what makes the reply fail."""
        for _ in self.events():
            pass
        return self

    @property
    def is_finished(self) -> bool:
        """Whether it has come to an end by now; one whose loop was left, or that failed, never does."""
        return self._finish is not None

    @property
    def finish(self) -> FinishEvent:
        """How it finished, with `prompt_tokens`, `cached_tokens`, `completion_tokens`: 0 if a server does not say."""
        finish = self.wait()._finish
        if finish is None:
            raise UsageError("the reply has not finished", "iterate it to its end")
        return finish

    usage = finish

    @property
    def text(self) -> str:
        """The answer without the reasoning, but with the text before function calls."""
        return "".join(self.wait()._texts["answer"])

    @property
    def reasoning(self) -> str | None:
        """The reasoning; None if the model has not marked any."""
        return "".join(self.wait()._texts["thinking"]) or None

    @property
    def calls(self) -> ToolCalls:
        """The function calls with their results, in order."""
        return tuple(call for part in self.wait()._rounds for call in part.calls)

    @property
    def message(self) -> Message:
        """The reply as a message of a conversation, with its rounds of calls."""
        content, reasoning = (self._after_rounds(channel) for channel in ("answer", "thinking"))
        return Message("assistant", content, self.tokens, None, reasoning or None, tuple(self._rounds))

    def _after_rounds(self, channel: Channel) -> str:
        return "".join(self.wait()._texts[channel][self._round_ends[channel] :])

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended: "stop" if by itself, "cancelled" also if its loop was left."""
        finish = self.wait()._finish
        return finish.reason if finish else "cancelled"

    @cached_property
    def mismatch(self) -> NoAnswer | None:
        """Why a complete answer does not match its schema; None if it does, if it is incomplete, and without a schema.

        Servers may ignore a schema, and what the engine enforces differs from JSON Schema in rare cases.
        """
        finish, answer = self.finish, self._after_rounds("answer")
        is_complete = finish.reason == "stop" and not finish.by_stop_string and answer.strip()
        if self._grammar is None or not self._grammar.is_schema or not is_complete:
            return None
        from cerebrum_cli.grammars.validation import schema_problem

        if problem := schema_problem(self._grammar, answer):
            hint = "ask again, or update the server" if finish.origin else "ask again, or simplify the schema"
            return NoAnswer(f"the reply does not match the schema: {problem}", hint)
        return None

    @property
    def conversation(self) -> Conversation:
        """The conversation with this reply: add a question with `user`, and it continues."""
        if self._conversation is None:
            raise UsageError("the reply continues a text, not a conversation", "ask a question")
        return self._conversation.add(replace(self.message, thinks=self._conversation.thinks))

    @property
    def has_text(self) -> bool:
        """Whether any of its text, or a function call, has arrived."""
        return any(self._texts.values()) or bool(self._rounds)

    @property
    def sampled(self) -> Tokens:
        """All tokens, including those of the reasoning and of a stop string."""
        return self._tokens

    @property
    def tokens(self) -> TokenIds | None:
        """The tokens to save in a conversation; None if they are not all known, or the text lacks a stop string's."""
        if not self.is_finished or (self.finish.has_all_tokens and not self.finish.by_stop_string):
            return tuple(self._tokens)
        return None

    @property
    def is_blank(self) -> bool:
        """Whether nothing but reasoning follows the last results of functions."""
        return not (self._after_rounds("answer").strip() or self.finish.calls)

    def notice(self, grammar: Grammar | None = None) -> NoticeEvent | None:
        """A notice that the answer is truncated or blank, or None.

        With a grammar, also that the reply ended while reasoning; with a schema, also that a stop string ended it.
        """
        finish = self.finish
        tokens = f"{finish.completion_tokens} tokens"
        is_reasoning = self.is_blank and bool(self._after_rounds("thinking"))
        if grammar and grammar.is_schema and finish.by_stop_string:
            return NoticeEvent("a stop string ended the answer", "omit --stop")
        if grammar and is_reasoning and finish.reason in UNFINISHED_REASONING:
            hint = f"{UNFINISHED_REASONING[finish.reason]}, or limit reasoning with --think N or --think off"
            return NoticeEvent("the reply ended while reasoning, before an answer", hint)
        match finish.reason:
            case "context":
                size = f" of {finish.context_size} tokens" if finish.context_size else ""
                problem = "only reasoning, no answer" if is_reasoning else "answer truncated"
                advice = "limit reasoning with --think N" if is_reasoning else "ask for less"
                hint = f"{larger_context(is_remote=finish.origin is not None)}, or {advice}"
                return NoticeEvent(f"{problem}: the context{size} is full", hint)
            case "length":
                stage = " of reasoning" if is_reasoning else ""
                return NoticeEvent(f"answer truncated at {tokens}{stage}", "raise --max-tokens")
            case "repetition":
                hint = "--set loop_check=off lets it repeat; or try a higher --temperature, or --set repeat_penalty=1.1"
                return NoticeEvent(f"the reply repeats itself and was stopped after {tokens}", hint)
            case "stop" if self.is_blank:
                return self._blank_notice()
        return None

    def _blank_notice(self) -> NoticeEvent:
        """The notice of a reply that ended by itself without an answer; a server's context may be unknown."""
        has_context = bool(self.finish.context_size)
        if self._after_rounds("thinking"):
            limit = "--think N" if has_context else "a larger context of the server"
            hint = f"read it with --show-thinking, or use --think off or {limit}"
            return NoticeEvent("the reply has only reasoning, no answer", hint)
        if self._rounds:
            return NoticeEvent("the model wrote nothing after the results of its functions", "ask again")
        advice = "check the prompt format with --dry-run" if has_context else larger_context(is_remote=True)
        return NoticeEvent("the model's answer is blank", f"{advice}, or ask again")

    @property
    def final_answer(self) -> str | None:
        """The final answer of the text; None without one."""
        answer = self._read()
        return answer and answer.text

    @property
    def is_answer_stated(self) -> bool:
        """Whether the text states its final answer, which is guessed otherwise."""
        answer = self._read()
        return answer is not None and answer.is_stated

    @property
    def number(self) -> str | None:
        """The final answer of the text if that must be a number; None without one."""
        answer = self._read("number")
        return answer and answer.text

    def _read(self, kind: Literal["number"] | None = None) -> Answer | None:
        from cerebrum_cli.answers.final import final_answer  # compiling its patterns is slow

        text = self.message.content  # which waits for the reply
        is_complete = self._finish is not None and self._finish.reason == "stop"
        asked = self._conversation
        question = asked.question if asked and asked.messages else ""
        return final_answer(question, text, is_complete, kind)

    @property
    def has_long_prompt(self) -> bool:
        """Whether it evaluated so much of the prompt that the prompt is worth caching on disk."""
        return self.finish.timings.prefill_tokens > LONG_PROMPT

    def has_slow_prefill(self, tokens: int) -> bool:
        """Whether it evaluated the first tokens of its prompt, and this many take long to evaluate."""
        speed, finish = self.finish.timings.prompt_tokens_per_second, self.finish
        return finish.reason != "cancelled" and finish.cached_tokens < tokens and tokens > SLOW_PREFILL_S * speed

    @property
    def reasoning_closed_at(self) -> int | None:
        """Number of tokens after which the reasoning was ended; None if it came to its end by itself."""
        return self.finish.forced[0].at if self.finish.forced else None

    @property
    def total_tokens(self) -> int:
        """The tokens it has generated, with those of its program."""
        tokens = self.finish.completion_tokens
        if self.program_reply:
            tokens += self.program_reply.total_tokens
        return tokens

    @property
    def vote(self) -> str | None:
        """The answer that counts in a vote; None without one, in a repetition, and in incomplete or wrong JSON."""
        finish = self.finish
        is_cut = finish.reason != "stop" or finish.by_stop_string
        if finish.reason == "repetition" or (is_cut and self._grammar and self._grammar.is_schema) or self.mismatch:
            return None
        return self.final_answer

    def as_object(self, final_answer: str | None) -> JsonDict:
        """Its texts and counts, and its calls if it had functions, as `--json` prints them."""
        finish = self.finish
        values: JsonDict = {
            "text": self.text,
            "final_answer": final_answer,
            "finish_reason": finish.reason,
            "prompt_tokens": finish.prompt_tokens or None,
            "completion_tokens": finish.completion_tokens,
            "seed": finish.seed,
            "reasoning": self.reasoning,
            "votes": None,
        }
        if self.calls or (self._conversation and self._conversation.tools):
            values["calls"] = [asdict(call) for call in self.calls]
        return values

    @property
    def timings_object(self) -> JsonDict:
        """Its durations in seconds, and rates per second."""
        timings = self.finish.timings
        return {name: round(getattr(timings, name), digits) for name, digits in TIMING_DIGITS.items()}

    @property
    def program_object(self) -> JsonDict:
        """The program that the model wrote afterwards, and its output."""
        program = self.program
        unsupported = {"program_unsupported": True} if program and program.is_unsupported else {}
        return {
            "program": program and program.code,
            "program_output": program and program.output,
            **unsupported,
            "program_tokens": self.total_tokens - self.finish.completion_tokens,
        }


def larger_context(is_remote: bool) -> str:
    """Advice to a user whose context is full."""
    return "give the server a larger context" if is_remote else "raise --ctx"
