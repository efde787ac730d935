"""Our decoding loop against transformers' own: the same tokens, whatever the model, the settings
and the remedy; states of the first token; memory that is too small."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from conftest import Style
from factories import lora, tiny_model
from test_remedied import change_of, mixed_gate

from overrefusal_po.engines._batches import Limit, in_parts, response_tokens
from overrefusal_po.engines._first_states import FirstStates
from overrefusal_po.engines._first_token import opener_scores
from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.model.contrast import Contrast, Opening
from overrefusal_po.model.decoding import Decoding, NotServed, own_loop_serves
from overrefusal_po.model.decoding_rows import BLOCK, Rows, most_likely
from overrefusal_po.model.generation import generating_by, generation_config
from overrefusal_po.model.prompt_cache import PromptCache
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import FirstLogits, Remedy
from overrefusal_po.records import Prompt, Sampling

ENDS = [2, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41]
"""Many tokens end a text here, so rows end at different steps."""

NEW = 20


def prompts(shared: int = 60, rows: int = 6) -> dict[str, torch.Tensor]:
    """Prompts that begin alike and have different lengths, padded on the left."""
    torch.manual_seed(1)
    beginning = torch.randint(45, 97, (shared,))
    width = shared + 3 + 2 * rows
    ids, mask = (torch.zeros(rows, width, dtype=torch.long) for _ in range(2))
    for row in range(rows):
        own = torch.randint(45, 97, (3 + 2 * row,))
        ids[row, width - shared - len(own) :] = torch.cat([beginning, own])
        mask[row, width - shared - len(own) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def tokens(model: Any, loop: Decoding | None, seed: int = 5, **settings: Any) -> list[list[int]]:
    """The responses by a loop; None is transformers' own."""
    options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": ENDS}
    config = generation_config({**options, **settings})
    given = prompts()
    if loop is not None:
        assert own_loop_serves(model, config)
    torch.manual_seed(seed)
    with torch.inference_mode(), generating_by(model, config):
        found = model.generate(**given, generation_config=config, custom_generate=loop)
    rows: list[list[int]] = found[:, given["input_ids"].shape[1] :].tolist()
    return rows


MODELS: dict[str, Any] = {
    "Llama": lambda: tiny_model("Llama"),
    "Llama, tied": lambda: tiny_model("Llama", tie_word_embeddings=True),
    "Llama, bfloat16": lambda: tiny_model("Llama").bfloat16(),
    "Qwen2": lambda: tiny_model("Qwen2").float(),
    "Mistral, short window": lambda: tiny_model("Mistral", sliding_window=6),
    "Mistral, long window": lambda: tiny_model("Mistral", sliding_window=500),
    "Gemma2": lambda: tiny_model("Gemma2", sliding_window=8, head_dim=8).float(),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "suppressed": {"suppress_tokens": [50, 51], "begin_suppress_tokens": list(range(60, 80))},
    "at least": {"min_new_tokens": 6},
    "one end": {"eos_token_id": 13},
    "no end": {"eos_token_id": None},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_tokens_are_those_of_transformers_own_loop(kind: str, settings: str) -> None:
    model, given = MODELS[kind](), SETTINGS[settings]
    assert tokens(model, Decoding(), **given) == tokens(model, None, **given)


def test_rows_leave_at_different_steps_in_these_tests() -> None:
    lengths = [sum(token != 0 for token in row) for row in tokens(tiny_model("Llama"), None)]
    assert len(set(lengths)) > 3 and min(lengths) < NEW / 2


def test_an_adapter_is_served_and_a_learned_prompt_is_not() -> None:
    from peft import PromptTuningConfig, get_peft_model

    adapted = get_peft_model(tiny_model("Llama").float(), lora()).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    assert tokens(adapted, Decoding()) == tokens(adapted, None)
    learned = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prompted = get_peft_model(tiny_model("Llama").float(), learned)
    assert not own_loop_serves(prompted, generation_config({"do_sample": False}))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"guidance_scale": 1.5},
        {"return_dict_in_generate": True},
        {"prompt_lookup_num_tokens": 3},
    ],
)
def test_other_ways_of_decoding_are_left_to_transformers(settings: dict[str, Any]) -> None:
    assert not own_loop_serves(tiny_model("Llama"), generation_config(settings))


def test_models_with_other_states_or_with_experts_are_left_to_transformers() -> None:
    config = transformers.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1)
    for model in (transformers.MambaForCausalLM(config), tiny_model("Mixtral")):
        assert not own_loop_serves(model, generation_config({"do_sample": False}))


