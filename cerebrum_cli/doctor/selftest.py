"""Self-test: the bundled model answers a known question through the same code as a user's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.doctor.assessment import CheckResult, check_result
from cerebrum_cli.engine.build import rebuild_command
from cerebrum_cli.inference.loading import BackendFactory, ReplySource, Resources, open_model
from cerebrum_cli.inference.reply import Reply, ReplyCollector, ReplyRequest
from cerebrum_cli.models.model import Model

NANO = Path(__file__).parents[1] / "nano.gguf"
FORMAT = "cerebrum"
QUESTION = "What is 17 plus 25?"
ANSWER = "17 plus 20 makes 37, 37 plus 5 makes 42. The answer is 42."
MAX_TOKENS = 64  # twice the length of the answer
REINSTALL = f"reinstall llama.cpp: {rebuild_command()}"
WITHOUT_GPU = "check the GPU's driver, and reinstall llama.cpp; until then use --gpu-layers 0"


def run_selftest(factory: BackendFactory, threads: int | None, on_gpu: bool = False) -> CheckResult:
    """Ask on the CPU, where the whole text must match.

    With all layers on a GPU, only the final answer must match, since a GPU rounds differently.
    """
    if not NANO.is_file():
        return CheckResult("failure", f"{NANO} is missing", "reinstall cerebrum")
    reply = _ask(factory, threads, "all" if on_gpu else "0")
    if reply and (reply.final_answer == "42" if on_gpu else reply.text == ANSWER):
        timings = reply.finish.timings
        speed = f"loaded in {timings.load_s:.2f} s, {timings.tokens_per_second:.0f} t/s"
        return check_result(f"{QUESTION} {reply.text} ({speed})")
    problem = f"the bundled model answers {reply.text if reply else ''!r} to {QUESTION!r} instead of {ANSWER!r}"
    return CheckResult("failure", problem, WITHOUT_GPU if on_gpu else REINSTALL)


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
