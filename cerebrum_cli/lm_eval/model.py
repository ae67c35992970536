"""A model for lm-evaluation-harness on this engine: exact tokens, shared prefixes evaluated once, requests packed."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from cerebrum_cli.core.conversation import Conversation, Text, Tokens, conversation_from_messages
from cerebrum_cli.core.errors import PromptTooLong, UsageError
from cerebrum_cli.core.events import Event, NoticeEvent, RefusedEvent, raise_refusals
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.version import __version__
from cerebrum_cli.engine.capacity import build_version
from cerebrum_cli.engine.loglikelihood import LogprobScores, ScoreRequest
from cerebrum_cli.formats.prompt_format import RAW
from cerebrum_cli.lm_eval.generation import Prompt, answer_of, group_requests
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.majority_vote import Continuation, Outcome, Row
from cerebrum_cli.replies.reply import Reply

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Use = Literal["scoring", "generation"]
TokenList = list[int]  # token ids as lm-eval has them
# The key of a result in lm-eval's cache, if any; the tokens of a context; the tokens to score after it.
EncodedPair = tuple[Any, TokenList, TokenList]

logger = logging.getLogger("lm_eval")  # which writes a line for each warning

REPLY_SPACE = " "
IGNORED = {"model", "batch_size", "max_batch_size", "device"}  # arguments of all models of lm-eval
EXAMPLE = "0"  # a message, to see what a format puts before a reply


class CerebrumLM(TemplateLM):  # type: ignore[misc]  # lm_eval is not a dependency
    """A model that `open_model` loads for scoring or for generation when it is first used so; `close` frees it.

    The other arguments are values of `--model_args`. `add_bos_token` is whether BOS precedes a text; None leaves it to
    the vocabulary. Sampled replies have seeds from `seed` on.
    """

    def __init__(
        self,
        open_model: Callable[[Use], Model],
        add_bos_token: bool | None = None,
        seed: int = 0,
        **others: Any,
    ) -> None:
        super().__init__()
        if unknown := others.keys() - IGNORED:
            problem = f"--model_args {min(unknown)}: this model has only add_bos_token and seed"
            raise UsageError(problem, "settings are options of cerebrum lm-eval: --ctx N, --think off, ...")
        self._open_model = open_model
        self._add_bos_token = add_bos_token
        self._seed = seed
        self._loaded: Model | None = None
        self._use: Use = "scoring"
        self._chat: Conversation | None = None  # the last one that was rendered

    def close(self) -> None:
        if self._loaded:
            self._loaded.close()
        if self.cache_hook.dbdict is not None:
            self.cache_hook.dbdict.close()

    # What lm-eval asks about a model.

    @property
    def max_length(self) -> int:
        return self._model.engine.context_size

    @property
    def prefix_token_id(self) -> int:
        tokens = self._model.prompts.prefix_tokens
        if not tokens:
            raise UsageError("the model's vocabulary has neither BOS nor EOS", "lm-eval needs one; use another model")
        return tokens[0]

    @property
    def eot_token_id(self) -> int:
        return self.prefix_token_id  # required by lm-eval, which reads it only from models with its own tokenizers

    @property
    def tokenizer_name(self) -> str:
        return f"{self._model.model.path.stem}-{self._format_name}"

    @property
    def _format_name(self) -> str:
        return self._model.format_name if self._chat else RAW

    def get_model_info(self) -> JsonDict:
        return {
            "model_name": self._model.model.name,
            "model_file": self._model.model.path.name,
            "prompt_format": self._format_name,
            "max_length": self.max_length,
            "add_bos_token": self._add_bos_token,
            "model_sha256": self._model.source.installation.library.identity(self._model.model, is_hashed=True),
            "cerebrum": __version__,
            "llama.cpp": build_version(),
            **self._model.engine.conditions,
        }

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> TokenList:
        """Tokenize flat text, in which special tokens are recognized.

        BOS precedes it as the model's `add_bos_token` has it, unless the text starts with it, and never with
        `add_special_tokens=False`.
        """
        if add_special_tokens is not False and self._add_bos_token is None:
            return list(self._model.engine.vocabulary.tokenize([Text(string, trusted=True)]))
        bos = [self.prefix_token_id]
        tokens = self._encode_after(bos, string)
        if add_special_tokens is not False and self._add_bos_token and tokens[:1] != bos:
            return bos + tokens
        return tokens

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation, with the space that its format puts before a reply.

        Without `add_generation_prompt` the last message is the beginning of the answer, and there is no reasoning.
        """
        if self._model.format_name == RAW:
            raise UsageError("the model has no prompt format", "choose one with --format, or omit the chat template")
        conversation = conversation_from_messages(chat_history, "a prompt of lm-eval", is_request=False)
        self._chat = conversation = self._model.source.settings.applied_to(conversation)
        beginning = ""
        if not add_generation_prompt:
            *earlier, last = conversation.messages
            conversation = replace(conversation, messages=tuple(earlier), thinks=False)
            beginning = last.content
        return self._model.prompts.text(conversation) + self._reply_space + beginning

    # Requests.

    def loglikelihood_rolling(self, requests: Sequence[Instance], **_: Any) -> list[float]:
        self._prepare("scoring")
        pairs: list[EncodedPair] = []
        owners = []  # the request of each pair
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                pairs.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self._loglikelihood_tokens(pairs), strict=True):
            totals[owner] += score[0]
        return totals

    def generate_until(self, requests: Sequence[Instance], **_: Any) -> list[str]:
        """Continue texts up to a stop string, the end of the reply or `max_gen_toks`, and drop the reasoning.

        Adjacent equal requests are samples of one prompt, which is evaluated once. A reply that ends in its reasoning
        is an empty text.
        """
        self._prepare("generation")
        rows = self._plan_prompts(requests)
        texts = [""] * len(requests)
        answered = unfinished = 0
        with tqdm(total=len(requests), desc="Generating") as progress:
            for event in self._model.run_rows(rows):
                if not isinstance(event, Outcome):
                    warn_of(event)
                    continue
                prompt: Prompt = event.row.key
                answer = self._answer_of(event, prompt.settings)
                answered += 1
                unfinished += answer is None
                text = answer or ""
                if self._ends_in_reply_space(prompt.text):
                    text = text.removeprefix(REPLY_SPACE)
                for position in prompt.answered[event.sample]:
                    texts[position] = text
                    progress.update()
                if prompt.settings.temperature == 0:  # equal requests would get the same text from the cache
                    self.cache_hook.add_partial("generate_until", prompt.key, text)
        if unfinished:
            message = "%d of %d replies ended while thinking: raise max_gen_toks, or limit --think"
            logger.warning(message, unfinished, answered)
        return texts

    def _answer_of(self, event: Outcome, settings: Settings) -> str | None:
        if isinstance(event.result, RefusedEvent):
            raise event.result.error
        assert isinstance(event.result, Reply)
        return answer_of(event.result, self._model.prompts.format.own_markups(settings.system))

    def _plan_prompts(self, requests: Sequence[Instance]) -> list[Row]:
        """The texts to continue; tokens on the left give way to the reply."""
        rows = []
        ignored: set[str] = set()
        truncated = 0
        for prompt in group_requests(requests, self._seed, self._base_settings()):
            ignored |= prompt.ignored
            room = self.max_length - prompt.max_tokens
            if room <= 0:
                problem = f"max_gen_toks is {prompt.max_tokens}, but the context has {self.max_length} tokens"
                raise UsageError(problem, "raise --ctx, or set --gen_kwargs max_gen_toks=N")
            tokens = self._encode_prompt(prompt.text)
            truncated += len(tokens) > room
            request = Continuation(prompt.text, tokens[-room:], prompt.settings, len(prompt.answered))
            rows.append(Row(prompt, request))
        if ignored:
            logger.warning("ignored generation settings: %s", ", ".join(sorted(ignored)))
        self._warn_of_truncation(truncated, len(rows))
        return rows

    def _base_settings(self) -> Settings:
        """Settings that tasks leave to the model and its format."""
        own = self._model.source.settings
        base = Settings(think=own.think, origins=own.origins)
        if self._chat:
            base = replace(base, stop=self._model.prompts.format.stop, system=self._chat.system_prompt)
        return base

    def _encode_prompt(self, context: str) -> TokenIds:
        """Tokens of a text to continue, without the space that a reply starts with: it is part of its first token."""
        if self._ends_in_reply_space(context):
            context = context.removesuffix(REPLY_SPACE)
        return tuple(self.tok_encode(context)) or (self.prefix_token_id,)

    def _ends_in_reply_space(self, context: str) -> bool:
        return self._chat is not None and bool(self._reply_space) and context.endswith(self._reply_space)

    def _encode_pair(self, context: str, continuation: str) -> tuple[TokenList, TokenList]:
        """Tokenize a continuation with its context, as lm-eval does: spaces between them belong to the continuation.

        A context without tokens is the prefix token. A continuation whose tokens all merge into those of the context is
        tokenized by itself.
        """
        context_enc, continuation_enc = super()._encode_pair(context, continuation)
        context_enc = context_enc or [self.prefix_token_id]
        return context_enc, continuation_enc or self._encode_after(context_enc, continuation)

    def _encode_after(self, context: TokenList, text: str) -> TokenList:
        parts = (Tokens(tuple(context)), Text(text, trusted=True))
        return list(self._model.engine.vocabulary.tokenize(parts)[len(context) :])

    def _loglikelihood_tokens(self, requests: Sequence[EncodedPair], **_: Any) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations after their contexts, and whether greedy decoding would yield them.

        All are scored at once, each context is evaluated once, and each result is saved in lm-eval's cache.
        """
        self._prepare("scoring")
        results = [(0.0, True)] * len(requests)
        by_context = self._by_context(requests)
        groups = list(by_context.values())
        scored = []
        for context, group in by_context.items():
            continuations = tuple(tuple(requests[index][2]) for index in group)
            scored.append(ScoreRequest(context, continuations))
        progress = tqdm(total=len(requests), desc="Scoring")
        with progress, closing(self._model.engine.score(scored)) as events:
            for event in raise_refusals(events):
                if not isinstance(event, LogprobScores):
                    continue
                progress.update(len(event.scores))
                for index, score in zip(groups[event.request], event.scores, strict=True):
                    key = requests[index][0]
                    results[index] = score.logprob_sum, score.is_greedy
                    if key is not None:
                        self.cache_hook.add_partial("loglikelihood", key, results[index])
        return results

    def _by_context(self, requests: Sequence[EncodedPair]) -> dict[TokenIds, list[int]]:
        """Indices of the pairs by their contexts, which are truncated on the left to fit."""
        groups = defaultdict[TokenIds, list[int]](list)
        truncated = 0
        for index, (_, context, continuation) in enumerate(requests):
            room = self.max_length + 1 - len(continuation)  # the last token is not evaluated
            if room < 1:
                problem = f"a text to score has {len(continuation)} tokens, but the context has {self.max_length}"
                raise PromptTooLong(problem, "raise --ctx")
            groups[tuple(context[-room:])].append(index)
            truncated += len(context) > room
        self._warn_of_truncation(truncated, len(requests))
        return groups

    def _warn_of_truncation(self, truncated: int, total: int) -> None:
        if truncated:
            problem = f"{truncated} of {total} texts exceed {self.max_length} tokens and were truncated on the left"
            logger.warning("%s: raise --ctx, or use fewer examples", problem)

    @cached_property
    def _reply_space(self) -> str:
        """The space between a prompt and a reply in the model's format; empty if there is none, or something else."""
        question = Conversation().user(EXAMPLE)
        prompt = self._model.prompts.text(question)
        following = self._model.prompts.text(question.assistant(EXAMPLE).user(EXAMPLE)).removeprefix(prompt)
        if following.startswith(REPLY_SPACE + EXAMPLE):
            return REPLY_SPACE
        return ""

    @property
    def _model(self) -> Model:
        if self._loaded is None:
            self._loaded = self._open_model(self._use)
            for event in self._loaded.load():
                warn_of(event)
        return self._loaded

    def _prepare(self, use: Use) -> None:
        if use != self._use and self._loaded:
            self._loaded.close()
            self._loaded = None
        self._use = use


def warn_of(event: Event) -> None:
    if isinstance(event, NoticeEvent):
        logger.warning("%s: %s", event.message, event.hint)
