"""The checks of `cerebrum doctor --endpoint`, in the order in which they run on each server."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from threading import Timer

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import EndpointError, ModelNotFound
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.doctor.assessment import CheckResult, check_result
from cerebrum_cli.doctor.checks import QUESTION, DoctorContext, SkippedCheck, run_table
from cerebrum_cli.engine.engine import raise_refusals
from cerebrum_cli.engine.remote.client import BusyServerError, Endpoint, server_text
from cerebrum_cli.engine.remote.description import probe
from cerebrum_cli.engine.remote.kind import ServerInfo
from cerebrum_cli.engine.remote.llama_server import LlamaServer
from cerebrum_cli.engine.remote.vllm_sglang import IGNORED_SEEDS
from cerebrum_cli.model.endpoints import Servers
from cerebrum_cli.model.interface import Model, open_source
from cerebrum_cli.model.reply import Reply, ReplyRequest, ReplyStream, reply_notice
from cerebrum_cli.model.source import ModelSource
from cerebrum_cli.models.library import served_model

REPLY_TIMEOUT_S = 60.0  # of each reply; the server may be busy with other requests
REPLY_TOKENS = 64
ANSWER = "42"
WRONG = "a small model may be wrong; otherwise check that -m names the model of the server"
SLOW = "the server is slow or busy: check its log"
SHOWN_CHARACTERS = 80  # of the reply
SAMPLED_TOKENS = 16
SEED = 1
SAMPLES = 3  # with the same seed: the first may differ in its last bits, as its prompt is not cached
MIN_CONTEXT = 4096  # tokens; a chain of thought takes thousands


@dataclass(slots=True)
class CheckedServer:
    """A server, and what the checks have found so far that later ones need."""

    context: DoctorContext
    endpoint: Endpoint
    info: ServerInfo = field(init=False)  # the first check finds it
    loaded: Model | None = None
    has_vocabulary: bool = False
    reply: Reply | None = None
    samples: list[Reply] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """Settings of a short greedy reply in the user's choice of prompt format."""
        return Settings(format=self.context.settings.format, max_tokens=REPLY_TOKENS)

    @property
    def model(self) -> Model:
        """The model that answers questions. Raises SkippedCheck if the server's vocabulary is not known to be its."""
        if self.loaded is None or not self.has_vocabulary:
            raise SkippedCheck
        return self.loaded

    def close(self) -> None:
        if self.loaded:
            self.loaded.close()


def run_server_checks(context: DoctorContext, endpoints: Sequence[Endpoint]) -> Iterator[CheckResult]:
    for endpoint in endpoints:
        server = CheckedServer(context, endpoint)
        with closing(server):
            for result in run_table(SERVER_CHECKS, server):
                yield replace(result, endpoint=endpoint.name)
                if not hasattr(server, "info"):  # nothing else can be asked of it
                    break


def _check_server(server: CheckedServer) -> CheckResult:
    try:
        server.info = info = probe(server.endpoint)
    except BusyServerError as busy:
        problem = f"{server.endpoint.name} is not ready: {busy.reason}"
        return check_result("", (problem, "other commands wait for it; try again later"))
    way = "through chat completions" if info.kind.takes_messages else f"build {info.build}, by token ids"
    return check_result(f"{info.kind.name}, {way}")


def _check_served_model(server: CheckedServer) -> CheckResult:
    weights = ", whose weights are not those of the local file" if server.info.has_other_weights else ""
    return check_result(server_text(server.info.model) + weights)


def _check_context(server: CheckedServer) -> CheckResult:
    size, kind = server.info.context_size, server.info.kind
    if kind.takes_messages:  # it states neither this nor its slots
        raise SkippedCheck
    shared = ", which its slots share" if isinstance(kind, LlamaServer) else ""
    hint = f"restart {kind.name} with a larger {kind.context_option}{shared}"
    problem = f"a chain of thought may need more than {MIN_CONTEXT}", hint
    return check_result(f"{size} tokens for a prompt and its reply", problem if size < MIN_CONTEXT else None)


def _check_slots(server: CheckedServer) -> CheckResult:
    slots = server.info.slots
    if server.info.kind.takes_messages:
        raise SkippedCheck
    if server.info.max_window > slots:
        return check_result(f"not stated: {slots} replies at a time at first")
    if slots == 1:
        return check_result("1 reply at a time; more slots (-np) speed up batches and votes")
    return check_result(f"{slots} replies at a time")


