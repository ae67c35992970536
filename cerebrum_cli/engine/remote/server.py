"""A server that is reached over HTTP: what it is, whether it fits, and what its answers mean for a job's samples."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import CerebrumError, EndpointError, GrammarError, PromptTooLong
from cerebrum_cli.core.events import NoticeEvent, PromptEvent
from cerebrum_cli.engine.backend import Vocabulary
from cerebrum_cli.engine.remote.client import (
    DAMAGE,
    BusyServerError,
    Client,
    Endpoint,
    LostServerError,
    RefusedRequestError,
    RequestError,
    server_text,
)
from cerebrum_cli.engine.remote.job import PoolJob, Server, ServerTimeouts
from cerebrum_cli.engine.remote.kind import ReplyChunk, ServerInfo, ServerKind, origin
from cerebrum_cli.engine.remote.llama_server import LlamaServer
from cerebrum_cli.engine.remote.replies import RemoteSample, read_replies
from cerebrum_cli.engine.remote.vllm_sglang import Sglang, Vllm
from cerebrum_cli.engine.sequence import Request

# By the owner of the models in /v1/models.
KINDS: Mapping[str, ServerKind] = {"llamacpp": LlamaServer(), "vllm": Vllm(), "sglang": Sglang()}
UNSUPPORTED = {"library": "Ollama", "organization_owner": "LM Studio"}

DESCRIBE_S = 30.0  # a busy server answers between two steps
OF_ONE_REQUEST = (400, 413)  # others concern every request
TOO_LONG = ("exceeds the available context size", "context length", "max_tokens must be at least 1")
GUESSED = "repetition checks and --think use the text, and may be off by a few tokens"
PROBE = "What is 17 * 23? Ünïcödé, 日本語, emoji 🙂,\n\n\tif x >= 10**6: return [a, b]  # don't"

T = TypeVar("T")


@dataclass
class ExpectedModel:
    """What servers must serve: a model of this vocabulary, and with records in `earlier`, one like those."""

    vocabulary: Vocabulary
    earlier: Sequence[Mapping[str, str]] = ()

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        return tuple(filter(self.vocabulary.is_eog, range(self.vocabulary.size)))

    @cached_property
    def probe(self) -> tuple[int, ...]:
        """The tokens of a text, without BOS: other kinds of servers may add one where llama.cpp does not."""
        tokens, bos = self.vocabulary.tokenize((Text(PROBE),)), self.vocabulary.special_token_text("bos")
        return tokens[1:] if bos and tokens[0] in self.vocabulary.special_token_ids([bos]) else tokens

    async def check(self, client: Client, endpoint: Endpoint, info: ServerInfo) -> None:
        """Raise EndpointError for another kind of server or model than before, or another vocabulary."""
        now, before = origin(info.recorded), [origin(record) for record in self.earlier]
        if before and now not in before:
            problem = (
                f"{endpoint.name} serves {now}, but earlier replies are from {' and '.join(dict.fromkeys(before))}"
            )
            raise EndpointError(problem, "resume with a server like that, or use --restart to start over")
        try:
            answer = await client.post("/tokenize", info.kind.tokenize_body(PROBE, info), DESCRIBE_S)
            tokens = tuple(int(token) for token in answer["tokens"])
        except (RequestError, *DAMAGE) as error:
            raise EndpointError(f"{endpoint.name}: /tokenize fails: {error}", f"update {info.kind.name}") from error
        if info.vocabulary_size not in (None, self.vocabulary.size) or tokens != self.probe:
            problem = f"{endpoint.name} serves {info.model}, whose vocabulary differs from the model's"
            raise EndpointError(problem, "name the server's model with -m; cerebrum pull --vocabulary MODEL fetches it")


class HttpServer(Server):
    """A server that is reached over HTTP; it gets up to `window` samples at a time."""

    def __init__(
        self, endpoint: Endpoint, alias: str, window: int | None, expected: ExpectedModel, timeouts: ServerTimeouts
    ) -> None:
        super().__init__(endpoint.name, alias)
        self._endpoint = endpoint
        self._window = window
        self._expected = expected
        self._timeouts = timeouts
        self._client = Client(endpoint)
        self._noted: set[tuple[str, str]] = set()  # differences that were reported
        self._info: ServerInfo | None = None

    async def open(self) -> None:
        """Find out whether it can be used: it may serve another model than before."""
        info = await describe(self._client, self._endpoint)
        await self._expected.check(self._client, self._endpoint, info)
        now, before, kind = origin(info.recorded), self.variant, info.kind
        if before not in ("", now):
            problem = f"{self.name} now serves {now} instead of {before}"
            raise EndpointError(problem, "restart it with the previous model, then run the same command again")
        self._info = replace(info, end_tokens=self._expected.end_tokens) if kind.takes_end_tokens else info
        self.context_size, self.max_samples = info.context_size, info.max_samples
        self.recorded, self.variant, self.served_model = info.recorded, now, info.model
        self.larger_context = f"restart the server with a larger {kind.context_option}"
        problem = f"{kind.name} serves the model's original weights, not those of the local file"
        notice = NoticeEvent(problem, "answers differ from those of llama.cpp")
        self.remarks = [notice] if info.has_other_weights else []
        self.limit = self.window = min(self._window or info.slots, info.slots)

    async def close(self) -> None:
        await self._client.aclose()

    async def answer(self, job: PoolJob) -> None:
        request, info = job.samples[0].request, self._info
        assert info
        for difference in info.kind.differences(request, info):
            self._note(job, *difference)
        for sample in job.samples:
            sample.begin_turns()
        try:
            await (self._receive_stream(job, info) if request.stream else self._receive_replies(job, info))
        except RequestError as error:
            if error.status in OF_ONE_REQUEST:
                raise RefusedRequestError(_refusal(error, request, self.alias)) from error
            raise _refusal(error, request, self.name) from error
        except DAMAGE as error:
            raise LostServerError("damaged reply") from error

    def _note(self, job: PoolJob, problem: str, hint: str) -> None:
        if (problem, hint) not in self._noted:
            self._noted.add((problem, hint))
            job.emit(NoticeEvent(problem, hint))

    def _note_guesses(self, job: PoolJob) -> None:
        """Report that controls act on text, before the last event of a sample."""
        if any(sample.was_guessed for sample in job.samples):
            self._note(job, f"{self.name} did not send all token ids", GUESSED)

    async def _receive_replies(self, job: PoolJob, info: ServerInfo) -> None:
        """Wait for whole replies, however long they take while the server is healthy.

        Nothing is emitted before the last turn: until then, another server may be asked for all of them.
        """
        events = read_replies(job.samples, await self._ask(job.samples, info))
        while waiting := [sample for sample in job.samples if sample.needs_turn]:
            answers = await asyncio.gather(*(self._ask([sample], info) for sample in waiting), return_exceptions=True)
            for sample, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, BaseException):
                    raise answer
                events += read_replies([sample], answer)
        self._note_guesses(job)
        job.report(events)

    async def _ask(self, samples: Sequence[RemoteSample], info: ServerInfo) -> Sequence[ReplyChunk]:
        """Ask for the next turn of some samples, which share it if there are several."""
        turns = [sample.take_turn() for sample in samples]
        body = info.kind.completion_body(turns[0], info, samples[0].seed, len(samples))
        return info.kind.read_replies(await self._while_healthy(self._client.post(info.kind.completion_path, body)))

    async def _receive_stream(self, job: PoolJob, info: ServerInfo) -> None:
        """Pass on the parts of a reply as they arrive; closing the stream of a turn stops the server."""
        [sample] = job.samples
        while not sample.is_finished:
            body = info.kind.completion_body(sample.take_turn(), info, sample.seed, 1)
            async with contextlib.aclosing(self._client.stream(info.kind.completion_path, body)) as answers:
                await self._receive_turn(job, sample, info.kind.read_stream(answers))

    async def _receive_turn(self, job: PoolJob, sample: RemoteSample, chunks: AsyncIterator[ReplyChunk]) -> None:
        """Pass on the parts of a turn, up to its end or to an intervention."""
        try:
            while not (sample.is_finished or sample.needs_turn):
                for event in sample.add(await self._while_healthy(anext(chunks))):
                    job.has_output = job.has_output or not isinstance(event, PromptEvent)
                    job.report([event])
                if sample.is_cut and not sample.is_finished:
                    self._note_guesses(job)
                    job.report(sample.interrupt())
        except StopAsyncIteration as error:
            raise LostServerError("the reply is incomplete") from error

    async def _while_healthy(self, work: Awaitable[T]) -> T:
        """Wait for something; in silence, check now and then that the server is alive."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait([task], timeout=self._timeouts.silence))[0]:
                await self._require_health()
            return await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _require_health(self) -> None:
        try:
            await asyncio.wait_for(self._client.check("/health", self._timeouts.health), self._timeouts.health)
        except (LostServerError, TimeoutError, RequestError) as error:
            raise LostServerError("it stopped answering") from error
        except BusyServerError as error:  # it is loading the model again
            raise LostServerError(error.reason) from error


