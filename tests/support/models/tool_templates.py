"""Chat templates that write function calls, one for each shape, and what prompts of them hold of a call."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from command_line import ROOT

from cerebrum_cli.core.conversation import Conversation, Message, PromptPart, Text, Tokens
from cerebrum_cli.core.tools import Round, ToolCall, ToolCalls, ToolSpec
from cerebrum_cli.formats.prompt_format import PromptFormat

PLACE = "{%- for tool in tools or [] %}{{ '<|im_start|>system\n' + tool | tojson + '<|im_end|>\n' }}{% endfor %}"
TURNS = """
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- RESULT }}
    {%- elif message.tool_calls %}
        {{- '<|im_start|>assistant\n' + message.content }}
        {%- for call in message.tool_calls %}{% set call = call.function %}
            {%- set name, arguments = call.name, call.arguments %}CALL
        {%- endfor %}
        {{- 'AFTER<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
RESULT = "'<|im_start|>tool\n' + message.content + '<|im_end|>\n'"
ALONE = "{%- if not loop.first %}{{ raise_exception('one call at a time') }}{% endif %}"


def template(call: str, result: str = RESULT, after: str = "", place: str = PLACE) -> str:
    turns = TURNS.replace("RESULT", result).replace("CALL", call).replace("AFTER", after)
    return place + turns


def pairs(before: str, pair: str, after: str) -> str:
    """A call whose arguments are pairs; values that are no text are JSON."""
    value = "{% set value = value if value is string else value | tojson %}"
    return f"{{{{- {before} }}}}{{% for key, value in arguments.items() %}}{value}{{{{ {pair} }}}}{{% endfor %}}{after}"


OBJECT = """{{ '{"name": "' + name + '", "arguments": ' + arguments | tojson + '}' }}"""
GEMMA = """
{%- macro written(value) %}
{%- if value is string %}{{ '<|"|>' + value + '<|"|>' }}
{%- elif value is mapping %}{
{%- for key, item in value | dictsort %}{{ key + ':' + written(item) + (',' if not loop.last else '') }}{% endfor %}}
{%- elif value is sequence %}[
{%- for item in value %}{{ written(item) + (',' if not loop.last else '') }}{% endfor %}]
{%- else %}{{ value | tojson }}{% endif %}
{%- endmacro %}
{%- for tool in tools or [] %}{{ '<|tool>' + written(tool) + '<tool|>' }}{% endfor %}
{%- set ns = namespace(is_open=false) %}
{%- for message in messages if message.role != 'tool' %}
    {%- if message.role == 'assistant' %}
        {%- if not ns.is_open %}{{ '<|im_start|>model\n' }}{% endif %}
        {%- for call in message.tool_calls %}
            {{- '<|tool_call>call:' + call.function.name + written(call.function.arguments) + '<tool_call|>' }}
        {%- endfor %}
        {%- set turn = namespace(is_open=false, found=false) %}
        {%- for result in messages if message.tool_calls %}
            {%- if result == message %}{% set turn.found = true %}
            {%- elif turn.found and result.role != 'tool' %}{% break %}
            {%- elif turn.found %}
                {{- '<|tool_response>response:' + result.name + '{value:' + written(result.content) }}
                {{- '}<tool_response|>' }}{% set turn.is_open = true %}
            {%- endif %}
        {%- endfor %}
        {{- message.content }}
        {%- set ns.is_open = turn.is_open and not message.content %}
        {%- if not ns.is_open %}{{ '<|im_end|>\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% set ns.is_open = false %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<|im_start|>model\n' }}{% endif %}"""
HARMONY = """
{%- for tool in tools or [] %}{{ '<|start|>developer<|message|>' + tool | tojson + '<|end|>' }}{% endfor %}
{%- set ns = namespace(name='') %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start|>functions.' + ns.name + ' to=assistant<|channel|>commentary<|message|>' }}
        {{- message.content + '<|end|>' }}
    {%- elif message.tool_calls %}
        {%- if message.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}{% set ns.name = call.name %}
        {{- '<|start|>assistant<|channel|>commentary to=functions.' + call.name + ' <|constrain|>json<|message|>' }}
        {{- call.arguments | tojson + '<|call|>' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
ALTERNATING = """
{%- set ns = namespace(index=0) %}
{%- for message in messages if message.role in ['user', 'assistant'] and not message.tool_calls %}
    {%- if (message.role == 'user') != (ns.index % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}"""
LISTED = """
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content + '}[/TOOL_RESULTS]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']') }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'assistant' %}
        {{- message.content + eos_token }}
    {%- else %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- endif %}
{%- endfor %}"""
LISTED_TOOLS = "{% if tools %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"

TOOL_TEMPLATES = {
    "JSON in a tag": template("{{- '<tool_call>\n' }}" + OBJECT + "{{ '\n</tool_call>' }}"),
    "JSON lines in a tag": template(
        "{{- '<tool_calls>\n' if loop.first else '\n' }}" + OBJECT, after="\\n</tool_calls>"
    ),
    "list after a marker": LISTED_TOOLS + ALTERNATING + LISTED,
    "list in a tag": template(
        "{{- '<tool_call>[' if loop.first else ', ' }}" + OBJECT.replace('arguments"', 'parameters"'),
        after="]</tool_call>",
    ),
    "name, then JSON": template("{{- '<function=' + name + '>' + arguments | tojson + '</function>' }}"),
    "name after a marker, then JSON": template("{{- '[TOOL_CALLS]' + name + '[ARGS]' + arguments | tojson }}"),
    "name, id, then JSON": template(
        "{{- '<|calls|>' if loop.first }}"
        "{{- '<|call|>functions.' + name + ':' + loop.index0 | string + '<|args|>' + arguments | tojson }}<|end_call|>",
        after="<|end_calls|>",
    ),
    "name, then pairs": template(
        pairs(
            "'<tool_call>\n<function=' + name + '>\n'",
            "'<parameter=' + key + '>\n' + value + '\n</parameter>\n'",
            "{{ '</function>\n</tool_call>' }}",
        )
    ),
    "keys and values in tags": template(
        pairs(
            "'\n<tool_call>' + name + '\n'",
            "'<arg_key>' + key + '</arg_key>\n<arg_value>' + value + '</arg_value>\n'",
            "{{ '</tool_call>' }}",
        )
    ),
    "pairs as attributes": template(
        "{{- '<calls>\n' if loop.first }}"
        + pairs(
            "'<invoke name=\"' + name + '\">\n'",
            "'<parameter name=\"' + key + '\">' + value + '</parameter>\n'",
            "{{ '</invoke>\n' }}",
        ),
        after="</calls>",
    ),
    "one call at a time": template(ALONE + OBJECT.replace('arguments"', 'parameters"')),
    "text arguments": template("{{- '<|call|>' + name + '\n```json\n' + arguments + '\n```<|end_call|>' }}"),
    "Gemma 4": GEMMA,
    "gpt-oss": HARMONY,
    "LFM2.5": "{# List of tools: #}"
    + template(
        "{{- '<|tool_call_start|>[' if loop.first else ', ' }}{{ name + '(' }}{% for key, value in arguments.items() %}"
        "{% set value = value | tojson if value is string or value is mapping else value | string %}"
        "{{ key + '=' + value + (', ' if not loop.last else '') }}{% endfor %})",
        after="]<|tool_call_end|>",
    ),
}
"""Templates that write calls, by how they write them."""

NO_PLACE = template(OBJECT, place="")
NO_CALLS = PLACE + TURNS.replace("message.tool_calls", "false").replace("RESULT", RESULT).replace("CALL", "")
NO_RESULTS = template("{{- '<tool_call>\n' }}" + OBJECT + "{{ '\n</tool_call>' }}", result="''")

ALL_TEMPLATES = {**TOOL_TEMPLATES, "no place": NO_PLACE, "no calls": NO_CALLS, "no results": NO_RESULTS}

_ARGUMENTS: dict[str, dict[str, str]] = {key: {} for key in ("city", "code", "data", "days", "flag", "items")}
TOOLS = tuple(ToolSpec(name, "", {"type": "object", "properties": _ARGUMENTS}) for name in ("weather", "run_python"))
ASKED = Conversation(tools=TOOLS).user("Do I need a coat?")
RESULT_TEXT = "the result"


def collection() -> dict[str, str]:
    """The templates of llama.cpp's collection, by name; none before `make peers`."""
    paths = (ROOT / ".peers").glob("llama_cpp_python-*/vendor/llama.cpp/models/templates/*.jinja")
    return {path.stem: path.read_text(encoding="utf-8-sig") for path in sorted(paths)}


def pending(*rounds: Round, conversation: Conversation = ASKED) -> Conversation:
    """A conversation whose reply has made calls."""
    return replace(conversation, prefill=Message("assistant", "", rounds=rounds))


def called(*calls: ToolCall) -> Round:
    return Round(tuple(replace(call, result=RESULT_TEXT) for call in calls))


def shown(parts: Iterable[PromptPart]) -> str:
    """A prompt with its tokens as `{1 2}` and text that is not trusted as `«text»`."""
    texts = []
    for part in parts:
        if isinstance(part, Tokens):
            texts.append("{" + " ".join(map(str, part.ids)) + "}")
        else:
            texts.append(part.value if part.trusted else f"«{part.value}»")
    return "".join(texts)


def written(prompt_format: PromptFormat, calls: Sequence[ToolCall]) -> str:
    """What a format writes of calls, from where a prompt without them ends, to their results."""
    asked, called_prompt = (
        "".join(part.value for part in prompt_format.render(conversation) if isinstance(part, Text))
        for conversation in (ASKED, pending(called(*calls)))
    )
    shared = next(
        (at for at, (one, other) in enumerate(zip(asked, called_prompt, strict=False)) if one != other), len(asked)
    )
    start = asked[:shared]
    if start.rfind("<") > start.rfind(">"):
        shared = start.rfind("<")  # of a marker that begins like another
    return called_prompt[shared:].partition(RESULT_TEXT)[0]


def read_back(prompt_format: PromptFormat, calls: ToolCalls) -> ToolCalls:
    """The calls that a format reads in what it writes of calls."""
    return prompt_format.tool_format.read(written(prompt_format, calls), TOOLS).calls
