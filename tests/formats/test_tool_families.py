"""Documented calls of the families whose chat templates do not show how they write calls, and calls without markup."""

import json
from typing import Any

import pytest
from command_line import ROOT
from templates import embedded
from tool_templates import NO_CALLS

from cerebrum_cli.core.tools import ToolSpec
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.tool_calls import PLAIN_TOOLS, ToolFormat
from cerebrum_cli.formats.tool_families import FAMILIES

DOCUMENTED = json.loads((ROOT / "tests" / "data" / "calls.json").read_text(encoding="utf-8"))
TYPES = {"city": "string", "days": "integer", "ratio": "number", "flag": "boolean", "data": "object", "items": "array"}
SCHEMA = {"type": "object", "properties": {key: {"type": kind} for key, kind in TYPES.items()}}
TOOLS = tuple(ToolSpec(name, "does something", SCHEMA) for name in ("weather", "run_python"))


def format_of(name: str, chatml: LlamaBackend) -> ToolFormat:
    """The format of a template that has the texts of a family, if any, and writes no calls."""
    if not name:
        return PLAIN_TOOLS
    texts = next(family.texts for family in FAMILIES if family.name == name)
    return embedded(chatml, f"{{# {' '.join(texts)} #}}{NO_CALLS}").tool_format


@pytest.mark.parametrize("case", DOCUMENTED, ids=lambda case: f"{case['family']}: {case['what']}")
def test_documented_calls_are_read(case: dict[str, Any], chatml: LlamaBackend) -> None:
    tool_format = format_of(case["family"], chatml)
    found = tool_format.read(case["reply"], TOOLS)
    assert str([[call.name, call.arguments] for call in found.calls]) == str(case["calls"])
    assert found.are_own == case.get("own", bool(case["calls"] and case["family"]))
    if tool_format.in_headers:
        return
    assert (found.before, found.behind) == (case.get("before", ""), case.get("behind", ""))
    for size in (1, 3, 1000):
        calls = tool_format.filter(TOOLS)
        passed = "".join(calls.feed(case["reply"][at : at + size]) for at in range(0, len(case["reply"]), size))
        assert passed + calls.held == case["reply"]
        assert passed == case.get("passed", found.before) or not found.calls


def test_every_family_has_a_documented_call_and_is_in_the_manual() -> None:
    names = [family.name for family in FAMILIES]
    assert {case["family"] for case in DOCUMENTED} == {*names, ""}
    page = (ROOT / "docs" / "functions.md").read_text(encoding="utf-8")
    assert "; ".join(names) in " ".join(page.split())
