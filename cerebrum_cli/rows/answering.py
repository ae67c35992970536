"""Answer the missing rows of a run, and write each as soon as it is finished."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple, Protocol

from cerebrum_cli.core.ask import Ask, Votes
from cerebrum_cli.core.errors import GrammarError, UsageError
from cerebrum_cli.core.events import Event, Events, NoticeEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.row_fields import RowId
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.core.settings import Layer, Settings, SourcedLayer, mode_of
from cerebrum_cli.core.text import Texts, truncate
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.majority_vote import MajorityVote, Outcome, Row
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.replies.source import ModelSource
from cerebrum_cli.rows.row import REPLY_KEYS, InputRow, output_object, row_object
from cerebrum_cli.rows.run import Run

MAX_IDS = 100_000  # to compare with those of later rows
MAX_NOTICE = 400  # characters


class RowAnswer(NamedTuple):
    """The place of a finished row, and its output object."""

    place: int
    object: JsonDict


class Asker(Protocol):
    """How rows are asked."""

    @property
    def samples(self) -> int:
        """The most samples of a row."""

    @property
    def keys(self) -> Texts:
        """The keys of an answer in an output object."""

    def answer(self, model: Model, rows: Iterable[tuple[int, InputRow]], in_order: bool) -> Iterator[Event | RowAnswer]:
        """Ask a loaded model for rows by place; yield all events, and each row as it finishes, or in their order.

        Rows that are refused finish with an error. After a cancel, rows are missing.
        """


def answer_rows(model: Model, run: Run, asker: Asker) -> Events:
    """Answer the missing rows of a run, and write each; yield all events, and a RowEvent for each row.

    The caller completes the run.
    """
    yield from model.load()
    yield run.progress
    for event in asker.answer(model, askable_rows(run, asker), run.in_order):
        if isinstance(event, RowAnswer):
            run.note_origin(model)  # which is known after the first reply; other servers may come
            run.write(*event)
            yield run.progress
        else:
            run.sync()
            yield event
    yield run.progress


def askable_rows(run: Run, asker: Asker) -> Iterator[tuple[int, InputRow]]:
    """Yield the missing rows that can be asked, by place; write the others with their errors."""
    for place, row in run.missing():
        if row.error:
            run.write(place, output_object(row, asker.keys, {"error": asdict(row.error)}))
        else:
            yield place, row


@frozen
class BatchOptions:
    """Options of all rows of a batch, each a prompt or a vote; the settings of a row take precedence.

    `modes` are the settings of rows that turn thinking on or off.
    """

    settings: Settings
    grammar: Grammar | None = None
    votes: Votes | None = None
    modes: Mapping[str, Settings] = field(default_factory=dict)
    tools: Tools = ()

    @property
    def samples(self) -> int:
        """The most samples of a row."""
        return self.votes.maximum if self.votes else 1

    @property
    def keys(self) -> Texts:
        return REPLY_KEYS

    def for_row(self, place: int, row: Layer) -> Settings:
        settings = self.settings
        if think := row.get("think"):
            settings = self.modes.get(mode_of(think), settings)
        if not row and settings.seed is None:
            return settings
        origins = {**settings.origins, **SourcedLayer(row).origins}
        return replace(settings, **{"seed": self.seed(place), **row}, origins=origins)

    def seed(self, place: int) -> int | None:
        """The seed of a row's first sample; no two samples of one run share a seed."""
        if self.settings.seed is None:
            return None
        return (self.settings.seed + place * self.samples) % SEEDS

    def fingerprint(self, source: ModelSource) -> JsonDict:
        """Everything the answers depend on besides the prompts and functions, by readable names."""
        fingerprint = source.fingerprint(self.grammar)
        fingerprint |= source.votes_fingerprint(self.votes) if self.votes else {"votes": None}
        for mode, settings in self.modes.items():
            if settings.samplers != self.settings.samplers:
                fingerprint[mode] = settings.samplers
        return fingerprint

    def answer(self, model: Model, rows: Iterable[tuple[int, InputRow]], in_order: bool) -> Iterator[Event | RowAnswer]:
        model.check_settings(self.settings)
        for event in model.run_rows(rows_to_ask(model, rows, self), in_order=in_order):
            if not isinstance(event, Outcome):
                yield event
            elif not (isinstance(event.result, Reply) and event.result.finish_reason == "cancelled"):
                place, _ = event.row.key
                yield RowAnswer(place, row_object(event))


def rows_to_ask(model: Model, rows: Iterable[tuple[int, InputRow]], options: BatchOptions) -> Iterator[Row]:
    notices = RowNotices()
    for place, row in rows:
        model.note(notices.of(row))
        yield row_to_ask(place, row, options, model.source)
    model.note(notices.of_keys)


@dataclass(slots=True)
class RowNotices:
    """Notices of the first repeated id, and of all ignored keys so far."""

    _numbers: dict[RowId, int] = field(default_factory=dict)  # of the first rows with these ids
    _unused: set[str] = field(default_factory=set)
    _is_repeated: bool = False

    def of(self, row: InputRow) -> NoticeEvent | None:
        self._unused.update(row.unused)
        first = row.number
        if len(self._numbers) < MAX_IDS:
            first = self._numbers.setdefault(row.id, first)
        if first == row.number or self._is_repeated:
            return None
        self._is_repeated = True
        problem = f"rows {first} and {row.number} have the id {row.id!r}"
        return NoticeEvent(truncate(problem, MAX_NOTICE), "answers keep the order of the rows")

    @property
    def of_keys(self) -> NoticeEvent | None:
        if not self._unused:
            return None
        problem = f"ignored keys: {', '.join(sorted(self._unused))}"
        return NoticeEvent(truncate(problem, MAX_NOTICE), "cerebrum ask --set help lists the settings of rows")


def row_to_ask(place: int, row: InputRow, options: BatchOptions, source: ModelSource) -> Row:
    """What is asked for a row."""
    key = (place, row)
    assert row.conversation
    settings = options.for_row(place, row.settings)
    grammar = options.grammar
    vote = MajorityVote(options.votes) if options.votes else None
    try:
        if options.samples > 1:
            settings = settings.for_samples("--votes")
        if row.grammar:
            grammar = row.grammar
            source.check(grammar)
    except (UsageError, GrammarError) as problem:
        return Row(key, problem)
    conversation = row.conversation
    if conversation.system_prompt is None and settings.system is not None:
        conversation = replace(conversation, system_prompt=settings.system)
    return Row(key, Ask(conversation, settings, grammar, tools=options.tools), vote)
