"""The tables of tasks and presets agree with each other and with the model cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.eval.presets import PRESETS, Preset, find_condition, find_preset, published
from cerebrum_cli.eval.reading import BadRow
from cerebrum_cli.eval.tasks import TASKS, find_task
from cerebrum_cli.models.reference import REPO_ID

ROOT = Path(__file__).parents[2]


def test_tasks_are_found_by_name() -> None:
    assert [task.name for task in TASKS] == ["gsm8k", "math500", "arc-challenge", "humaneval"]
    assert all(find_task(task.name) is task and REPO_ID.fullmatch(task.repo_id) for task in TASKS)
    assert find_task("questions.jsonl") is None


def test_task_reports_a_row_without_a_field_it_converts() -> None:
    task = find_task("humaneval")
    assert task
    bad = BadRow(2, "not JSON")
    row = {"task_id": "H/0", "prompt": "def f():", "test": "", "entry_point": None}
    missing = BadRow(1, "no `entry_point`; the fields are: task_id, prompt, test, entry_point")
    assert list(task.rows([(1, row), (2, bad)])) == [(1, missing), (2, bad)]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_preset_names_a_model_of_the_catalog(preset: Preset) -> None:
    assert f"[models.{preset.model}]" in (ROOT / "models.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["cerebrum-7b", "cerebrum-8x7b"])
def test_presets_of_cerebrum_have_no_figures(name: str) -> None:
    preset = find_preset(name)
    assert all(find_task(condition.task) for condition in preset.conditions)
    assert all(published(preset, task.name) == () for task in TASKS)
    assert all("images" in condition.note for condition in preset.conditions)


def test_presets_set_what_the_cards_state() -> None:
    seven = find_condition(find_preset("cerebrum-7b"), "gsm8k")
    assert (seven.temperature, seven.samples) == (0.0, 1)
    eight = find_condition(find_preset("cerebrum-8x7b"), "gsm8k")
    assert (eight.temperature, eight.samples) == (None, 8)
    assert "the temperature of maj@8" in eight.unstated


def test_presets_refuse_what_the_card_does_not_report() -> None:
    with pytest.raises(UsageError, match="unknown preset 'cerebrum'") as caught:
        find_preset("cerebrum")
    assert caught.value.hint == "use one of cerebrum-7b, cerebrum-8x7b, collective-cognition"
    with pytest.raises(UsageError, match="no results for 'humaneval'") as caught:
        find_condition(find_preset("cerebrum-7b"), "humaneval")
    assert caught.value.hint == "preset cerebrum-7b has gsm8k, math500, arc-challenge"


def test_preset_averages_follow_from_its_figures() -> None:
    preset = find_preset("collective-cognition")
    assert [(average.name, len(average.tasks)) for average in preset.averages] == [("GPT4All", 7), ("AGIEval", 8)]
    for average in preset.averages:
        figures = [published(preset, task)[-1].value for task in average.tasks]  # acc_norm, where there is one
        assert round(sum(figures) / len(figures), 4) == average.value


def test_preset_errors_follow_from_its_figures() -> None:
    [mc1] = published(find_preset("collective-cognition"), "truthfulqa_mc1")
    assert mc1.error == round((mc1.value * (1 - mc1.value) / (817 - 1)) ** 0.5, 4)