def _check_vocabulary(server: CheckedServer) -> CheckResult:
    context, named = server.context, server.context.settings.model
    is_served, served = server.info.kind.takes_messages, server.info.weights
    try:
        model = served_model(served) if is_served else context.library.resolve_vocabulary(named)
    except ModelNotFound as error:
        return check_result("", (f"skipped, along with all replies: {error.message}", error.hint))
    source = ModelSource(context.installation, model, server.settings, Servers([server.endpoint]))
    server.loaded = loaded = open_source(source)
    with _time_limit(loaded):
        for _ in loaded.load():
            pass
    server.has_vocabulary = True
    if model.is_served:
        return check_result("not needed: the server applies its own chat template")
    return check_result(f"matches {model.label}: {loaded.engine.vocabulary.size} tokens")


def _check_reply(server: CheckedServer) -> CheckResult:
    reply = server.model.respond(ReplyRequest(Conversation().user(QUESTION), server.settings))
    with _time_limit(server.model):
        server.reply = _finished(reply.wait())
    finish = reply.finish
    text = server_text(reply.text or reply.reasoning or "")
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    prompt = f"prompt {finish.prompt_tokens} tokens, " if finish.prompt_tokens else ""
    detail = f"{QUESTION} {shown} ({prompt}reply {finish.completion_tokens} tokens)"
    notice = reply_notice(reply, server.model.larger_context)
    problem = None
    if finish.reason == "cancelled":
        problem = f"stopped after {REPLY_TIMEOUT_S:g} s", SLOW
    elif notice and finish.reason != "length":  # the limit of this check
        problem = notice.message, notice.hint
    elif finish.reason == "stop" and ANSWER not in re.findall(r"\d+", reply.text):
        problem = f"the answer is not {ANSWER}", WRONG
    return check_result(detail, problem)


def _check_speed(server: CheckedServer) -> CheckResult:
    if server.reply is None or server.reply.finish.completion_tokens == 0:
        raise SkippedCheck
    finish, timings = server.reply.finish, server.reply.finish.timings
    cached = f" ({finish.cached_tokens} of {finish.prompt_tokens} cached)" if finish.cached_tokens else ""
    rate = f", then {timings.tokens_per_second:.1f} t/s" if timings.tokens_per_second else ""
    return check_result(f"first token after {timings.ttft_s:.2f} s{cached}{rate}")


def _check_token_ids(server: CheckedServer) -> CheckResult:
    if server.reply and server.reply.finish.reason == "cancelled":
        raise SkippedCheck
    _sample(server, server.model)
    if server.info.kind.takes_messages:
        return check_result("none: prompts are sent as messages, and replies come as text")
    return check_result("prompts are sent as token ids, and replies include theirs")


def _check_seeds(server: CheckedServer) -> CheckResult:
    if not server.samples:
        raise SkippedCheck
    if not server.info.has_seeds:
        return check_result("", IGNORED_SEEDS)
    while len(server.samples) < SAMPLES:
        latest = _sample(server, server.model)
        earlier = [(sample.sampled, sample.text) for sample in server.samples[:-1]]
        if (latest.sampled, latest.text) in earlier:
            return check_result(f"the same seed gives the same {latest.finish.completion_tokens} tokens")
    problem = "the same seed gives different tokens, so sampled answers are not reproducible"
    return check_result("", (problem, "try again when the server is idle"))


SERVER_CHECKS: dict[str, Callable[[CheckedServer], CheckResult]] = {
    "server": _check_server,
    "served_model": _check_served_model,
    "context": _check_context,
    "slots": _check_slots,
    "vocabulary": _check_vocabulary,
    "reply": _check_reply,
    "speed": _check_speed,
    "token_ids": _check_token_ids,
    "seeds": _check_seeds,
}


def _sample(server: CheckedServer, model: Model) -> Reply:
    """Sample a few tokens from the whole vocabulary, always with the same seed."""
    settings = replace(
        server.settings, max_tokens=SAMPLED_TOKENS, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=SEED
    )
    request = ReplyRequest(Conversation().user(QUESTION), settings, ignore_eos=True)
    sample = Reply()
    with closing(ReplyStream(model.engine, [model.prepare_reply(request)])) as events, _time_limit(model):
        for event in raise_refusals(events):
            sample.emit(event)
    _finished(sample)
    if sample.finish.reason == "cancelled":
        raise EndpointError(f"{server.endpoint.name}: no reply within {REPLY_TIMEOUT_S:g} s", SLOW)
    server.samples.append(sample)
    return sample


def _finished(reply: Reply) -> Reply:
    if not reply.is_finished:
        raise EndpointError("there was no reply", "check the log of the server")
    return reply


@contextmanager
def _time_limit(model: Model) -> Generator[None, None, None]:
    """Cancel what a model does in this block once it has taken too long."""
    timer = Timer(REPLY_TIMEOUT_S, model.cancel)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
