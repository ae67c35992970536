"""Ask a server for the samples of a job, and report the events of its replies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from math import inf
from time import monotonic
from typing import NamedTuple

from cerebrum_cli.core.errors import DAMAGE, UnknownToken
from cerebrum_cli.core.events import FinishEvent, OpeningEvent, PromptEvent
from cerebrum_cli.core.text import foreign_line, format_count
from cerebrum_cli.servers.chat_completions import chat_turns
from cerebrum_cli.servers.faults import LostServerError, RequestError
from cerebrum_cli.servers.kind import ReplyChunk
from cerebrum_cli.servers.replies import RemoteSample, SampleEvent
from cerebrum_cli.servers.server import PoolJob, Server

MAX_CHARACTERS = 8  # of a prompt for each of its tokens; texts have 1 to 5
UNSTATED_HINT = "the reply may be truncated; check the server's log, or update it"
DROPPED_HINT = (
    "it may have dropped the rest: give it a larger context, as with OLLAMA_CONTEXT_LENGTH=16384 ollama serve"
)


class Exchange(NamedTuple):
    """The requests to a server for a job that it has been given."""

    server: Server
    job: PoolJob

    async def run(self) -> None:
        """Generate the job's samples. Raises ExchangeError, RefusedRequestError, or EndpointError if it affects all."""
        job, request = self.job, self.job.request
        total = len(request.prompt_tokens)
        evaluated = 0 if request.ask.stream else total  # whole replies show no progress
        for sample in job.samples:
            job.report(PromptEvent(sample.id, evaluated, total))
        limit = self.server.timeouts.row_timeout
        try:
            async with asyncio.timeout(limit) as deadline:
                if request.ask.stream:
                    await self._receive_stream(deadline)
                else:
                    await self._receive_replies()
        except RequestError as error:
            raise self.server.refusal(job, error) from error
        except TimeoutError as error:
            works = self.server.heard_at > job.start  # has answered others meanwhile
            raise LostServerError(f"no reply within {limit:g} s", server_works=works, timed_out=True) from error
        except (*DAMAGE, UnknownToken) as error:
            raise LostServerError("damaged reply") from error

    async def _receive_replies(self) -> None:
        """Wait for whole replies; nothing is emitted before the last turn, as another server may be asked for all."""
        samples = self.job.samples
        events = await self._ask(samples)
        while waiting := [sample for sample in samples if sample.needs_turn]:
            try:
                async with asyncio.TaskGroup() as group:  # one that fails ends the others
                    turns = [group.create_task(self._ask([sample])) for sample in waiting]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors
            for turn in turns:
                events += turn.result()
        for event in events:
            self._report(event)

    async def _ask(self, samples: Sequence[RemoteSample]) -> list[SampleEvent]:
        """The events of the next turn of some samples, which share it. Raises LostServerError if any is missing."""
        server = self.server
        turns = [sample.take_turn() for sample in samples]
        body = server.kind.completion_body(turns[0], server.info, samples[0].seed, len(samples))
        answer = await server.client.post(server.kind.completion_path, body, samples=len(samples))
        replies = server.kind.read_replies(answer)
        if len(replies) != len(samples) or not all(reply.end for reply in replies):
            raise LostServerError(f"the reply has {format_count(len(replies), 'sample')} instead of {len(samples)}")
        for reply in replies:
            self._note_end(reply)
        events: list[SampleEvent] = []
        for sample, reply in zip(samples, replies, strict=True):
            if reply.likeliest:
                events.append(OpeningEvent(sample.id, reply.likeliest))
            events += sample.add(reply)
        return events

    async def _receive_stream(self, deadline: asyncio.Timeout) -> None:
        """Pass on the parts of a reply as they arrive; closing the stream of a turn stops the server."""
        server, job = self
        [sample] = job.samples
        while job.unfinished:
            body = server.kind.completion_body(sample.take_turn(), server.info, sample.seed, 1)
            async with aclosing(server.client.stream(server.kind.completion_path, body)) as answers:
                async for chunk in server.kind.read_stream(answers):
                    self._note_life(deadline)
                    self._note_end(chunk)
                    for event in sample.add(chunk):
                        job.has_output = job.has_output or not isinstance(event, PromptEvent)
                        self._report(event)
                    if sample.needs_turn or not job.unfinished:
                        break
                else:
                    raise LostServerError("the reply is incomplete")

    def _note_life(self, deadline: asyncio.Timeout) -> None:
        self.server.heard_at = monotonic()
        if limit := self.server.timeouts.row_timeout:
            deadline.reschedule(asyncio.get_running_loop().time() + limit)

    def _note_end(self, chunk: ReplyChunk) -> None:
        conversation = self.job.request.ask.conversation
        if chunk.end == "unstated" and not chunk.withheld:
            self.server.notice(self.job, "gave no known reason for ending a reply", UNSTATED_HINT)
        if chunk.left_out:
            self.server.notice(self.job, "sent more than the text of a reply", f"left out: {chunk.left_out}")
        if chunk.calls and not (conversation and conversation.tools):
            called = foreign_line(", ".join(call.name for call in chunk.calls))
            self.server.notice(self.job, "called a function that it was not offered", f"ignored: {called}")

    def _report(self, event: SampleEvent) -> None:
        if isinstance(event, FinishEvent):
            self._check_prompt(event)
        self.job.report(event)

    def _check_prompt(self, finish: FinishEvent) -> None:
        """Report once if a server of messages seems to have dropped some: Ollama does, without an error."""
        request = self.job.request
        if not request.as_messages:
            return
        characters = sum(len(turn.content) for turn in chat_turns(request.ask.conversation))
        if characters > MAX_CHARACTERS * (finish.prompt_tokens or inf):
            problem = f"read {finish.prompt_tokens} tokens of a prompt with {characters} characters"
            self.server.notice(self.job, problem, DROPPED_HINT)
