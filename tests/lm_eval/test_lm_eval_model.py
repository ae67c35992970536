"""The model for lm-evaluation-harness: exact tokens, scores against a plain loop, generation, and its cache."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from installations import source_of

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of lm-eval's libraries

from llama_engines import in_f32  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402

from benchmarks.quantized import F32, quantize  # noqa: E402
from cerebrum_cli.core.conversation import Conversation  # noqa: E402
from cerebrum_cli.core.errors import PromptTooLong, UsageError  # noqa: E402
from cerebrum_cli.core.events import FinishEvent, SequenceId, Timings  # noqa: E402
from cerebrum_cli.core.settings import fold  # noqa: E402
from cerebrum_cli.engine.llama.load import open_llama  # noqa: E402
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions  # noqa: E402
from cerebrum_cli.engine.step import StopFlag, TokenRow  # noqa: E402
from cerebrum_cli.formats.markup import REASONING_MARKUPS  # noqa: E402
from cerebrum_cli.formats.reply_text import ReplyRules, ReplyText  # noqa: E402
from cerebrum_cli.library.installed import InstalledModel  # noqa: E402
from cerebrum_cli.lm_eval.generation import answer_of  # noqa: E402
from cerebrum_cli.lm_eval.lm_eval_command import open_model  # noqa: E402
from cerebrum_cli.lm_eval.model import CerebrumLM, Use  # noqa: E402
from cerebrum_cli.replies.interface import Model  # noqa: E402
from cerebrum_cli.replies.majority_vote import Continuation  # noqa: E402
from cerebrum_cli.replies.reply import Reply  # noqa: E402
from scripts.nano.questions import held_out  # noqa: E402

CONTEXT = 512
STORY = "Once upon a time there lived a fox who could count to a hundred and no further."
TOLERANCE = 1e-3
CHATML_PROMPT = "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
OneResult = tuple[float, bool]


class Harness(CerebrumLM):
    """A model for lm-eval that records what it was opened for."""

    def __init__(
        self, path: Path, format: str | None, ctx: int, add_bos_token: bool | None = None, **given: Any
    ) -> None:
        recommended = {"temperature": 1.0, "presence_penalty": 1.5}  # which no task is evaluated with
        settings = fold(recommended, {"ctx": ctx, "threads": 1, "format": format}, given)
        context = ContextOptions(slots=8, batch_invariant=True)
        source = source_of(path, settings, context=context, raw=format is None)
        self.opened: list[Use] = []

        def opener(use: Use) -> Model:
            self.opened.append(use)
            return open_model(source, use)

        super().__init__(opener, add_bos_token)


@contextmanager
def harness(path: Path, format: str | None = None, ctx: int = CONTEXT, **given: Any) -> Iterator[Harness]:
    with closing(Harness(path, format, ctx, **given)) as model:
        yield model


def precise(name: str) -> Any:
    """A fixture with a model of the suite, all of whose weights are in F32."""

    @pytest.fixture(scope="module", name=f"precise_{name}")
    def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("precise") / f"{name}.gguf"
        quantize(request.getfixturevalue(f"{name}_model"), path, F32)
        return path

    return model


precise_chatml = precise("chatml")  # byte-level
precise_mistral = precise("mistral")  # its vocabulary adds BOS


def requests_for(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, 0) for each in arguments]


def score(model: Any, pairs: Sequence[tuple[str, str]]) -> list[OneResult]:
    results: list[OneResult] = model.loglikelihood(requests_for("loglikelihood", pairs))
    return results


def generate(model: Any, prompts: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    texts: list[str] = model.generate_until(requests_for("generate_until", prompts))
    return texts


def planned(model: Harness, prompts: Sequence[tuple[str, dict[str, Any]]]) -> list[Continuation]:
    requests = (row.request for row in model._plan_prompts(requests_for("generate_until", prompts)))
    return [request for request in requests if isinstance(request, Continuation)]


def plain_scores(path: Path, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[OneResult]:
    """Log-likelihoods of tokens after a context by a model in F32, each text from its start, one token at a time."""
    results = []
    sizes = InstalledModel("tiny", (path,)).sizes
    options = in_f32(LoadOptions(path, 2048, sizes, ContextOptions(CONTEXT, n_threads=1)))
    with closing(open_llama(options, lambda event: None, StopFlag())) as backend:
        backend.reserve(CONTEXT)
        for context, continuation in pairs:
            backend.context.clear(0)
            total, is_greedy = 0.0, True
            text = [*context, *continuation]
            for position, token in enumerate(text[:-1]):
                backend.decode([TokenRow(0, position, token, True)])
                if position + 1 >= len(context):
                    logits = backend.logits(0).astype(np.float64)
                    following = text[position + 1]
                    total += float(logits[following] - np.logaddexp.reduce(logits))
                    is_greedy &= int(logits.argmax()) == following
            results.append((total, is_greedy))
    return results


def strip_reasoning(reply: str, stop: Sequence[str]) -> str:
    """The rule of lm-eval's `hf` model: what follows the last end of reasoning, up to the first stop string."""
    answer = reply.split("</think>")[-1].lstrip()
    return answer[: min([at for each in stop if (at := answer.find(each)) >= 0], default=len(answer))]


