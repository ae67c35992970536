"""The forms in which known families of models write calls."""

from __future__ import annotations

from cerebrum_cli.formats.call_forms import (
    ARGUMENTS,
    NO_ARGUMENTS,
    Syntax,
    any_form,
    attribute_form,
    bare_key_form,
    json_form,
    json_object_form,
    key_value_form,
    named_form,
    python_form,
    tag_form,
)
from cerebrum_cli.formats.call_readers import NAME

# JSON.

JSON_IN_TAG = any_form(json_form("<tool_call>", "</tool_call>"), json_form("<tools>", "</tools>"))
JSON_IN_TAGS = json_form("<tool_calls>", "</tool_calls>")
LISTED = f'[{{"name": "weather", "arguments": {ARGUMENTS}}}]'
PARAMETERS = f'{{"name": "weather", "parameters": {ARGUMENTS}}}'
TOOL_NAMES = f'[{{"tool_name": "weather", "parameters": {ARGUMENTS}}}]'
APERTUS = json_form("<|tools_prefix|>", "<|tools_suffix|>", f'[{{"weather": {ARGUMENTS}}}]')
NEMOTRON = json_form("<TOOLCALL>", "</TOOLCALL>", LISTED)
COMMAND_A = json_form("<|START_ACTION|>", "<|END_ACTION|>", TOOL_NAMES)
COMMAND_R = json_form("Action:\n```json\n", "\n```", TOOL_NAMES)
FUNCTION_CALL = json_form("<function_call>")
FUNCTOOLS = json_form("functools", "", LISTED)
INTERN = json_form("<|action_start|><|plugin|>", "<|action_end|>", PARAMETERS)
GRANITE_3 = any_form(json_form("<|tool_call|>", "", LISTED), json_form("<tool_call>", "</tool_call>"))
PHI = any_form(json_form("functools", "", LISTED), json_form("<|tool_call|>", "<|/tool_call|>"))
GIGACHAT = any_form(json_form("<|function_call|>"), json_form("<|message_sep|>\n\nfunction call<|role_sep|>\n"))

# A name, then JSON.

HARMONY = named_form(
    r"to=(?!assistant|user|self)(?:functions\.)?(?P<name>[\w.-]+)"
    rf"(?:(?!<\|(?:message|start|end)\|>).)*<\|message\|>{NO_ARGUMENTS}",
    f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>",
    markers=("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|call|>"),
    in_headers=True,
)
SOLAR = named_form(
    rf"<\|tool_call:begin\|>[^<]*<\|tool_call:name\|>{NAME}<\|tool_call:args\|>{NO_ARGUMENTS}",
    f"<|tool_call:begin|>1<|tool_call:name|>weather<|tool_call:args|>{ARGUMENTS}<|tool_call:end|>",
    markers=("<|tool_call:begin|>", "<|tool_call:name|>", "<|tool_call:args|>", "<|tool_call:end|>"),
    in_headers=True,
)
KIMI = named_form(
    rf"<\|tool_call_begin\|>\s*{NAME}(?::\d+)?\s*<\|tool_call_argument_begin\|>{NO_ARGUMENTS}",
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    f"<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>",
    *("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    markers=("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
)
DEEPSEEK = named_form(
    rf"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?{NAME}\s*(?:<｜tool▁sep｜>|```(?:json)?){NO_ARGUMENTS}",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    f"{ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    markers=("<｜tool▁sep｜>", "```<｜tool▁call▁end｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
)
NAMED_MISTRAL = named_form(
    rf"\[TOOL_CALLS\]\s*{NAME}\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(?=\{{)",
    f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}",
    "[TOOL_CALLS]",
    markers=("[CALL_ID]", "[ARGS]"),
)
LISTED_MISTRAL = json_form("[TOOL_CALLS]", "", LISTED)
FUNCTION_TAG = named_form(
    rf"<function={NAME}>\s*(?=\{{)", f"<function=weather>{ARGUMENTS}</function>", "<function=", markers=("</function>",)
)

# Keys and values.

TAGS_ON_LINES = tag_form("<tool_call>", "</tool_call>", has_lines=True)
SEED = tag_form("<seed:tool_call>", "</seed:tool_call>", has_lines=False)
KEYS_AND_VALUES = key_value_form("<tool_call>", "</tool_call>")
INVOKED = attribute_form("invoke", "parameter", "<minimax:tool_call>", "</minimax:tool_call>")
CPM = attribute_form("function", "param")
STEP = attribute_form(
    *("steptml:invoke", "steptml:parameter", "<｜tool_calls_begin｜>", "<｜tool_call_begin｜>"),
    *("function<｜tool_sep｜>", "<｜tool_sep｜>", "<｜tool_call_end｜>", "<｜tool_calls_end｜>"),
)
DSML = any_form(
    *(
        attribute_form(
            *("｜DSML｜invoke", "｜DSML｜parameter", f"<｜DSML｜{calls}>", f"</｜DSML｜{calls}>"),
            attribute=' string="true"',
        )
        for calls in ("function_calls", "tool_calls")
    )
)
LONGCAT = any_form(
    json_form("<longcat_tool_call>", "</longcat_tool_call>"),
    key_value_form("<longcat_tool_call>", "</longcat_tool_call>", "longcat_"),
)

# Python, keys without quotes, or one of several.

OLMO = python_form("<function_calls>", "</function_calls>", 'weather(city="Oslo")')
GEMMA_4 = bare_key_form("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA = bare_key_form("<start_function_call>", "<end_function_call>", "<escape>")

LFM = any_form(
    python_form("<|tool_call_start|>", "<|tool_call_end|>"), json_form("<|tool_call_start|>", "<|tool_call_end|>")
)
LLAMA_3 = any_form(
    json_object_form("name", "parameters"),
    FUNCTION_TAG,
    json_form("<|python_tag|>"),
    python_form("<|python_tag|>", "<|eom_id|>"),
)
LLAMA_4 = any_form(python_form("<|python_start|>", "<|python_end|>"), json_object_form("name", "parameters"))
BARE_PYTHON = Syntax(example='[weather(city="Oslo")]')
XLAM = any_form(Syntax(example=LISTED), JSON_IN_TAG, LISTED_MISTRAL)
