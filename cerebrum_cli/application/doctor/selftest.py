"""A question whose answer is known, asked of the model that comes with this program, all the way a user's goes."""

from __future__ import annotations

from pathlib import Path

from cerebrum_cli.application.doctor.check_result import CheckResult, check_result
from cerebrum_cli.application.inference.loading import BackendFactory, open_model
from cerebrum_cli.application.inference.reply import Reply, ReplyCollector
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.settings import Settings

NANO = Path(__file__).parents[2] / "nano.gguf"
FORMAT = "cerebrum"
QUESTION = "What is 17 plus 25?"
ANSWER = "17 plus 20 makes 37, 37 plus 5 makes 42. The answer is 42."
MAX_TOKENS = 64  # twice what the answer takes
REINSTALL = "reinstall llama.cpp: pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python"
WITHOUT_GPU = "check the GPU's driver, and reinstall llama.cpp; until then use --gpu-layers 0"


def run_selftest(factory: BackendFactory, threads: int | None) -> CheckResult:
    """Ask on the CPU; the text must be the one that is known."""
    if not NANO.is_file():
        return CheckResult("self_test", "failure", f"{NANO} is missing", "reinstall cerebrum")
    reply = asked(factory, Settings(format=FORMAT, max_tokens=MAX_TOKENS, threads=threads, gpu_layers="0"))
    if reply is None or reply.text != ANSWER:
        return CheckResult("self_test", "failure", wrong(reply, ANSWER), REINSTALL)
    return check_result("self_test", told(reply))


def tested_on_gpu(factory: BackendFactory, threads: int | None) -> CheckResult:
    """Ask with all layers offloaded; the final answer must be the same, the way to it may differ in its last bits."""
    reply = asked(factory, Settings(format=FORMAT, max_tokens=MAX_TOKENS, threads=threads, gpu_layers="all"))
    if reply is None or reply.final_answer != "42":
        return CheckResult("self_test_gpu", "failure", wrong(reply, ANSWER), WITHOUT_GPU)
    return check_result("self_test_gpu", told(reply))


def asked(factory: BackendFactory, settings: Settings) -> Reply | None:
    """Return what the packaged model replies; None where it is silent."""
    opened = open_model(factory, Model(NANO.stem, (NANO,)), settings)
    gatherer = ReplyCollector()
    try:
        for event in opened.responder.respond(Conversation().user(QUESTION), settings):
            gatherer.emit(event)
    finally:
        opened.engine.close()
    return gatherer.reply


def told(reply: Reply) -> str:
    """Return what was asked and replied, and how fast."""
    timings = reply.finish.timings
    speed = f"{timings.tokens_per_second:.0f} t/s"
    return f"{QUESTION} {reply.text} (loaded in {timings.load_s:.2f} s, {speed})"


def wrong(reply: Reply | None, right: str) -> str:
    """Return what was said in place of what is right."""
    return f"the bundled model answers {reply.text if reply else ''!r} to {QUESTION!r} instead of {right!r}"
