"""The checks of `cerebrum doctor --endpoint`, in the order in which they run on each server."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from threading import Timer

from cerebrum_cli.core.errors import CerebrumError, EndpointError, ModelNotFound, NotReadyError
from cerebrum_cli.core.events import FinishEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import foreign_line
from cerebrum_cli.doctor.assessment import CheckResult, check_result
from cerebrum_cli.doctor.checks import QUESTION, DoctorContext
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.interface import Model, open_source
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.replies.source import ModelSource
from cerebrum_cli.servers.endpoint import Endpoint, ServerInfo, Servers
from cerebrum_cli.servers.remote_engine import probe

REPLY_TIMEOUT_S = 60.0  # of each reply; the server may be busy with other requests
REPLY_TOKENS = 64
ANSWER = "42"
WRONG = "a small model may be wrong; otherwise check that -m names the model of the server"
SLOW = "the server is slow or busy: check its log"
SAMPLED_TOKENS = 16
MIN_CONTEXT = 4096  # tokens; a chain of thought takes thousands

Steps = Iterator[str | CheckResult]  # the name of each check, then its result


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


def _check_server(context: DoctorContext, endpoint: Endpoint) -> Steps:
    yield "server"
    try:
        info = probe(endpoint)
    except NotReadyError as error:
        yield check_result("", (error.message, error.hint))
        return
    yield from _describe(info)
    yield "vocabulary"
    try:
        is_served = info.takes_messages
        if is_served:
            model = InstalledModel.served(info.weights)
        else:
            model = context.app.library.resolve(context.settings.model)
    except ModelNotFound as error:
        yield check_result("", (f"skipped, along with all replies: {error.message}", error.hint))
        return
    settings = Settings(format=context.settings.format, max_tokens=REPLY_TOKENS)
    with closing(open_source(ModelSource(context.app, model, settings, Servers([endpoint])))) as loaded:
        with _time_limit(loaded):
            for _ in loaded.load():
                pass
        if is_served:
            yield check_result("not needed: the server applies its own chat template")
        else:
            yield check_result(f"matches {model.label}: {loaded.engine.vocabulary.size} tokens")
        yield from _check_replies(loaded, info)


def _describe(info: ServerInfo) -> Steps:
    way = "through chat completions" if info.takes_messages else f"build {info.build}, by token ids"
    yield check_result(f"{info.kind}, {way}")
    yield "served_model"
    yield check_result(foreign_line(info.model))
    if info.takes_messages:  # it states neither its context nor its slots
        return
    yield "context"
    detail = f"{info.context_size} tokens for a prompt and its reply"
    if info.context_size >= MIN_CONTEXT:
        yield check_result(detail)
    else:
        hint = f"restart {info.kind} with a larger {info.context_option}"
        yield check_result(detail, (f"a chain of thought may need more than {MIN_CONTEXT}", hint))
    yield "slots"
    yield check_result(f"concurrent replies: {info.slots}")


def _check_replies(model: Model, info: ServerInfo) -> Steps:
    yield "reply"
    reply = model.reply(QUESTION)
    with _time_limit(model):
        reply.wait()
    if not reply.is_finished:
        raise EndpointError("there was no reply", "check the log of the server")
    finish = reply.finish
    shown = foreign_line(reply.text or reply.reasoning or "")
    detail = f"{QUESTION} {shown} (reply {finish.completion_tokens} tokens)"
    yield check_result(detail, *_problems_of(reply, model.engine.larger_context))
    if finish.reason == "cancelled":
        return
    if finish.completion_tokens:
        yield "speed"
        yield check_result(_speed_text(finish))
    yield "token_ids"
    _require_whole_reply(model)
    if info.takes_messages:
        yield check_result("none: prompts are sent as messages, and replies come as text")
    else:
        yield check_result("prompts are sent as token ids, and replies include theirs")


def _speed_text(finish: FinishEvent) -> str:
    text = f"first token after {finish.timings.ttft_s:.2f} s"
    if rate := finish.timings.tokens_per_second:
        text += f", then {rate:.1f} t/s"
    return text


def _problems_of(reply: Reply, larger_context: str) -> list[tuple[str, str]]:
    reason = reply.finish.reason
    if reason == "cancelled":
        return [(f"stopped after {REPLY_TIMEOUT_S:g} s", SLOW)]
    notice = reply.notice(larger_context)
    if notice and reason != "length":  # the limit of this check
        return [(notice.message, notice.hint)]
    if reason == "stop" and ANSWER not in re.findall(r"\d+", reply.text):
        return [(f"the answer is not {ANSWER}", WRONG)]
    return []


def _require_whole_reply(model: Model) -> None:
    """Ask for a reply that does not stream. Raises CerebrumError."""
    with _time_limit(model):
        for reply in model.replies([QUESTION], max_tokens=SAMPLED_TOKENS):
            if isinstance(reply, Reply) and reply.finish_reason == "cancelled":
                raise EndpointError(f"no reply within {REPLY_TIMEOUT_S:g} s", SLOW)


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