def assert_close(results: Sequence[OneResult], expected: Sequence[OneResult]) -> None:
    assert [greedy for _, greedy in results] == [greedy for _, greedy in expected]
    assert [value for value, _ in results] == pytest.approx([value for value, _ in expected], abs=TOLERANCE)


def test_lm_scores_match_a_plain_loop(precise_chatml: Path, precise_mistral: Path) -> None:
    questions = [f"{STORY[: 20 + 7 * number]}\nQuestion {number}:" for number in range(4)]
    pairs = [(question, f" {answer}") for question in questions for answer in ("fox", "a hundred", "time", "no")]
    pairs.append(("a th", "e"))  # " the" is one token
    for path in (precise_chatml, precise_mistral):
        with harness(path) as model:
            encoded = [model._encode_pair(*pair) for pair in pairs]
            results = score(model, pairs)
            assert score(model, [("The sky is ", "blue")]) == score(model, [("The sky is", " blue")])
            after_nothing = score(model, [("", " fox"), (" ", "fox")])
            fox = [model.prefix_token_id], model.tok_encode(" fox", add_special_tokens=False)
        assert_close([*results, *after_nothing], plain_scores(path, [*encoded, fox, fox]))
        assert len({round(value, 3) for value, _ in results}) == len(pairs)


def test_lm_never_doubles_bos(precise_mistral: Path, precise_chatml: Path) -> None:
    with harness(precise_mistral, "cerebrum") as model:
        bos = model.prefix_token_id
        hello = model.tok_encode("Hello")
        assert hello[0] == bos and hello.count(bos) == 1
        assert model.tok_encode("<s>Hello").count(bos) == 1
        assert model.tok_encode("Hello", add_special_tokens=False) == hello[1:]
        assert model.tok_encode("<s>", add_special_tokens=False) == [bos]
        prompt = model.apply_chat_template([{"role": "user", "content": "One?"}])
        assert model.tok_encode(prompt).count(bos) == model.tok_encode(f"<s>{prompt}").count(bos) == 1
    with harness(precise_chatml) as model:  # this vocabulary does not require BOS
        assert model.prefix_token_id not in model.tok_encode("Hello")
        tokens = model.tok_encode(CHATML_PROMPT)  # special tokens are recognized in flat text
        control = model._model.engine.vocabulary.special_token_ids(["<|im_start|><|im_end|>"])
        assert (len(control), [token in control for token in tokens].count(True)) == (2, 3)


