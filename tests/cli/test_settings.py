"""Settings: layers of partial values, folded into one validated value; config.toml is one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cerebrum_cli.core.config import read_config
from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import ConfigError, UsageError
from cerebrum_cli.core.options import argument
from cerebrum_cli.core.sampling import TokenBias
from cerebrum_cli.core.settings import KEYS, OPTIONS, Settings, fold, unknown_variables, validate

BIAS_HINT = "it must be TOKEN=BIAS, with a number from -10000 to 10000"
GOOD: dict[str, Any] = {
    "model": "starter",
    "system": "",
    "format": "cerebrum",
    "max_tokens": 1,
    "temperature": 0.5,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repeat_penalty": 1.1,
    "top_n_sigma": 1.5,
    "typical_p": 0.9,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.25,
    "dry_multiplier": 0.8,
    "dry_base": 2.0,
    "dry_allowed_length": 3,
    "dry_penalty_last_n": 256,
    "dry_sequence_breaker": ("\n", "."),
    "logit_bias": (TokenBias(42, -1.5), TokenBias(" a=b", 2.0)),
    "seed": 2**32 - 2,
    "stop": ("a b", "\n"),
    "ctx": 4096,
    "lora": ("style.gguf", "tone.gguf:-0.5"),
    "threads": 2,
    "gpu_layers": "all",
    "cache_type_k": "q8_0",
    "cache_type_v": "q4_0",
    "flash_attn": "on",
    "overflow": "stop",
    "think": "on",
    "vi": True,
    "loop_check": False,
    "drafts": True,
    "cache_gb": 0.5,
}


def test_settings_default_without_layers() -> None:
    assert fold() == fold({}, {"seed": None}) == Settings()
    assert (Settings().temperature, Settings().repeat_penalty, Settings().max_tokens) == (0.0, 1.0, None)


def test_settings_later_layers_override_and_none_is_ignored() -> None:
    row, config, given = (
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 0.2, "seed": 3},
        {"temperature": 0, "seed": None},
    )
    assert fold(row, config, given) == Settings(temperature=0.0, top_k=5, seed=3)


def test_settings_convert_each_value_to_its_type() -> None:
    assert set(GOOD) == set(KEYS)
    settings = fold(GOOD)
    assert {key: getattr(settings, key) for key in KEYS} == GOOD
    assert isinstance(fold({"temperature": 1}).temperature, float)
    assert fold({"gpu_layers": 12}).gpu_layers == "12"
    assert fold({"stop": "one"}).stop == ("one",)
    assert fold({"stop": ["one", "two"]}).stop == ("one", "two")


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("max_tokens", 0, "it must be a whole number of 1 or more"),
        ("max_tokens", 2.0, "it must be a whole number of 1 or more"),
        ("max_tokens", True, "it must be a whole number of 1 or more"),
        ("temperature", -0.1, "it must be a number of 0 or more"),
        ("temperature", float("nan"), "it must be a number of 0 or more"),
        ("temperature", "hot", "it must be a number of 0 or more"),
        ("top_p", 1.5, "it must be a number from 0 to 1"),
        ("min_p", -1, "it must be a number from 0 to 1"),
        ("repeat_penalty", 0, "it must be a number of 0.01 or more"),
        ("seed", 2**32 - 1, "it must be a whole number from 0 to 4294967294"),
        ("threads", 2000, "it must be a whole number from 1 to 1024"),
        ("ctx", 0, "it must be a whole number of 1 or more"),
        ("gpu_layers", "many", "it must be a number of layers, `auto` or `all`"),
        ("gpu_layers", "-1", "it must be a number of layers, `auto` or `all`"),
        ("stop", "", "it must be non-empty text"),
        ("stop", 5, "it must be non-empty text"),
        ("temperature", float("inf"), "it must be a number of 0 or more"),
        ("model", 7, "it must be text"),
        ("overflow", 7, "it must be drop-oldest or stop"),
        ("drafts", "maybe", "it must be on or off"),
        ("drafts", 2, "it must be on or off"),
        ("presence_penalty", float("-inf"), "it must be a number from -10000 to 10000"),
        ("typical_p", 1.1, "it must be a number from 0 to 1"),
        ("dry_base", 0.9, "it must be a number of 1 or more"),
        ("dry_penalty_last_n", -1, "it must be a whole number from 0 to 2147483647"),
        ("dry_sequence_breaker", {"": 1}, "it must be non-empty text"),
        ("cache_type_k", "q5_0", "it must be f16, q8_0 or q4_0"),
        ("logit_bias", "42", BIAS_HINT),
        ("logit_bias", "=1", BIAS_HINT),
        ("logit_bias", "42=-inf", BIAS_HINT),
        ("logit_bias", "42=nan", BIAS_HINT),
        ("logit_bias", {"42": True}, BIAS_HINT),
        ("logit_bias", {"42": "x"}, BIAS_HINT),
        ("logit_bias", {"42": 10**400}, BIAS_HINT),
        ("logit_bias", {"": 1}, BIAS_HINT),
        ("logit_bias", 5, BIAS_HINT),
    ],
)
def test_settings_reject_invalid_values_by_option(key: str, value: Any, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate(key, value)
    assert caught.value.message == f"{argument(key, OPTIONS[key])} is {value!r}"
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("logit_bias", ["42=1", "2"], "'2'"),
        ("logit_bias", ["42=1", 5], "5"),
        ("dry_sequence_breaker", [""], "''"),
        ("stop", ["a", 1], "1"),
        ("lora", ["none", "a.gguf"], "['none', 'a.gguf']"),
    ],
)
def test_settings_name_the_invalid_item_of_a_list(key: str, value: Any, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate(key, value)
    assert caught.value.message == f"{argument(key, OPTIONS[key])} is {named}"


def test_settings_read_logit_biases_in_every_shape() -> None:
    expected = (TokenBias(42, -1.5), TokenBias(" a=b", 2.0))
    for value in (["42=-1.5", " a=b=2"], {"42": -1.5, " a=b": 2}, expected, list(map(str, expected))):
        assert fold({"logit_bias": value}).logit_bias == expected
    assert fold({"logit_bias": "==1"}).logit_bias == (TokenBias("=", 1.0),)
    assert fold({"logit_bias": {}}).logit_bias == ()


def test_settings_of_dry_have_escapes_and_none_for_no_breakers() -> None:
    assert fold({"dry_sequence_breaker": ["\\n", "a\\tb"]}).dry_breakers == ("\n", "a\tb")
    assert fold({"dry_sequence_breaker": "none"}).dry_breakers == ()
    assert fold({"dry_sequence_breaker": ["x", "none", "y"]}).dry_breakers == ("y",)
    assert Settings().dry_breakers == ("\n", ":", '"', "*")  # those of llama.cpp


def test_settings_add_the_formats_stop_strings() -> None:
    params = fold({"stop": "END", "temperature": 1, "max_tokens": 5}).sampling(("\nUser:",))
    assert (params.stop, params.temperature, params.max_tokens) == (("\nUser:", "END"), 1.0, 5)


def test_config_accepts_dashes_and_underscores(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert read_config(path).settings == {}
    path.write_text('max-tokens = 5\ntop_k = 3\nstop = ["a"]\n', encoding="utf-8")
    assert fold(read_config(path).settings) == Settings(max_tokens=5, top_k=3, stop=("a",))


def test_config_has_logit_biases_as_a_table_or_a_list(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for text in ('[logit_bias]\n42 = -1.5\n" hello" = 2\n', 'logit-bias = ["42=-1.5", " hello=2"]\n'):
        path.write_text(text, encoding="utf-8")
        assert fold(read_config(path).settings).logit_bias == (TokenBias(42, -1.5), TokenBias(" hello", 2.0))
    path.write_text('top_k = 3\n[logit_bias]\n42 = "x"\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert (caught.value.message, caught.value.hint) == (f"{path}:2: logit_bias is {{'42': 'x'}}", BIAS_HINT)


def test_config_reports_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        read_config(tmp_path)


def test_environment_ignores_an_empty_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCESSIBLE", "")
    assert environment("ACCESSIBLE") is None
    monkeypatch.setenv("ACCESSIBLE", "1")
    assert environment("ACCESSIBLE") == "1"


def test_unknown_variables_name_the_likely_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEREBRUM_TEMPRATURE", "1")
    monkeypatch.setenv("CEREBRUM_XYZZY", "1")
    monkeypatch.setenv("CEREBRUM_TOP_K", "1")
    assert unknown_variables(KEYS) == {"CEREBRUM_TEMPRATURE": "CEREBRUM_TEMPERATURE", "CEREBRUM_XYZZY": None}
