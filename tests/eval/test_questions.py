"""Questions from lines, or rows with an error; subsets and tasks; datasets come from the Hub once, into its cache."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import pytest
from command_line import environment_of
from dataset_files import table
from hub_server import DATASETS
from hub_user import HubUser

from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.row_fields import Template, parse_template
from cerebrum_cli.eval.eval_options import EvalOptions
from cerebrum_cli.eval.presets import PRESETS
from cerebrum_cli.eval.reading import Convert, question_options, read_questions, select
from cerebrum_cli.eval.sources import LoadedTask, find_task, load_task
from cerebrum_cli.eval.tasks import TASKS, last_boxed
from cerebrum_cli.rows.read import RowList
from cerebrum_cli.rows.row import InputRow, prompt_row

GOOD = {"question": "1 + 1?", "answer": "2"}


def read(*rows: Any, **options: Any) -> list[InputRow]:
    """Read rows as lines of JSON; bytes are a line as they are."""
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    return read_text(b"\n".join(lines), "jsonl", **options)


def read_text(
    data: bytes, shape: str, template: Template | None = None, convert: Convert | None = None, answer: str = "answer"
) -> list[InputRow]:
    reading = question_options(template, convert, answer, None)
    with tempfile.NamedTemporaryFile(suffix=f".{shape}") as file:
        file.write(data)
        file.flush()
        with reading.open(Path(file.name), None) as rows:
            return [row for _, row in read_questions([rows]).rows]


def reason(row: Any, **options: Any) -> str:
    """Why a row cannot be scored."""
    _, bad = read(GOOD, row, **options)
    assert bad.number == 2 and bad.conversation is None and bad.error
    return bad.error.message


def test_questions_have_the_fields_of_their_rows() -> None:
    rows = read(
        b'\xef\xbb\xbf{"question": " 2 + 2? ", "answer": 4}\r',
        b"",
        {"question": "Why?", "answer": "so", "id": "q-3"},
        {"question": "Why not?", "answer": 0.5, "id": 12, "other": None},
    )
    assert [(row.number, row.id, row.prompt, row.expected["reference"]) for row in rows] == [
        (1, 1, "2 + 2?", "4"),
        (3, "q-3", "Why?", "so"),
        (4, 12, "Why not?", "0.5"),
    ]


@pytest.mark.parametrize(("answer", "choices", "reference"), cases.rows("question_references"))
def test_reference_is_a_final_answer_of_gsm8k_or_the_letter_of_a_choice(
    answer: Any, choices: list[str] | None, reference: str
) -> None:
    [row] = read({"question": "?", "answer": answer, "choices": choices})
    assert row.expected["reference"] == reference


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (b"{", "not JSON: Expecting property name enclosed in double quotes (character 2)"),
        (b'{"question": "\xff"}', "byte 15 is not UTF-8"),
        (b"[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        (b'{"a": ' + b"1" * 5000 + b"}", "no `question`; the fields are: a"),
        (b'{"question": "?", "answer": NaN}', "no `answer`; the fields are: question, answer"),
        *cases.rows("unscorable_questions"),
    ],
)
def test_rows_that_cannot_be_scored_have_a_reason(row: Any, expected: str) -> None:
    assert reason(row).startswith(expected)


def test_column_of_answers_is_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "exam.jsonl"
    path.write_text('{"question": "1 + 1?", "good": "2", "bad": "3", "stub": "x"}\n')
    good, bad = (load_source(path, answer=name) for name in ("good", "bad"))
    assert good.fingerprint != bad.fingerprint
    assert [row.expected for _, row in good.questions.rows] == [{"reference": "2"}]  # only tasks have stubs


def test_answer_that_looks_like_a_list_is_one_answer() -> None:
    """As intervals in MATH do."""
    [row] = read({"question": "?", "answer": "[2, 5]"})
    [cell] = read_text(b'question,answer\n?,"[2, 5]"\n', "csv")
    assert row.expected == cell.expected == {"reference": "[2, 5]"}


def test_index_of_a_choice_is_text_in_a_table() -> None:
    table = 'question,answer,choices\nWhich?,1,"[""red"", ""blue""]"\nHow many?,7,"[""6"", ""7""]"\n'
    rows = read_text(table.encode(), "csv")
    assert [row.expected["reference"] for row in rows] == ["B", "B"]


def test_table_has_questions_with_choices_and_several_right_answers() -> None:
    table = 'question,gold,choices\n1 + 1?,2,\n2 + 2?,"[""4"", ""four""]",\nWhich?,B,"[""red"", 7]"\n'
    rows = read_text(table.encode(), "csv", answer="gold")
    assert [row.expected for row in rows] == [
        {"reference": "2"},
        {"reference": ["4", "four"]},
        {"reference": "B", "choices": ["red", "7"]},
    ]


def test_questions_of_a_template_need_no_question_field() -> None:
    template = parse_template("Solve: {problem}")
    [row] = read({"problem": "P", "answer": "a"}, template=template)
    assert row.prompt == "Solve: P"
    [_, bad] = read({"problem": "P", "answer": "a"}, GOOD, template=template)
    assert bad.error and bad.error.message == "no field `problem`; the fields are: question, answer"
    [question] = read({"q": "Q", "choices": ["red", 2], "answer": "2"}, template=parse_template("{q}\n{choices}"))
    assert question.prompt == "Q\nA) red\nB) 2"
    assert reason({"question": "", "answer": "2"}, template=parse_template("{question}")) == "the prompt is empty"


def numbered(ids: Iterable[str | int]) -> RowList:
    return RowList(tuple((number, prompt_row(number, id, "?")) for number, id in enumerate(ids, 1)))


def test_selection_is_a_prefix_of_a_larger_one() -> None:
    questions = numbered(range(1, 401))
    chosen = select(questions, 400).rows
    assert sorted(chosen, key=lambda each: each[0]) == list(questions.rows) and chosen != questions.rows
    assert select(questions, 200).rows == chosen[:200]
    assert select(RowList(questions.rows[::-1])).rows == chosen
    assert select(RowList(questions.rows[:300])).rows == tuple(each for each in chosen if each[0] <= 300)


def test_selection_is_the_same_on_every_machine() -> None:
    questions = numbered(("a", "b", 1, "1", 2, "ü"))
    assert [row.id for _, row in select(questions).rows] == ["1", 1, "ü", "b", "a", 2]


def test_presets_are_of_tasks_and_the_catalog() -> None:
    catalog = (Path(__file__).parents[2] / "models.toml").read_text(encoding="utf-8")
    assert all(preset.task in TASKS and f"[models.{preset.name}]" in catalog for preset in PRESETS)


def test_task_reports_a_row_without_a_field_it_converts() -> None:
    row = {"task_id": "H/0", "prompt": "def f():", "test": "", "entry_point": None}
    fields = "the fields are: task_id, prompt, test, entry_point"
    assert reason(row, convert=lambda row: {"answer": row["answer"]}) == f"no `answer`; {fields}"
    with pytest.raises(UsageError, match=f"line 1: no `entry_point`; {fields}"):
        read(row, b"{", convert=TASKS["humaneval"].convert)
    [question] = read(row | {"entry_point": "f"}, convert=TASKS["humaneval"].convert)
    assert question.expected == {"reference": "check(f)", "stub": "def f():", "entry_point": "f"}
    assert question.prompt
    assert question.prompt.endswith("```python\ndef f():\n```")  # also for a template with {question}


@pytest.mark.parametrize(("solution", "answer"), cases.rows("boxed_answers"))
def test_reference_answer_of_math_is_its_last_box(solution: str, answer: str) -> None:
    assert last_boxed(solution) == answer


GSM8K, GSM8K_FILE = "openai/gsm8k", "main/test-00000-of-00001.parquet"
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture
def hub_user(hub_user: HubUser) -> HubUser:
    """A user of a Hub with a dataset: Parquet in large-file storage."""
    sums = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(3)]
    files = {GSM8K_FILE: table(sums), "main/train-00000-of-00001.parquet": table(sums * 3)}
    hub_user.hub.repository(f"{DATASETS}{GSM8K}", files)
    return hub_user


class Notices(list[str]):
    """Progress of a load, of which only notices are kept."""

    def update(self, stage: str, done: int, total: int) -> None:
        pass

    def notice(self, event: NoticeEvent) -> None:
        self.append(f"{event.message} {event.hint}")


def load(
    hub_user: HubUser,
    name: str,
    notices: Notices | None = None,
    *,
    variables: Mapping[str, str] = {},
    offline: bool = False,
) -> LoadedTask:
    """Load a task, whose prompts are the questions alone, as a user with more environment variables."""
    task = replace(TASKS[name], template="", follows="")
    with environment_of(hub_user.command.environment(hub_user.environment(variables))):
        return load_task(task, Notices() if notices is None else notices, EvalOptions(offline=offline))


def summary(loaded: LoadedTask) -> list[tuple[str | int, str | None, str]]:
    return [(row.id, row.prompt, row.expected["reference"]) for _, row in loaded.questions.rows if not row.error]


def refusal(hub_user: HubUser, task: str, **options: Any) -> list[str]:
    """The problem and the hint of a task that cannot be loaded."""
    with pytest.raises(CerebrumError) as caught:
        load(hub_user, task, **options)
    return [caught.value.message, caught.value.hint]


def test_dataset_is_downloaded_once_and_then_read_offline(hub_user: HubUser) -> None:
    first = load(hub_user, "gsm8k")
    origin = f"dataset {GSM8K}, {GSM8K_FILE} at commit {hub_user.commit(DATASETS + GSM8K)}"
    assert (first.digest, first.remarks[0]) == (hub_user.digest(GSM8K_FILE, DATASETS + GSM8K), origin)
    assert summary(first) == [(number, f"{number - 1} + 1?", str(number)) for number in (1, 2, 3)]
    hub_user.hub.repositories[DATASETS + GSM8K].commit({GSM8K_FILE: b"another"})
    hub_user.hub.log.clear()
    assert load(hub_user, "gsm8k") == first
    assert load(hub_user, "gsm8k", variables=OFFLINE) == first
    assert not hub_user.hub.log.requests()


def load_source(source: str | Path, **options: Any) -> LoadedTask:
    given = EvalOptions(**options)
    return load_task(find_task(str(source), given), Notices(), given)


def test_protocol_asks_for_a_form_and_a_preset_asks_as_its_card_does(hub_user: HubUser) -> None:
    with environment_of(hub_user.command.environment(hub_user.environment({}))):
        found, of_card = load_source("gsm8k"), load_source("gsm8k", preset="cerebrum-7b")
        own = load_source("gsm8k", template="{question} Briefly.")
    form = 'on the last line write "Answer:" and the final number.'
    prompts = [each.questions.rows[0][1].prompt for each in (found, of_card, own)]
    assert prompts == [f"0 + 1?\n\nReason step by step, and {form}", "0 + 1?", "0 + 1? Briefly."]
    assert [each.fingerprint["protocol"] for each in (found, of_card, own)] == ["gsm8k 1", None, None]
    assert len({tuple(source for source, _ in loaded.questions.rows) for loaded in (found, of_card, own)}) == 1
    assert any(remark.startswith("protocol gsm8k, version 1: zero-shot") for remark in found.remarks)
    assert not any(remark.startswith("protocol") for remark in of_card.remarks)


@pytest.mark.slow
def test_dataset_damaged_in_the_cache_is_downloaded_again(hub_user: HubUser) -> None:
    found = load(hub_user, "gsm8k")
    [blob] = (hub_user.folder(DATASETS + GSM8K) / "blobs").iterdir()
    blob.write_bytes(blob.read_bytes()[:-9] + b"#damaged\n")
    problem, _ = refusal(hub_user, "gsm8k", variables=OFFLINE)
    assert problem == f"the dataset {GSM8K} of gsm8k is not downloaded, or damaged: cerebrum is offline"
    notices = Notices()
    assert load(hub_user, "gsm8k", notices) == found
    assert "in the cache is damaged" in "".join(notices)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"offline": True}, "cerebrum is offline"),
        ({"variables": OFFLINE}, "cerebrum is offline"),
        ({"variables": {"HF_ENDPOINT": "http://127.0.0.1:9"}}, "127.0.0.1:9: connection refused"),
    ],
)
def test_dataset_that_is_missing_without_network_is_named(
    hub_user: HubUser, options: dict[str, Any], reason: str
) -> None:
    problem, hint = refusal(hub_user, "gsm8k", **options)
    assert problem == f"the dataset openai/gsm8k of gsm8k is not downloaded, or damaged: {reason}"
    assert hint.endswith("or download it: hf download openai/gsm8k --repo-type dataset")
    assert not hub_user.hub.log.requests()
    assert load(hub_user, "gsm8k")


def test_dataset_or_split_that_is_missing_or_no_parquet_is_refused(hub_user: HubUser) -> None:
    repository = hub_user.hub.repositories[DATASETS + GSM8K]
    repository.commit({GSM8K_FILE: b"question,answer\n"})
    problem, hint = refusal(hub_user, "gsm8k")
    assert problem.startswith(f"cannot read openai/gsm8k/{GSM8K_FILE}: ")
    assert hint == "report it to the dataset's owner"
    shutil.rmtree(hub_user.folder(DATASETS + GSM8K))
    repository.commit({GSM8K_FILE: None})
    problem, _ = refusal(hub_user, "gsm8k")
    assert problem == "the dataset openai/gsm8k has no file main/test-*.parquet"
    repository.commit({f"main/test-0000{part}-of-00002.parquet": b"half" for part in range(2)})
    problem, _ = refusal(hub_user, "gsm8k")
    assert problem == "the dataset openai/gsm8k has 2 files main/test-*.parquet"
    assert refusal(hub_user, "arc-challenge")[0] == "allenai/ai2_arc: no such repository on the Hub, or it is private"


def test_dataset_of_arc_has_choices(hub_user: HubUser) -> None:
    rows = [
        {"id": "M_1", "question": "Which?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        {"id": "M_2", "question": "How many?", "choices": {"text": ["2", "1"], "label": ["1", "2"]}, "answerKey": "1"},
        {"id": "M_3", "question": "Whom?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
    ]
    files = {"ARC-Challenge/test-00000-of-00001.parquet": table(rows)}
    hub_user.hub.repository(f"{DATASETS}allenai/ai2_arc", files)
    found = load(hub_user, "arc-challenge")
    ask = "Answer with the letter of the correct choice."
    assert summary(found) == [
        ("M_1", f"Which?\n\nA) a\nB) b\n\n{ask}", "B"),
        ("M_2", f"How many?\n\nA) 2\nB) 1\n\n{ask}", "A"),
    ]
    error = found.questions.rows[2][1].error
    assert error and error.message == "invalid `answerKey`: 'C' is none of the labels"


def test_dataset_of_math_has_seven_files(hub_user: HubUser) -> None:
    names = "algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus"
    subjects = names.split()
    repository = f"{DATASETS}EleutherAI/hendrycks_math"
    files = {
        f"{subject}/{split}-00000-of-00001.parquet": table(
            [{"problem": f"{subject} {split}?", "solution": rf"It is $\boxed{{{at}}}$."}]
        )
        for at, subject in enumerate(subjects)
        for split in ("test", "train")
    }
    hub_user.hub.repository(repository, files)
    found = load(hub_user, "math")
    assert summary(found) == [(at + 1, f"{subject} test?", str(at)) for at, subject in enumerate(subjects)]
    assert ", */test-*.parquet at commit " in found.remarks[0]
    assert load(hub_user, "math", offline=True) == found
    next(hub_user.command.home.rglob("geometry/test-*")).unlink()
    assert "is not downloaded, or damaged: cerebrum is offline" in refusal(hub_user, "math", offline=True)[0]
    assert load(hub_user, "math") == found
    del files["prealgebra/test-00000-of-00001.parquet"]
    hub_user.hub.repository(repository, files)
    shutil.rmtree(next(hub_user.command.home.rglob("datasets--EleutherAI--hendrycks_math")))
    assert refusal(hub_user, "math")[0].endswith("has 6 files */test-*.parquet")


def test_file_has_questions_a_digest_and_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"q": "1 + 1?", "answer": 2}\n{"question": "?"}\n')
    found = load_source(path, template="{q} =")
    assert [row.error and row.error.message for _, row in found.questions.rows] == [
        None,
        "no field `q`; the fields are: question",
    ]
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
