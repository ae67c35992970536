"""What a chat says where a reply ends early or cannot begin, with the slash command that helps."""

from __future__ import annotations

from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.core.errors import PromptTooLong
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.formats.choice import FORMAT_NAMES
from cerebrum_cli.replies.reply import Reply

REPETITION_HINT = "/set loop_check off lets replies repeat; or try /retry 0.9, or /set repeat_penalty 1.1"
REASONING_HINT = "/think show prints it; use /think off or /think N, then /retry"
FORMAT_HINT = f"set one with /set format NAME ({', '.join(FORMAT_NAMES[:-1])}), then try again"
BLANK_HINT = "/prompt shows what the model got; /retry 0.9 asks again"


def reply_notice(reply: Reply, chat: Chat) -> NoticeEvent | None:
    """Why a reply ended early, if it did."""
    reason = reply.finish.reason
    hint = "/continue resumes it" if reply.finish.has_all_tokens else "/retry asks again"
    if reason == "cancelled":
        return NoticeEvent("reply interrupted", hint)
    if reason == "length":
        stage = " of reasoning" if reply.reasoning and not reply.text else ""
        problem = f"reply truncated at {reply.finish.completion_tokens} tokens{stage}"
        return NoticeEvent(problem, f"{hint}; /set max_tokens N changes the limit")
    notice = reply.notice()
    if notice is None:
        return None
    if reason == "context" and not chat.loaded.is_remote:
        if chat.settings.ctx and reply.finish.has_all_tokens:
            hint = "/set ctx N makes room, then /continue resumes it"
        return notice._replace(hint=hint if reply.text else f"{hint}; or use /think N, then /retry")
    if reason == "repetition":
        resume = f"{hint}, " if reply.finish.has_all_tokens else ""
        return notice._replace(hint=resume + REPETITION_HINT)
    if reason == "stop" and not chat.loaded.is_remote:
        return notice._replace(hint=REASONING_HINT if reply.reasoning else BLANK_HINT)
    return notice


def too_long_hint(error: PromptTooLong, chat: Chat, files_wait: bool, names_files: bool) -> str:
    """What to do about a question that is too long: whether files wait for it, or it names some."""
    hint = error.hint if chat.loaded.is_remote else "shorten it, or use /set ctx N"
    if files_wait:
        return f"{hint}; /file none removes the files"
    return f"{hint}; {'attach fewer files' if names_files else '/undo removes a turn, /clear starts over'}"
