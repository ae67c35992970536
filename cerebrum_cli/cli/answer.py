"""Render, print and record the answer to one question; imported, with what saves it, while its model loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING

from cerebrum_cli.chat.history import History
from cerebrum_cli.cli.options import LAST, AskOptions, name_grammar_in_errors
from cerebrum_cli.core.ask import ASK_FOR_ANSWER, Ask, Votes
from cerebrum_cli.core.errors import CerebrumError, Interrupted, NoAnswer, OutputError, SessionError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.settings import sampling_text
from cerebrum_cli.core.text import format_count
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.terminal.sinks import ReplyDisplay, find_code, show_answer, stats_line

if TYPE_CHECKING:
    from cerebrum_cli.chat.session import Session
    from cerebrum_cli.replies.interface import Model
    from cerebrum_cli.replies.majority_vote import MajorityVote
    from cerebrum_cli.terminal.streams import Streams


def show_prompt(streams: Streams, loaded: Model, request: Ask, options: AskOptions) -> None:
    """Print the exact prompt on standard output, byte for byte in a pipe, and its token count on standard error."""
    prompt, token_ids = loaded.preview(request.conversation, loaded.source.settings)
    for notice in loaded.take_notices():
        streams.note(notice)
    if options.json:
        value = {
            "prompt": prompt,
            "prompt_tokens": len(token_ids),
            "token_ids": list(token_ids),
            "format": loaded.format_name,
            "model": loaded.model.name,
        }
        streams.answer(value)
        return
    streams.answer(prompt if prompt.endswith("\n") or not streams.out_is_terminal else f"{prompt}\n")
    streams.note(f"{len(token_ids)} tokens")


@dataclass(slots=True)
class AnswerPrinter:
    """The answer to one request: rendered, recorded, and printed in the form the options ask for.

    It is saved in a `session`, or a new one, if `open_history` is given.
    """

    display: ReplyDisplay
    loaded: Model
    request: Ask
    options: AskOptions
    open_history: Callable[[], History] | None
    session: Session | None
    saved_as: str | None = None

    @property
    def streams(self) -> Streams:
        return self.display.streams

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Print no keys that are pressed meanwhile, and how to continue an answer that is interrupted."""
        options = self.options
        try:
            with ExitStack() as stack:
                if self.streams.out_is_terminal:
                    stack.enter_context(self.display.keyboard.without_echo())
                if self.request.grammar:
                    stack.enter_context(name_grammar_in_errors(options.schema, options.grammar))
                yield
        except Interrupted:
            self._report_partial("interrupted")
            raise
        except OutputError as error:
            if self.saved_as:
                error.hint += f"; read the reply with cerebrum sessions show {quote(self.saved_as)}"
            raise

    def _report_partial(self, reason: str) -> None:
        """Print on a terminal how to continue an answer that was saved before its end."""
        if self.saved_as and self.streams.err_is_terminal:
            part = "leading answer is saved" if self.options.votes else f"answer so far is saved{self._continuation}"
            self.streams.note(f"{reason}; the {part}")

    def show_reply(self) -> None:
        """Generate and print a reply. Raises NoAnswer if it is not what the options ask for."""
        reply = self.loaded.respond(self.request)
        try:
            self.display.show_reply(
                reply.events(),
                self.loaded,
                shows_reasoning=self.request.settings.show_thinking,
                markdown=self._is_markdown,
                prints_answer=self.options.streams_answer,
            )
        except BrokenPipeError:  # its reader wants no more
            if not reply.is_finished:
                self._save(reply)
                self._report_partial("the pipe was closed")
            raise
        except CerebrumError as error:
            if not reply.is_finished and reply.has_text:  # of a server that was lost
                self._save(reply)
                if self.saved_as and not isinstance(error, (Interrupted, OutputError)):
                    error.hint = f"the answer so far is saved{self._continuation or f'; {error.hint}'}"
            raise
        finally:
            if reply.is_finished:
                self._save(reply)
                self._print_rest(reply, self._final_answer(reply))
                self._save_prompt_cache([reply])
        if reply.is_finished:
            self._require_complete(reply)
            self._require_part(reply)

    @property
    def _is_markdown(self) -> bool:
        is_plain = self.options.no_markdown or self.options.raw or self.request.grammar
        return self.request.settings.markdown and not is_plain

    def _final_answer(self, reply: Reply) -> str | None:
        """The final answer, if it is to be printed: importing what finds it takes 0.1 s."""
        grammar = self.request.grammar
        is_printed = self.options.final or self.options.json
        if not is_printed or (grammar and grammar.is_schema):
            return None
        return reply.final_answer

    def _code(self, reply: Reply) -> str | None:
        """The code block that `--extract` names; None without it, and if there is none."""
        options = self.options
        if not options.extract_flag:
            return None
        return find_code(reply.text, None if options.block == LAST else options.block, options.block == LAST)

    def _require_part(self, reply: Reply) -> None:
        """Raise NoAnswer for a reply without the part that `--extract` or `--final` would print."""
        options = self.options
        if options.extract_flag and self._code(reply) is None:
            language = f"{options.block} " if options.block not in (None, LAST) else ""
            hint = "ask for a code block in the prompt"
            raise NoAnswer(f"the reply has no {language}code block", self._hint_to_read(reply, hint))
        if options.final and self._final_answer(reply) is None:
            raise NoAnswer("no final answer in the reply", self._hint_to_read(reply, ASK_FOR_ANSWER))

    @property
    def _continuation(self) -> str:
        if self.loaded.model.is_served:
            return ""
        servers = "".join(f" --endpoint {quote(server)}" for server in self.options.endpoint)
        return f"; resume it with /continue in cerebrum chat -c{servers}"

    def show_vote(self, votes: Votes) -> None:
        """Run a vote, then print and save the sample that won; after an interrupt, the one that leads."""
        from cerebrum_cli.replies.majority_vote import MajorityVote

        vote = MajorityVote(votes)
        try:
            events = self.loaded.vote_events(self.request, vote)
            self.display.show_vote(events, self.loaded, vote.bounds)
        finally:
            if reply := vote.reply:
                self._save(reply)
                self._print_vote(vote, reply)
                self._save_prompt_cache(vote.finished_samples)
        if reply:
            self._require_complete(reply)
            self._require_winner(vote, reply)

    def _print_vote(self, vote: MajorityVote, reply: Reply) -> None:
        options, streams = self.options, self.streams
        if options.streams_answer:
            text = reply.text if self.request.grammar else vote.text
            show_answer(streams, text, self._is_markdown)
        is_shown = options.json or not vote.tally.tied
        self._print_rest(reply, vote.final_answer if is_shown else None, vote.object)
        if options.stats or (streams.err_is_terminal and not streams.is_quiet):
            result = vote.tally.result
            if unsupported := vote.unsupported_programs:
                result += f"; {format_count(unsupported, 'program')} not supported by Monty"
            streams.draw(f"{result}\n")

    def _save(self, reply: Reply) -> None:
        """Save the exchange; a failure is a notice, since the answer stands."""
        if self.open_history is None:
            return
        request, name = self.request, self.options.session
        for_script = not self.streams.out_is_terminal
        try:
            saved = self.open_history().record(
                self.session, request.conversation, reply, self.loaded, request.settings, name, for_script
            )
        except SessionError as error:
            self.streams.note(NoticeEvent(f"this exchange was not saved: {error.message}", error.hint))
            return
        self.saved_as = saved.name
        if name and saved.name != name:
            self.streams.note(NoticeEvent(f"session {name!r} exists by now; this exchange is saved as {saved.name!r}"))

    def _save_prompt_cache(self, replies: Sequence[Reply]) -> None:
        """Save the prompt, and the prefix that all such prompts share, if they took long to evaluate."""
        if self.open_history is None:
            return
        notice = self.loaded.save_prompt_of(replies, self.request.conversation)
        if notice:
            self.streams.note(notice)

    def _require_winner(self, vote: MajorityVote, reply: Reply) -> None:
        """Print a notice about a winner without a majority. Raises NoAnswer without one, and for a tie with --final."""
        notice = vote.notice
        if vote.tally.winner is None:
            problem = f"no final answer in {format_count(vote.tally.samples, 'sample')}"
            raise NoAnswer(problem, self._hint_to_read(reply, ASK_FOR_ANSWER))
        if notice and self.options.final:
            raise NoAnswer(notice.message, notice.hint)
        self.streams.note(notice or vote.doubt)

    def _require_complete(self, reply: Reply) -> None:
        """Print a notice about an incomplete reply. Raises NoAnswer if its grammar makes it useless."""
        grammar = self.request.grammar
        if grammar and (mismatch := reply.notice(grammar)):
            constraint = "schema" if grammar.is_schema else "grammar"
            raise NoAnswer(f"{mismatch.message}, so it does not match the {constraint}", mismatch.hint)
        if reply.mismatch:  # of the sample that a vote shows; a single reply has raised it
            raise reply.mismatch
        notice = reply.notice()
        if notice and reply.finish.reason == "length" and self.saved_as and not self.options.votes:
            notice = notice._replace(hint=notice.hint + self._continuation)
        self.display.note_end(reply, notice)

    def _hint_to_read(self, reply: Reply, hint: str) -> str:
        """A hint, and how to read a reply that lacks what was asked for; it is printed if it was not, and not saved."""
        if self.options.streams_answer or self.options.json:
            return hint
        if self.saved_as is None:
            self.streams.draw(f"{reply.text}\n")
            return hint
        return f"{hint}; read the reply: cerebrum sessions show {quote(self.saved_as)}"

    def _print_rest(self, reply: Reply, final_answer: str | None, votes: JsonObject | None = None) -> None:
        """Print what is not streamed: the JSON object, final answer or code block, and statistics."""
        streams, loaded, options = self.streams, self.loaded, self.options
        model = loaded.served_name or loaded.model.name
        code = self._code(reply)
        if options.json:
            finish = reply.finish
            value = {
                "model": model,
                "file": None if loaded.is_remote else str(loaded.model.path),
                "format": loaded.format_name,
                **reply.as_object(final_answer),
                "extracted": code,
                "reasoning_closed_at": reply.reasoning_closed_at,
                "cached_tokens": finish.cached_tokens if finish.context_size else None,
                "votes": votes,
                "timings": reply.timings_object,
                "session": self.saved_as,
            }
            streams.answer(value)
        elif (part := final_answer if options.final else code) is not None:
            streams.answer(part + "\n")
        if options.stats:
            settings = self.request.settings
            sampling = sampling_text(settings.samplers, settings.origins)
            line = stats_line(reply.finish, model, loaded.format_name, loaded.engine.repacks, sampling)
            streams.draw(f"{streams.on_stderr.wrapped(line)}\n")