def test_an_input_that_the_loop_does_not_know_is_left_to_transformers() -> None:
    with pytest.raises(NotServed, match="token_type_ids"):
        Decoding()(
            tiny_model("Llama"),
            torch.ones(1, 3, dtype=torch.long),
            [],
            [],
            generation_config({}),
            token_type_ids=torch.zeros(1, 3),
        )


# --- further samples of a batch


DRAWN = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0}


@pytest.mark.parametrize("kind", MODELS)
def test_further_samples_go_on_from_the_prompts_that_were_read(kind: str) -> None:
    """Four draws of one batch, and after the second one another batch in between."""
    model, read = MODELS[kind](), PromptCache()
    seeds = (5, 6, 7, 8)
    expected = [tokens(model, Decoding(), seed=seed, **DRAWN) for seed in seeds]
    found = []
    for seed, read.more in zip(seeds, (True, True, True, False), strict=True):
        loop = Decoding(prompts_read=read)
        with prompt_tokens(model) as seen:
            found.append(tokens(model, loop, seed=seed, **DRAWN))
        roomy = "window" not in kind and kind != "Gemma2"
        assert bool(seen) is not (roomy and seed > 5), "what was read is not read again"
    assert found == expected and len({str(one) for one in found}) == 4
    assert read.kept is None


def test_another_batch_or_another_mask_is_read_by_itself() -> None:
    model, read = tiny_model("Llama"), PromptCache()
    read.more = True
    config = generation_config({"do_sample": False, "max_new_tokens": 3, "pad_token_id": 0})
    first = prompts()
    other = {**first, "input_ids": first["input_ids"].roll(1, 0)}
    masked = {**first, "attention_mask": first["attention_mask"].clone()}
    masked["attention_mask"][:, -3] = 0
    fewer = {key: value[:2] for key, value in first.items()}
    with torch.inference_mode(), generating_by(model, config):
        for given in (first, other, first, masked, fewer, first, first):
            own = model.generate(**given, generation_config=config, custom_generate=Decoding())
            loop = Decoding(prompts_read=read)
            found = model.generate(**given, generation_config=config, custom_generate=loop)
            assert torch.equal(found, own)


@contextlib.contextmanager
def prompt_tokens(model: Any) -> Iterator[list[int]]:
    """How many tokens each pass reads, of those that read more than one a row."""
    found: list[int] = []

    def note(_: Any, args: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].shape[1] > 1:
            found.append(given["input_ids"].shape[1])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def test_an_engine_reads_prompts_once_for_all_samples_and_draws_the_same(
    styles: dict[str, Style],
) -> None:
    """Seven prompts in batches of three; and a run that has some of the samples already."""
    style = styles["llama"]
    asked = [Prompt.of("Why?" + " no" * n, kind="benign") for n in range(7)]
    sampling = Sampling(max_new_tokens=6, temperature=0.9, seed=3)
    model = style.make_model()
    engine = TransformersEngine(model, style.template, name="m", batch_size=3, device="cpu")
    alone = {}
    for n in range(4):
        others = {(p.id, k) for p in asked for k in range(4) if k != n}
        said = engine.complete(asked, sampling, samples=4, had=others)
        alone |= {(c.prompt_id, c.sample): c.text for c in said}
    with prompt_tokens(model) as seen:
        said = list(engine.complete(asked, sampling, samples=4))
    assert {(c.prompt_id, c.sample): c.text for c in said} == alone and len(said) == 28
    assert len(seen) == 3
    had = {(p.id, k) for p in asked[:5] for k in (0, 2)}
    with prompt_tokens(model) as seen:
        rest = list(engine.complete(asked, sampling, samples=4, had=had))
    assert {(c.prompt_id, c.sample): c.text for c in rest} == {
        key: text for key, text in alone.items() if key not in had
    }
    assert len(seen) == 3


# --- the shared beginning


def rows_of(model: Any, given: dict[str, torch.Tensor]) -> Rows:
    cache = transformers.DynamicCache(config=model.config)
    prepared = {"attention_mask": given["attention_mask"], "past_key_values": cache}
    return Rows(model, given["input_ids"], {**prepared, "logits_to_keep": 1}, pad=0)


@pytest.mark.parametrize(
    ("shared", "rows", "found"), [(60, 6, 60), (60, 1, 0), (10, 6, 0), (130, 3, 130)]
)
def test_a_beginning_is_shared_if_that_saves_enough(shared: int, rows: int, found: int) -> None:
    assert rows_of(tiny_model("Llama"), prompts(shared, rows)).shared_beginning() == found


