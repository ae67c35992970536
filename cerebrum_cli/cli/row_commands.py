"""What commands that answer rows share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.cli.command import BaseCommand
from cerebrum_cli.cli.options import AnswerOptions, ConstrainedOptions, ToolOptions, name_grammar_in_errors
from cerebrum_cli.core.declaration import INTEGER, flag, option, option_group, switch
from cerebrum_cli.core.errors import BatchError, EndpointError, EngineError, Interrupted, UsageError
from cerebrum_cli.core.events import Events
from cerebrum_cli.core.settings import MAX_PARALLEL
from cerebrum_cli.core.tools import Tools

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.json_types import JsonDict
    from cerebrum_cli.core.settings import Layer, Settings
    from cerebrum_cli.library.installed import InstalledModel
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.rows.answering import Asker
    from cerebrum_cli.rows.output_tables import ResultTable
    from cerebrum_cli.rows.read import Rows
    from cerebrum_cli.rows.record import Record
    from cerebrum_cli.rows.run import Run
    from cerebrum_cli.servers.endpoint import Servers

Answering = tuple[Events, Callable[[], None]]  # the events, and what cancels them


@option_group
class ResumeOptions(BaseCommand):
    """Options of a command that resumes what earlier runs have begun."""

    restart: bool = switch("Start over and discard earlier answers", "Output")
    retry_failed: bool = switch("Ask again for rows that failed, and undecided votes", "Output")

    def open_run(
        self,
        output: Path,
        record: Record,
        rows: Rows,
        table: ResultTable | None,
        write: Callable[[str], None],
        unit: str = "row",
    ) -> Run:
        """The run of an output, with the rows that earlier runs finished; `write` is for standard output.

        Raises UsageError, BatchError.
        """
        from cerebrum_cli.rows.input_file import STANDARD
        from cerebrum_cli.rows.run import StreamedRun, open_run

        if output != STANDARD:
            return open_run(output, record, rows, table, self.restart, self.retry_failed, unit)
        if self.retry_failed:
            raise UsageError("--retry-failed requires a file with earlier answers", "give it as -o OUTPUT")
        return StreamedRun(rows, write)


@option_group
class RowFileOptions(ResumeOptions):
    """Options of a command that reads rows from a file, and writes one for each of them."""

    delimiter: str | None = option("Delimiter of a CSV [default: detected]", "Input", metavar="CHAR")


@option_group
class ConcurrencyOptions(AnswerOptions):
    parallel: str | None = option("Answers generated at the same time [default: auto]", "Model", metavar="N|auto")

    @property
    def window(self) -> int:
        """What `--parallel` gives each server or this machine; 0 if that is chosen automatically. Raises UsageError."""
        if self.parallel in (None, "auto"):
            return 0
        most = MAX_PARALLEL
        if self.endpoint:
            from cerebrum_cli.servers.endpoint import Servers

            most = Servers.MAX_WINDOW
        if self.parallel.isdecimal() and 1 <= int(self.parallel) <= most:
            return int(self.parallel)
        raise UsageError.invalid("--parallel", self.parallel, f"a number from 1 to {most}, or auto")

    def find_source(self, app: App, overrides: Layer, may_pull: bool = True) -> ModelSource:
        """Find the source of answers. Without `--parallel`, its context has 0 slots: their number is chosen later."""
        from cerebrum_cli.engine.requests import ContextOptions

        source = super().find_source(app, overrides, may_pull)
        context = ContextOptions(slots=self.window, batch_invariant=True)
        return replace(source, context=context)

    def find_servers(self, app: App, requested: Settings) -> Servers | None:
        servers = super().find_servers(app, requested)
        return servers and replace(servers, window=self.window or None)

    @contextmanager
    def answering(self, source: ModelSource, run: Run, asker: Asker) -> Iterator[Answering]:
        """What answers the missing rows of a run: here or on servers."""
        from cerebrum_cli.replies.interface import open_source
        from cerebrum_cli.rows.answering import answer_rows

        rows = MAX_PARALLEL if run.has_more else run.missing_count
        with open_source(source.for_rows(rows * asker.samples, run.servers)) as loaded:
            yield answer_rows(loaded, run, asker), loaded.cancel


@option_group
class RowOptions(ToolOptions, ConstrainedOptions, ConcurrencyOptions):
    """Options of a command that answers rows: here, on servers, or on a cluster."""

    ray: str | None = option("Generate on the nodes of a Ray cluster", "Model", metavar="ADDRESS|auto|local")
    ray_workers: int | None = option("Workers with --ray [default: one per GPU or node]", "Model", INTEGER, metavar="N")

    @property
    def place_flag(self) -> str:
        """The option that chooses another place; empty if it is this machine, or servers."""
        return "" if self.ray is None else "--ray"

    def find_model(self, app: App, requested: Settings, servers: Servers | None = None) -> InstalledModel:
        """Find the model. With --ray, the workers have it themselves, and only its vocabulary is read here."""
        if self.ray_workers is not None and (self.ray is None or self.ray_workers < 1):
            raise UsageError.invalid("--ray-workers", self.ray_workers, "1 or more, and needs --ray")
        if self.ray is None:
            return super().find_model(app, requested, servers)
        if servers is None:
            requested.require_no_adapters("--ray")
        return app.library.resolve(requested.model)

    @contextmanager
    def answering(self, source: ModelSource, run: Run, asker: Asker) -> Iterator[Answering]:
        if self.ray is not None:
            if run.has_more:  # rows that a worker lost are read again
                raise UsageError("--ray needs the rows as a file", "save them, and name the file")
            from cerebrum_cli.cluster.distribution import distribute

            distributed = distribute(source, asker, run, self.ray, self.ray_workers)
            yield distributed.answer(), distributed.cancelled.set
            return
        with name_grammar_in_errors(self.schema, self.grammar), super().answering(source, run, asker) as answering:
            yield answering

    def find_tools(self, app: App) -> Tools:
        """The functions that the model may call without confirmation. Raises UsageError."""
        if not self.tool_flag:
            return ()
        from cerebrum_cli.programs.functions import tools_of

        others = [flag(name) for name in ("votes", "check", "raw") if getattr(self, name, None)]
        for other in filter(None, (*others, self.place_flag)):
            raise UsageError.conflict(self.tool_flag, other)
        tools = tools_of(self.tool_sources, app.streams.note, find=self.tool_finder(app))
        for tool in tools:
            if tool.asks and not self.yes:
                problem = f"this command cannot ask before calls of {tool.spec.name}"
                raise UsageError(problem, "add -y to run functions without asking")
        return tools

    def tool_record(self, tools: Tools) -> JsonDict:
        """Names of functions and digests of what they are from, for a fingerprint; nothing without any."""
        parts = [tool.spec.name for tool in tools]
        parts += dict.fromkeys(tool.digest for tool in tools if tool.digest)
        return {"set of functions": ", ".join(parts)} if parts else {}


def answer_run(app: App, source: ModelSource, options: ConcurrencyOptions, run: Run, asker: Asker, unit: str) -> None:
    """Answer the missing rows of a run, with progress, and complete it; print the summary if none is missing.

    Raises Interrupted with how to resume, and the errors of `resumable`.
    """
    from cerebrum_cli.terminal.progress import BatchProgress
    from cerebrum_cli.terminal.sinks import render

    streams = app.streams
    for notice in run.take_notices():
        streams.note(notice)
    with resumable(run, unit):
        if not (run.missing_count or run.has_more):
            with closing(BatchProgress(streams, draws=False)) as summary:
                summary.emit(run.progress)
        else:
            shares_terminal = run.in_order and streams.out_is_terminal
            draws = streams.can_redraw and not (options.verbose or shares_terminal)
            model = None if options.verbose else source.model.name
            sinks = [BatchProgress(streams, draws, model)]
            with options.answering(source, run, asker) as (events, cancel):
                render(events, cancel, sinks)
    for notice in run.take_notices():
        streams.note(notice)


@contextmanager
def resumable(run: Run, unit: str) -> Iterator[None]:
    """Complete a run at the end, and close it.

    The hint of a signal, or of a server, an engine or a disk that failed, gets what is saved, and how to resume.
    """
    try:
        yield
        run.complete()
    except (Interrupted, EndpointError, EngineError, BatchError) as error:
        error.hint = "; ".join(filter(None, [error.hint, run.how_to_resume(unit)]))
        raise
    finally:
        run.close()
