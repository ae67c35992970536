"""Self-test: the bundled model answers a known question through the same code as a user's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.doctor.check_result import CheckResult, check_result
from cerebrum_cli.engine.build import rebuild_command
from cerebrum_cli.inference.loading import BackendFactory, ReplySource, Resources, open_model
from cerebrum_cli.inference.reply import Reply, ReplyCollector
from cerebrum_cli.inference.reply_stream import ReplyRequest
from cerebrum_cli.models.model import Model

NANO = Path(__file__).parents[1] / "nano.gguf"
FORMAT = "cerebrum"
QUESTION = "What is 17 plus 25?"
ANSWER = "17 plus 20 makes 37, 37 plus 5 makes 42. The answer is 42."
MAX_TOKENS = 64  # twice the length of the answer
REINSTALL = f"reinstall llama.cpp: {rebuild_command()}"
WITHOUT_GPU = "check the GPU's driver, and reinstall llama.cpp; until then use --gpu-layers 0"


def run_selftest(factory: BackendFactory, threads: int | None) -> CheckResult:
    """Ask on the CPU; the whole text must match."""
    if not NANO.is_file():
        return CheckResult("self_test", "failure", f"{NANO} is missing", "reinstall cerebrum")
    reply = _ask(factory, threads, gpu_layers="0")
    if reply is None or reply.text != ANSWER:
        return CheckResult("self_test", "failure", _mismatch(reply), REINSTALL)
    return check_result("self_test", _summary(reply))


def run_gpu_selftest(factory: BackendFactory, threads: int | None) -> CheckResult:
    """Ask with all layers offloaded; only the final answer must match, since a GPU rounds differently."""
    reply = _ask(factory, threads, gpu_layers="all")
    if reply is None or reply.final_answer != "42":
        return CheckResult("self_test_gpu", "failure", _mismatch(reply), WITHOUT_GPU)
    return check_result("self_test_gpu", _summary(reply))


def _ask(factory: BackendFactory, threads: int | None, gpu_layers: str) -> Reply | None:
    """Reply of the bundled model; None if it has not finished one."""
    settings = Settings(format=FORMAT, max_tokens=MAX_TOKENS, threads=threads, gpu_layers=gpu_layers)
    resources = Resources(lambda options: factory(replace(options, file=replace(options.file, is_verified=True))))
    loaded = open_model(ReplySource(resources, Model(NANO.stem, (NANO,)), settings))
    collector = ReplyCollector()
    try:
        for event in loaded.responder.respond(ReplyRequest(Conversation().user(QUESTION), settings)):
            collector.emit(event)
    finally:
        loaded.engine.close()
    return collector.reply


def _summary(reply: Reply) -> str:
    timings = reply.finish.timings
    speed = f"{timings.tokens_per_second:.0f} t/s"
    return f"{QUESTION} {reply.text} (loaded in {timings.load_s:.2f} s, {speed})"


def _mismatch(reply: Reply | None) -> str:
    return f"the bundled model answers {reply.text if reply else ''!r} to {QUESTION!r} instead of {ANSWER!r}"
