"""The checks of `cerebrum doctor --endpoint`, in the order in which they run on each server."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from threading import Timer

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import CerebrumError, EndpointError, ModelNotFound
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.doctor.assessment import CheckResult, check_result
from cerebrum_cli.doctor.checks import QUESTION, DoctorContext
from cerebrum_cli.engine.engine import raise_refusals
from cerebrum_cli.engine.remote.client import BusyServerError, Endpoint, server_text
from cerebrum_cli.engine.remote.description import probe
from cerebrum_cli.engine.remote.kind import ServerInfo
from cerebrum_cli.engine.remote.llama_server import LlamaServer
from cerebrum_cli.engine.remote.openai_servers import IGNORED_SEEDS
from cerebrum_cli.library.installed import served_model
from cerebrum_cli.replies.installation import Servers
from cerebrum_cli.replies.interface import Model, open_source
from cerebrum_cli.replies.reply import Ask, Reply, reply_notice
from cerebrum_cli.replies.source import ModelSource

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


def run_server_checks(context: DoctorContext, endpoints: Sequence[Endpoint]) -> Iterator[CheckResult]:
    """Check servers, each up to the first failure."""
    for endpoint in endpoints:
        name = ""
        try:
            for step in _check_server(context, endpoint):
                if isinstance(step, str):
                    name = step
                else:
                    yield replace(step, name=name, endpoint=endpoint.name)
        except CerebrumError as error:
            yield CheckResult("failure", error.message, error.hint, name, endpoint.name)


def _check_server(context: DoctorContext, endpoint: Endpoint) -> Iterator[str | CheckResult]:
    """Yield the name of each check, then its result."""
    yield "server"
    try:
        info = probe(endpoint)
    except BusyServerError as busy:
        yield check_result(
            "", (f"{endpoint.name} is not ready: {busy.reason}", "other commands wait for it; try again later")
        )
        return
    yield from _describe(info)
    yield "vocabulary"
    try:
        is_served = info.kind.takes_messages
        model = (
            served_model(info.weights)
            if is_served
            else context.installation.library.resolve_vocabulary(context.settings.model)
        )
    except ModelNotFound as error:
        yield check_result("", (f"skipped, along with all replies: {error.message}", error.hint))
        return
    settings = Settings(format=context.settings.format, max_tokens=REPLY_TOKENS)
    with closing(open_source(ModelSource(context.installation, model, settings, Servers([endpoint])))) as loaded:
        with _time_limit(loaded):
            for _ in loaded.load():
                pass
        if is_served:
            yield check_result("not needed: the server applies its own chat template")
        else:
            yield check_result(f"matches {model.label}: {loaded.engine.vocabulary.size} tokens")
        yield from _check_replies(loaded, settings, info)


def _describe(info: ServerInfo) -> Iterator[str | CheckResult]:
    kind = info.kind
    slots = info.slots
    way = "through chat completions" if kind.takes_messages else f"build {info.build}, by token ids"
    yield check_result(f"{kind.name}, {way}")
    yield "served_model"
    yield check_result(
        server_text(info.model) + (", whose weights are not those of the local file" if info.has_other_weights else "")
    )
    if kind.takes_messages:  # it states neither its context nor its slots
        return
    yield "context"
    shared = ", which its slots share" if isinstance(kind, LlamaServer) else ""
    too_small = (
        f"a chain of thought may need more than {MIN_CONTEXT}",
        f"restart {kind.name} with a larger {kind.context_option}{shared}",
    )
    yield check_result(
        f"{info.context_size} tokens for a prompt and its reply",
        too_small if info.context_size < MIN_CONTEXT else None,
    )
    yield "slots"
    if info.max_window > slots:
        yield check_result(f"not stated: {slots} replies at a time at first")
    elif slots == 1:
        yield check_result("1 reply at a time; more slots (-np) speed up batches and votes")
    else:
        yield check_result(f"{slots} replies at a time")


def _check_replies(model: Model, settings: Settings, info: ServerInfo) -> Iterator[str | CheckResult]:
    yield "reply"
    reply = model.respond(Ask(Conversation().user(QUESTION), settings))
    with _time_limit(model):
        finish = _finished(reply.wait()).finish
    yield _assess_reply(reply, model.engine.larger_context)
    if finish.reason == "cancelled":
        return
    if finish.completion_tokens:
        yield "speed"
        cached = ""
        if finish.cached_tokens:
            cached = f" ({finish.cached_tokens} of {finish.prompt_tokens} cached)"
        rate = finish.timings.tokens_per_second
        yield check_result(
            f"first token after {finish.timings.ttft_s:.2f} s{cached}" + (f", then {rate:.1f} t/s" if rate else "")
        )
    yield "token_ids"
    samples = [_sample(model, settings)]
    if info.kind.takes_messages:
        yield check_result("none: prompts are sent as messages, and replies come as text")
    else:
        yield check_result("prompts are sent as token ids, and replies include theirs")
    yield "seeds"
    if not info.has_seeds:
        yield check_result("", IGNORED_SEEDS)
        return
    while len(samples) < SAMPLES:
        latest = _sample(model, settings)
        if (latest.sampled, latest.text) in [(sample.sampled, sample.text) for sample in samples]:
            yield check_result(f"the same seed gives the same {latest.finish.completion_tokens} tokens")
            return
        samples.append(latest)
    yield check_result(
        "",
        (
            "the same seed gives different tokens, so sampled answers are not reproducible",
            "try again when the server is idle",
        ),
    )


def _assess_reply(reply: Reply, larger_context: str) -> CheckResult:
    finish = reply.finish
    text = server_text(reply.text or reply.reasoning or "")
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    prompt = ""
    if finish.prompt_tokens:
        prompt = f"prompt {finish.prompt_tokens} tokens, "
    notice = reply_notice(reply, larger_context)
    problem = None
    if finish.reason == "cancelled":
        problem = f"stopped after {REPLY_TIMEOUT_S:g} s", SLOW
    elif notice and finish.reason != "length":  # the limit of this check
        problem = notice.message, notice.hint
    elif finish.reason == "stop" and ANSWER not in re.findall(r"\d+", reply.text):
        problem = f"the answer is not {ANSWER}", WRONG
    return check_result(f"{QUESTION} {shown} ({prompt}reply {finish.completion_tokens} tokens)", problem)


def _sample(model: Model, settings: Settings) -> Reply:
    settings = replace(settings, max_tokens=SAMPLED_TOKENS, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=SEED)
    request = Ask(Conversation().user(QUESTION), settings, ignore_eos=True)
    sample = Reply()
    with closing(model.engine.complete([model.prepare_reply(request)])) as events, _time_limit(model):
        for event in raise_refusals(events):
            sample.emit(event)
    if _finished(sample).finish.reason == "cancelled":
        raise EndpointError(f"no reply within {REPLY_TIMEOUT_S:g} s", SLOW)
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