def probe(endpoint: Endpoint) -> ServerInfo:
    """Ask a server what it is, without waiting until it is; for a thread without an event loop.

    Raises EndpointError if it cannot be used, BusyServerError if it cannot be used yet.
    """

    async def ask() -> ServerInfo:
        async with contextlib.aclosing(Client(endpoint)) as client:
            return await describe(client, endpoint)

    try:
        return asyncio.run(ask())
    except LostServerError as lost:
        found = "that it is a llama-server, and its log" if lost.was_sent else "and start llama-server there"
        raise EndpointError(f"{endpoint.name}: {lost.reason}", f"check the URL, {found}") from lost


async def describe(client: Client, endpoint: Endpoint) -> ServerInfo:
    """Ask a server what it is. Raises EndpointError if it cannot be used."""
    path = "/v1/models"
    try:
        entry = _choose_model(await client.get(path, DESCRIBE_S), endpoint)
        kind = _kind_of(entry.get("owned_by"), endpoint)
        path = kind.description_path
        answer = await client.get(path, DESCRIBE_S, model=str(entry["id"]))
    except RequestError as error:
        problem = f"{endpoint.name}: {path}: {error.message}"
        raise EndpointError(problem, "check the URL: it must be that of a language model server") from error
    try:
        return kind.read_info(entry, answer)
    except DAMAGE as error:
        problem = f"{endpoint.name}: unexpected response to /v1/models or {path}"
        raise EndpointError(problem, f"update {kind.name}") from error