def test_equal_prompts_keep_a_token_of_their_own() -> None:
    ids = torch.randint(3, 97, (1, 90)).expand(5, -1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert rows_of(tiny_model("Llama"), given).shared_beginning() == 89


def test_beside_an_empty_text_nothing_is_shared() -> None:
    given = prompts()
    given["attention_mask"][2] = 0
    assert rows_of(tiny_model("Llama"), given).shared_beginning() == 0


def test_under_a_sliding_window_every_row_reads_its_own_beginning() -> None:
    model = tiny_model("Mistral", sliding_window=6)
    assert rows_of(model, prompts()).shared_beginning() == 0


def test_the_logits_behind_a_shared_beginning_are_those_of_whole_prompts() -> None:
    model, given = tiny_model("Llama"), prompts()
    with torch.inference_mode():
        shared, whole = (rows_of(model, given).read(length) for length in (60, 0))
    torch.testing.assert_close(shared, whole, atol=1e-12, rtol=0)


# --- picking a token


@pytest.mark.parametrize("words", [97, BLOCK, 3 * BLOCK, 1000])
def test_the_most_likely_token_is_the_first_of_equal_ones(words: int) -> None:
    torch.manual_seed(0)
    scores = torch.randint(0, 20, (400, words)).bfloat16()
    scores[::7] = float("-inf")
    scores[::7, -1] = 0.0
    assert torch.equal(most_likely(scores), scores.argmax(-1))


# --- remedies


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("change", ["steering", "deltas", "logits", "two streams"])
@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_a_remedy_gives_the_same_tokens(kind: str, change: str, gated: bool) -> None:
    model, given = tiny_model(kind), prompts()
    gate = gate_of(model, given) if gated else None
    streams = Contrast("self", 0, (Opening((), (50, 51)),))  # contrasted at every position
    made = streams if change == "two streams" else change_of(change, model)
    with remedied(model, Remedy("r", made, 1.0, gate)) as found:
        plain = tokens(model, None)
        assert tokens(model, Decoding(remedy=found)) == plain
        assert found.on is None or len(found.on) < len(plain)  # some rows left


def test_no_second_stream_is_read_for_rows_that_a_gate_keeps_out_when_the_others_have_left() -> (
    None
):
    model, given = tiny_model("Llama"), prompts()
    change = Contrast("self", 0, (Opening((), (50, 51)),))
    with remedied(model, Remedy("r", change, 1.0, gate_of(model, given))) as found:
        model(**given, past_key_values=transformers.DynamicCache(), use_cache=True)
        assert found.on is not None and found.second is not None
        off = (found.on == 0).nonzero()[:, 0]
        assert 0 < len(off) < 6 and found.second.cache is not None
        found.keep_rows(off)
        assert found.second.cache is None


def gate_of(model: Any, given: dict[str, torch.Tensor]) -> Any:
    """A gate that lets some of the prompts through."""
    from test_remedied import Batch

    return mixed_gate(model, Batch(given["input_ids"], given["attention_mask"]))


# --- the engine


def asked() -> list[Prompt]:
    texts = ("How do I kill a Python process? " * 3, "Go", "How do I open a lock?")
    return [Prompt.of(text, kind="benign" if i else "harmful") for i, text in enumerate(texts)]


def engine_of(style: Style, batch: int, model: Any = None) -> TransformersEngine:
    model = style.make_model() if model is None else model
    return TransformersEngine(model, style.template, name="m", batch_size=batch, device="cpu")


def texts_of(engine: TransformersEngine, sampling: Sampling) -> dict[str, str]:
    return {row.prompt_id: row.text for row in engine.complete(asked(), sampling)}


def test_a_batch_of_three_is_three_batches_of_one(style: Style) -> None:
    sampling = Sampling(max_new_tokens=12)
    one = texts_of(engine_of(style, 1), sampling)
    assert texts_of(engine_of(style, 3), sampling) == one and len(set(one.values())) > 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_draws_what_transformers_draws(styles: dict[str, Style], seed: int) -> None:
    style = styles["llama"]
    found = [
        tokens(tiny_model("Llama"), loop, seed=seed, do_sample=True, temperature=1.5, top_k=0)
        for loop in (Decoding(), None)
    ]
    assert found[0] == found[1]
    sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=seed)
    assert texts_of(engine_of(style, 3), sampling) == texts_of(engine_of(style, 3), sampling)