def test_lm_adds_bos_as_it_is_told(precise_mistral: Path, precise_chatml: Path) -> None:
    for path in (precise_mistral, precise_chatml):
        with harness(path, add_bos_token=False) as without, harness(path, add_bos_token=True) as added:
            bos = added.prefix_token_id
            assert added.tok_encode(STORY) == [bos, *without.tok_encode(STORY)]
            assert bos not in without.tok_encode(STORY)
            text = added._model.prompts.detokenize([bos])
            assert added.tok_encode(f"{text}fox") == without.tok_encode(f"{text}fox")  # it is not doubled
            assert added.tok_encode(f"{text}fox").count(bos) == 1
            pair = without._encode_pair(STORY, " fox")
            assert_close(score(without, [(STORY, " fox")]), plain_scores(path, [pair]))
            assert score(without, [(STORY, " fox")]) != score(added, [(STORY, " fox")])


def test_lm_truncates_long_contexts_on_the_left(precise_chatml: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = "x" * CONTEXT + STORY
    with harness(precise_chatml) as model:
        size = model.max_length
        context, continuation = model._encode_pair(long, " fox")
        kept = context[len(context) + len(continuation) - size - 1 :]
        results = score(model, [(long, " fox"), (STORY, " fox")])
        assert f"1 of 2 texts exceed {size} tokens and were truncated on the left" in caplog.text
        with pytest.raises(PromptTooLong, match="a text to score has"):
            score(model, [("a", "x" * (size + 1))])
    assert_close(results[:1], plain_scores(precise_chatml, [(kept, continuation)]))


def test_lm_rolling_covers_each_token_once(precise_chatml: Path, precise_mistral: Path) -> None:
    texts = [STORY, "", "x" * 100 + STORY * 3]
    for path in (precise_chatml, precise_mistral):
        with harness(path, ctx=256) as model:
            size = model.max_length
            totals = model.loglikelihood_rolling(requests_for("loglikelihood_rolling", [(text,) for text in texts]))
            pairs = []
            for text in texts:
                tokens = [model.prefix_token_id, *model.tok_encode(text, add_special_tokens=False)]
                for start in range(1, len(tokens), size):
                    end = min(start + size, len(tokens))
                    first = 0 if start == 1 else end - size - 1  # later windows have a full context
                    pairs.append((text, tokens[first:start], tokens[start:end]))
        scores = plain_scores(path, [pair[1:] for pair in pairs])
        values = [(text, value) for (text, *_), (value, _) in zip(pairs, scores, strict=True)]
        expected = [sum(value for owner, value in values if owner == text) for text in texts]
        assert totals == pytest.approx(expected, abs=TOLERANCE * 10)


def test_lm_prompts_in_the_models_format(precise_mistral: Path, precise_chatml: Path) -> None:
    turns = (("system", "Add."), ("user", "1+1?"), ("assistant", "2"), ("user", "One?"))
    history = [{"role": role, "content": content} for role, content in turns]
    with harness(precise_mistral, "cerebrum") as model:
        prompt = "Add.\nUser: 1+1?\nAI: 2\nUser: One?\nAI:"
        assert model.apply_chat_template(history) == f"{prompt} "
        begun = [*history, {"role": "assistant", "content": "The answer"}]
        assert model.apply_chat_template(begun, add_generation_prompt=False) == f"{prompt} The answer"
        assert "thinking artificial intelligence" in model.apply_chat_template(history[1:])
        assert model._encode_pair(f"{prompt} ", "blue") == model._encode_pair(prompt, " blue")
    with harness(precise_chatml, "embedded") as model:
        assert model.apply_chat_template(history[3:]) == CHATML_PROMPT
        assert "-embedded" in model.tokenizer_name
    with harness(precise_chatml) as model, pytest.raises(UsageError, match="no prompt format"):
        model.apply_chat_template(history)


def test_lm_generates_without_the_space_after_the_prompt(precise_mistral: Path) -> None:
    settings = {"max_gen_toks": 5}
    with harness(precise_mistral, "cerebrum") as model:
        prompt = model.apply_chat_template([{"role": "user", "content": "One?"}])
        [text, raw] = generate(model, [(prompt, settings), (prompt[:-1], settings)])
        assert prompt.endswith("AI: ") and text == raw.removeprefix(" ")
        assert model._encode_prompt(prompt) == model._encode_prompt(prompt[:-1])
        loaded = model._model.prompts.tokenize(Conversation().user("One?"))
        assert model._encode_prompt(prompt) == loaded


def test_lm_obeys_max_gen_toks_and_until(precise_mistral: Path, caplog: pytest.LogCaptureFixture) -> None:
    with harness(precise_mistral) as model:

        def text(**settings: Any) -> str:
            [text] = generate(model, [(STORY, settings)])
            return text

        long = text()  # 256 tokens, lm-eval's default
        lengths = [len(text(**{name: 7})) for name in ("max_gen_toks", "max_tokens", "max_new_tokens")]
        assert lengths == [len(text(max_gen_toks=7))] * 3
        assert long.startswith(text(max_gen_toks=7)) and long == text(max_gen_toks=256) != text(max_gen_toks=255)
        stop = long[30:34]
        assert text(until=[stop, ""]) == text(until=stop) == long.split(stop)[0]
        assert text(until=None, max_gen_toks=256) == long
        with pytest.raises(UsageError, match=f"max_gen_toks is {CONTEXT}"):
            text(max_gen_toks=CONTEXT)
        with pytest.raises(UsageError, match="generation settings"):
            text(do_sample=True, temperature=0.5, top_k="many")
        text(max_gen_toks=1, num_beams=4)
        assert caplog.messages == ["ignored generation settings: num_beams"]


def test_lm_truncates_long_prompts_on_the_left(precise_chatml: Path, caplog: pytest.LogCaptureFixture) -> None:
    kwargs = {"max_gen_toks": 8}
    with harness(precise_chatml) as model:
        [request] = planned(model, [(STORY * 20, kwargs)])
        assert request.tokens == model._encode_prompt(STORY * 20)[8 - CONTEXT :]
        assert f"1 of 1 texts exceed {CONTEXT} tokens and were truncated on the left" in caplog.text
        generate(model, [(STORY * 20, kwargs)])
        generate(model, [(STORY, kwargs)])
        score(model, [(STORY, " fox")])
        score(model, [(STORY, " time")])
        assert model.opened == ["scoring", "generation", "scoring"]  # once for each use


def test_lm_samples_repeats_of_one_prompt_differently(precise_chatml: Path, tmp_path: Path) -> None:
    sampled = {"temperature": 1.0, "max_gen_toks": 8}  # also without `do_sample`
    greedy = {"do_sample": False, **sampled}
    with harness(precise_chatml) as model:
        prompts = [*[(STORY, sampled)] * 4, *[(STORY, greedy)] * 3, ("A fox", {"do_sample": True, **sampled})]
        texts = generate(model, prompts)
        assert len(set(texts[:4])) == 4 and len(set(texts[4:7])) == 1
        assert [(text.n, text.settings.seed) for text in planned(model, prompts)] == [(4, 0), (1, 4), (1, 7)]
        for _ in range(2):  # a run that resumes asks again, with the same seeds
            assert generate(CachingLM(model, str(tmp_path / "cache.db")), prompts[:4]) == texts[:4]


def test_lm_caches_results_as_they_finish(
    precise_chatml: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [(STORY[:length], " fox") for length in range(20, 80, 3)]
    kwargs: dict[str, Any] = {"max_gen_toks": 4}
    prompts = [(context, kwargs) for context, _ in pairs]
    sampled = [(context, {**kwargs, "do_sample": True, "temperature": 1.0}) for context, _ in pairs]
    texts = requests_for("loglikelihood_rolling", [(STORY * 2,), (STORY,)])
    with harness(precise_chatml) as model:
        expected = score(model, pairs), model.loglikelihood_rolling(texts), generate(model, prompts)

    with harness(precise_chatml) as model:
        cached = CachingLM(model, str(tmp_path / "cache.db"))
        add, count = model.cache_hook.add_partial, 0

        def fail_later(*arguments: Any) -> None:
            nonlocal count
            add(*arguments)
            count += 1
            if count % 5 == 0:
                raise KeyboardInterrupt

        model.cache_hook.add_partial = fail_later
        for work in (lambda: score(cached, pairs), lambda: generate(cached, prompts)):
            with pytest.raises(KeyboardInterrupt):
                work()
        generate(cached, sampled)  # none of these is saved while it is computed
        assert count == 10

    with harness(precise_chatml) as model:
        cached = CachingLM(model, str(tmp_path / "cache.db"))
        assert_close(score(cached, pairs), expected[0])  # packed with fewer others, whose number changes last bits
        assert cached.loglikelihood_rolling(texts) == expected[1]
        with caplog.at_level("INFO", "lm_eval"):
            assert generate(cached, prompts) == expected[2]
        assert "Requests remaining: 15" in caplog.text


SUMS = [turns[0] for turns, _ in held_out()[:50]]
ANALYSIS = "<|channel|>analysis<|message|>Two ends.<|end|>"
STOPS = (["makes"], [".", "\n"], ["\n\n", " is"], ["</think>", "The"], ["Question:"])


def chat(model: Harness, question: str) -> str:
    prompt: str = model.apply_chat_template([{"role": "user", "content": question}])
    return prompt


def test_lm_returns_what_follows_the_reasoning(thinker: Path) -> None:
    with harness(thinker, "embedded") as model:
        prompts = [chat(model, question) for question in SUMS]
        assert all(prompt.endswith("<think>\n") for prompt in prompts)
        stops = [STOPS[at % len(STOPS)] for at in range(len(SUMS))]
        kwargs = [{"until": stop, "max_gen_toks": 128} for stop in stops]
        texts = generate(model, list(zip(prompts, kwargs, strict=True)))
    with harness(thinker) as raw:
        replies = generate(raw, [(prompt, {"max_gen_toks": 128}) for prompt in prompts])
    expected = [strip_reasoning(reply, stop) for reply, stop in zip(replies, stops, strict=True)]
    assert all("</think>" in reply for reply in replies) and len(set(expected)) > 10
    assert sum(ours == theirs for ours, theirs in zip(texts, expected, strict=True)) == 50


def test_lm_generates_an_answer_within_its_tokens(thinker: Path, caplog: pytest.LogCaptureFixture) -> None:
    for think, tokens in (("2", 40), ("off", 9)):
        with harness(thinker, "embedded", think=think) as model:
            texts = generate(model, [(chat(model, question), {"max_gen_toks": tokens}) for question in SUMS[:4]])
        assert [text[:13] for text in texts] == ["The answer is"] * 4
    with harness(thinker, "embedded") as model:
        texts = generate(model, [(chat(model, question), {"max_gen_toks": 9}) for question in SUMS[:4]])
    assert texts == [""] * 4 and "4 of 4 replies ended while thinking" in caplog.text


def test_lm_refuses_arguments_that_it_does_not_have() -> None:
    with pytest.raises(UsageError, match="--model_args dtype: this model has only add_bos_token and seed"):
        CerebrumLM(lambda use: pytest.fail(use), dtype="float16", device="cpu")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f"{ANALYSIS}<|start|>assistant<|channel|>final<|message|> Yes. \n", "Yes. \n"),
        (f"{ANALYSIS}<|start|>assistant<|channel|>analysis<|message|>Hm.", None),
        ("<think>\n1</think>\n\nOne </think> two ", "two "),  # as `hf` does
        (" 42 ", "42 "),
    ],
)
def test_lm_returns_the_answer_in_a_reply(text: str, answer: str | None) -> None:
    markups = REASONING_MARKUPS
    reader = ReplyText(ReplyRules(markups))
    reply = Reply()
    reply.begin((), reader.feed_text(text) + reader.finish())
    reply.emit(FinishEvent(SequenceId(0), "stop", 1, 0, 1, 0, 9, Timings(), in_reasoning=reader.stage == "thinking"))
    assert answer_of(reply, markups) == answer