def _kind_of(owner: Any, endpoint: Endpoint) -> ServerKind:
    """The kind of a server, by the owner of its model. Raises EndpointError."""
    if kind := KINDS.get(str(owner)):
        return kind
    found, names = UNSUPPORTED.get(str(owner), "a server of an unknown kind"), [kind.name for kind in KINDS.values()]
    hint = f"use {', '.join(names)}: prompts and replies are exchanged as token ids"
    raise EndpointError(f"{endpoint.name} is {found}, which is not supported", hint)


def _choose_model(listed: Any, endpoint: Endpoint) -> Mapping[str, Any]:
    """The entry of the model to ask for: the only one, or the one named. Raises EndpointError."""
    entries = listed.get("data") if isinstance(listed, dict) else None
    models = {
        str(entry["id"]): entry
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and "id" in entry
    }
    names = ", ".join(map(server_text, models))
    if not models:
        raise EndpointError(f"{endpoint.name}: not a language model server", "check the URL")
    if endpoint.served_model is not None:
        if endpoint.served_model not in models:
            raise EndpointError(f"{endpoint.name} serves no model {endpoint.served_model!r}", f"it serves {names}")
        chosen = models[endpoint.served_model]
        base = models.get(str(chosen.get("parent")), {})  # of an adapter, which has no context size of its own
        return {**base, **{key: value for key, value in chosen.items() if value is not None}}
    if len(models) > 1:
        hint = f"choose with --set served_model_name=NAME: {names}"
        raise EndpointError(f"{endpoint.name} serves several models", hint)
    return next(iter(models.values()))


def _refusal(error: RequestError, request: Request, name: str) -> CerebrumError:
    if error.status == 404:
        return EndpointError(f"{name}: {error.message}", "check the URL, and which model the server has")
    if any(sign in error.message for sign in TOO_LONG):
        return PromptTooLong(f"{name}: {error.message}", "shorten the prompt, or give the server a larger context")
    if request.grammar and "grammar" in error.message.lower():
        return GrammarError(error.message, "it must be GBNF with a rule named root")
    return EndpointError(f"{name}: {error.message}", "check the settings of the request, and the server's log")
