"""The slash commands for what a chat is asked with: its settings, its model, saved prompts and functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict

from cerebrum_cli.core.declaration import NONE
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.sampling import SAMPLERS
from cerebrum_cli.core.saved_prompts import SavedPrompt
from cerebrum_cli.core.settings import LOCAL_KEYS, OPTIONS, Settings
from cerebrum_cli.core.text import did_you_mean
from cerebrum_cli.formats.choice import FORMAT_NAMES
from cerebrum_cli.terminal.repl.repl import Repl, model_text
from cerebrum_cli.terminal.tables import print_prompts, settings_lines

DEFAULT = "default"  # argument of /system and /set that undoes a change

OLLAMA_KEYS = {"num_ctx": "ctx", "num_predict": "max_tokens"}  # names of settings in ollama
OLLAMA_HINTS = {  # arguments of its /set, and what does the same here
    "format json": "use cerebrum ask --schema for JSON",
    "nothink": "use /think off",
    "verbose": "use /stats",
}
SETTABLE = tuple(
    key for key in OPTIONS if key not in ("model", "system", "no_log", "vi")
)  # which apply to the next chat
SETTABLE_ON_SERVERS = tuple(key for key in SETTABLE if key not in (*LOCAL_KEYS, "lora"))  # "none" is its only value
SETTING_VALUES = {"format": FORMAT_NAMES} | {key: option.words for key, option in OPTIONS.items() if option.words}
SHOWN = {"show": "on", "hide": "off"}  # arguments of /think for reasoning as it is generated
LOADED = ("format", "ctx")  # settings whose values are known once the model is loaded


def set_system_prompt(repl: Repl, argument: str) -> str:
    if argument:
        repl.chat.set_system_prompt(None if argument == DEFAULT else argument)
    repl.wait_for(repl.chat.load())
    shown = repl.chat.conversation.system_prompt
    if shown is None:
        shown = repl.chat.loaded.prompts.format.default_system
    if shown:
        return f"system prompt: {shown}"
    if repl.chat.loaded.model.is_served:
        return "no system prompt"
    return "no system prompt, except what the chat template may add; /prompt shows the whole prompt"


def change_model(repl: Repl, argument: str) -> str:
    if argument:
        repl.wait_for(repl.chat.change_settings({"model": argument}))
    return loaded_text(repl)


def loaded_text(repl: Repl) -> str:
    """The loaded model and its prompt format, with the setting's origin if it is set."""
    loaded, origin = repl.chat.loaded, repl.chat.settings.origins.get("format")
    chosen = f" ({origin})" if origin else ""
    return f"{model_text(loaded)}, prompt format: {loaded.format_name}{chosen}"


def installed_models(repl: Repl, _: str) -> Iterable[str]:
    return (model.reference for model in repl.chat.installation.library.models())


def change_setting(repl: Repl, argument: str) -> str:
    """Show or change a setting, which may be written as in ollama: `parameter num_ctx 4096`, `system TEXT`."""
    name, *rest = re.split(r"[=:\s]\s*", f"{argument} ".removeprefix("parameter ").strip(), maxsplit=1)
    key, value = setting_key(name), "".join(rest)
    match key:
        case "":
            return list_settings(repl)
        case "model":
            return change_model(repl, value)
        case "system":
            return set_system_prompt(repl, value)
    if hint := OLLAMA_HINTS.get(f"{key} {value}".rstrip()):
        raise UsageError(f"unknown setting {argument!r}", hint)
    if key not in SETTABLE:
        hint = f"{did_you_mean(key, SETTABLE)}press Tab after /set to list all"
        raise UsageError(f"unknown setting {key!r}", hint)
    if not value:
        return show_setting(repl, key)
    return apply_setting(repl, key, value, key)


def apply_setting(repl: Repl, key: str, value: str, source: str) -> str:
    """Change a setting, or reset it, and return its new value; `source` names it in errors."""
    changed = None if value == DEFAULT else OPTIONS[key].parse([value], source)
    repl.wait_for(repl.chat.change_settings({key: changed}))
    return show_setting(repl, key, with_origin=value == DEFAULT)