def test_the_numbers_of_the_first_token_need_no_second_pass(style: Style) -> None:
    engine = engine_of(style, 2)
    wanted = dict_of(engine)
    engine.first_states = FirstStates(p.id for p in asked()[::2])
    assert len(texts_of(engine, Sampling(max_new_tokens=3))) == 3
    assert {p.id for p in asked() if p.id in engine.first_states} == engine.first_states.wanted
    with counted(engine.model) as passes:
        assert dict_of(engine) == pytest.approx(wanted, abs=1e-4)
    assert passes == [1]  # the shortest prompt alone was not kept


def dict_of(engine: TransformersEngine) -> dict[str, float]:
    return {prompt.id: value for prompt, value, _ in opener_scores(engine, asked(), [7, 40])}


@contextlib.contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The rows of each pass through a model."""
    found: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: found.append(len(given["input_ids"])), with_kwargs=True
    )
    try:
        yield found
    finally:
        hook.remove()


def kept_of(model: Any, remedy: Any = None) -> FirstStates:
    """What is kept of the six prompts."""
    states = FirstStates("abcdef")
    config = generation_config(
        {"do_sample": False, "max_new_tokens": 2, "pad_token_id": 0, "eos_token_id": None}
    )
    inputs: Any = prompts()
    keeper = states.keeper(list("abcdef"))
    response_tokens(model, inputs, config, name="m", first_seen=keeper)
    return states


def test_states_whose_logits_are_changed_behind_the_output_layer_are_not_kept() -> None:
    model = tiny_model("Gemma2", head_dim=8, final_logit_softcapping=0.01).float()
    assert not kept_of(model).rows
    model = tiny_model("Llama")
    change = FirstLogits(torch.arange(5, 50), torch.full((1, 45), 5.0).double())
    with remedied(model, Remedy("r", change, 1.0, gate_of(model, prompts()))) as found:
        states = kept_of(model, found)
        on = found.on
    assert on is not None and 0 < int(on.sum()) < 6
    assert sorted(states.rows) == [one for one, row in zip("abcdef", on, strict=True) if not row]


def test_a_change_that_is_no_greater_than_16_bits_round_is_seen() -> None:
    """The caps and constants of large models are small beside their logits."""
    model = tiny_model("Llama").bfloat16()
    with torch.no_grad():
        model.lm_head.weight.mul_(100)
    change = FirstLogits(torch.tensor([5]), torch.tensor([[0.5]]))
    assert len(kept_of(model).rows) == 6
    with remedied(model, Remedy("r", change, 1.0)):
        assert not kept_of(model).rows


def test_kept_states_give_the_logits_of_a_pass() -> None:
    model, given = tiny_model("Llama"), prompts()
    with torch.inference_mode():
        wanted = rows_of(model, given).read(0)
    found = kept_of(model).logits(model, list("abcdef"))
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


# --- memory


class Small(transformers.LlamaForCausalLM):
    """A model on a machine that holds two rows."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > self.config.most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(*args, **kwargs)


def small(style: Style, most_rows: int) -> Any:
    model = style.make_model()
    made = Small(model.config).eval()
    made.load_state_dict(model.state_dict())
    made.config.most_rows = most_rows
    return made


def test_a_batch_that_memory_does_not_hold_is_halved_and_the_log_says_so(
    styles: dict[str, Style], caplog: pytest.LogCaptureFixture
) -> None:
    style, sampling = styles["llama"], Sampling(max_new_tokens=6)
    wanted = texts_of(engine_of(style, 3), sampling)
    engine = engine_of(style, 3, small(style, 1))
    assert texts_of(engine, sampling) == wanted and engine.at_once.rows == 1
    (said,) = caplog.messages
    assert "does not hold 3 responses at a time; from now on 1 are decoded" in said


def test_one_response_that_memory_does_not_hold_ends_the_work(styles: dict[str, Style]) -> None:
    engine = engine_of(styles["llama"], 3, small(styles["llama"], 0))
    with pytest.raises(torch.OutOfMemoryError):
        list(engine.complete(asked(), Sampling(max_new_tokens=6)))


def test_a_fault_that_is_not_about_memory_is_none_of_a_smaller_batch() -> None:
    def broken(part: Any) -> list[int]:
        raise RuntimeError(f"shape of {len(part)}")

    with pytest.raises(RuntimeError, match="shape of 4"):
        list(in_parts(range(4), Limit(8), broken))


def test_parts_come_in_order() -> None:
    def most_three(part: Any) -> list[int]:
        if len(part) > 3:
            raise MemoryError
        return list(part)

    limit = Limit(16)
    assert list(in_parts(range(16), limit, most_three)) == list(range(16)) and limit.rows == 2