def show_setting(repl: Repl, key: str, with_origin: bool = True) -> str:
    current = settings_in_effect(repl)
    origins = repl.chat.settings.origins if with_origin else {}
    return settings_lines({key: current[key]}, origins)


def setting_key(text: str) -> str:
    key = text.removeprefix("--").replace("-", "_")
    return OLLAMA_KEYS.get(key, key)


def setting_values(repl: Repl, typed: str) -> Iterable[str]:
    """The settings, or one setting with each of its values."""
    key, space, _ = typed.partition(" ")
    if space:
        return (f"{key} {value}" for value in SETTING_VALUES.get(setting_key(key), ()))
    return SETTABLE_ON_SERVERS if repl.chat.loaded.is_remote else SETTABLE


def list_settings(repl: Repl) -> str:
    """The model, the samplers in effect, and all other settings that are not the defaults, with their sources."""
    chat, defaults = repl.chat, Settings()
    shown = [*chat.settings.samplers, *LOADED]
    for key in OPTIONS:
        if key not in SAMPLERS and getattr(chat.settings, key) != getattr(defaults, key):
            shown.append(key)
    settable = SETTABLE_ON_SERVERS if chat.loaded.is_remote else SETTABLE
    listed = {"model": chat.loaded.model.reference}
    for key, value in settings_in_effect(repl).items():
        if key in shown and key in (*settable, *LOADED):
            listed[key] = value
    return settings_lines(listed, {key: chat.settings.origin(key) for key in listed if key != "model"})


def settings_in_effect(repl: Repl) -> JsonDict:
    """All settings, with the format and the context size of the loaded model."""
    values = {**asdict(repl.chat.settings), "format": repl.chat.loaded.format_setting}
    if usage := repl.chat.context_usage:
        values["ctx"] = usage[1]
    return values


def think(repl: Repl, argument: str) -> str | None:
    if argument in SHOWN:
        return apply_setting(repl, "show_thinking", SHOWN[argument], "/think")
    if argument:
        return apply_setting(repl, "think", argument, "/think")
    reasoning = repl.chat.tree.require_reply().message.reasoning
    if not reasoning:
        raise UsageError("the last reply has no reasoning", "not every model marks its reasoning")
    repl.streams.answer(reasoning + "\n")
    return None


def think_values(repl: Repl, _: str) -> Iterable[str]:
    loaded = repl.chat.loaded
    efforts = loaded.prompts.format.efforts if loaded.engine.is_loaded else ()
    return ("on", "off", *SHOWN, *efforts)


def use_prompt(repl: Repl, argument: str) -> str | None:
    if not argument:
        print_prompts(repl.streams, [saved.as_object() for saved in repl.chat.installation.prompts.read_all()])
        return None
    saved = SavedPrompt("no saved prompt") if argument == NONE else repl.chat.installation.prompts.find_use(argument)
    previous = repl.chat.loaded.model.reference
    repl.wait_for(repl.chat.use(saved))
    if repl.chat.loaded.model.reference != previous:
        repl.show_result(f"model changed to {loaded_text(repl)}")
    repl.pending_prompt = saved if saved.prompt else None
    if argument == NONE:
        return "using no saved prompt"
    return f"using {saved.name} {'for the next question' if saved.prompt else 'until /use none'}"


def prompt_names(repl: Repl, _: str) -> Iterable[str]:
    return repl.chat.installation.prompts.names()


def change_tools(repl: Repl, argument: str) -> str:
    if argument == "off":
        repl.chat.tools = ()
    elif argument:
        repl.chat.tools = repl.display.tools_of([*repl.chat.tools, argument])
    if not repl.chat.tools:
        return "no functions; /tools FILE adds some"
    repl.wait_for(repl.chat.load())
    return ", ".join(tool.spec.name for tool in repl.chat.tools)
