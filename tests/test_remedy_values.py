"""The parts of the remedies, by values worked by hand, and what they refuse."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Style
from safetensors.torch import load_file, save_file
from tiny_subject import DEV, TRAIN, TinySubject, first_logits, lora, padded

from overrefusal_po.model.folding import fold
from overrefusal_po.model.opener_bias import OpenerBias, base_model, bias_site
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import Deltas, FirstLogits, Gate, Remedy
from overrefusal_po.plugins import find_plug
from overrefusal_po.records import Prompt
from overrefusal_po.remedies import (
    Anchors,
    Candidate,
    NoRemedy,
    _adapters,
    _gate,
    _robust,
    ablation,
    debias,
    gated,
    safelora,
    steering,
)
from overrefusal_po.remedies._directions import (
    answered,
    cosine,
    divergence,
    mean_step,
    over_refused,
    unit,
    without,
)

close = torch.testing.assert_close


def fitted(name: str, subject: Any, **settings: Any) -> list[Candidate]:
    """The candidates of a remedy on a tiny subject."""
    module, checked = find_plug("remedies", {"name": name, **settings})
    found: list[Candidate] = module.fit(checked, subject, TRAIN, DEV)
    return found


@pytest.fixture(scope="module")
def tiny(styles: dict[str, Style]) -> TinySubject:
    """A random model of the Llama kind, and another one as its reference."""
    style = styles["llama"]
    return TinySubject(style.make_model(), style.template, reference=style.make_model(1))


# --- directions ----------------------------------------------------------------------------------


def test_the_step_between_two_sets_and_its_unit() -> None:
    harmful, ordinary = torch.tensor([[1.0, 0], [3, 0]]), torch.tensor([[0.0, 2], [0, 4]])
    step = mean_step(harmful[:, None], ordinary[:, None])[0]
    assert step.tolist() == [2, -3]
    close(unit(step), torch.tensor([0.5547, -0.8321]), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="Give sets that differ"):
        unit(torch.zeros(2))


@pytest.mark.parametrize(
    ("share", "left"), [(1.0, [0.0, 1.0]), (0.5, [0.3511, 0.9363]), (0.0, [0.6, 0.8])]
)
def test_false_refusal_without_its_part_along_true_refusal(share: float, left: list[float]) -> None:
    r, w = torch.tensor([1.0, 0]), torch.tensor([3.0, 4])
    close(unit(without(w, r, share)), torch.tensor(left), atol=1e-4, rtol=0)
    assert cosine(r, w) == pytest.approx(0.6)


def test_divergence_of_a_half_from_a_quarter() -> None:
    before, after = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert divergence(before, after).item() == pytest.approx(0.1438, abs=1e-4)
    sure = torch.tensor([[1.0, 0.0]]).log()
    assert divergence(sure, before).item() == pytest.approx(math.log(2))


# --- the gate ------------------------------------------------------------------------------------


def found_gate(scores: list[float], refused: list[float] | None = None) -> _gate.FoundGate:
    """A gate whose dev scores are known."""
    one = torch.ones(1)
    gate = Gate(0, one, one, one, 0.0, 0.0)
    refused = scores if refused is None else refused
    return _gate.FoundGate(gate, 0.9, [0.9], {}, 0.01, torch.tensor(refused), torch.tensor(scores))


def test_the_threshold_is_the_quantile_that_keeps_a_share_of_the_harmful_prompts() -> None:
    found = found_gate([float(n) for n in range(1, 21)])
    assert found.at(0.85).threshold == pytest.approx(3.85)
    assert found.at(1.0).threshold == 1


def test_gates_let_through_what_the_tolerance_spares_and_more() -> None:
    """Of 20 harmful prompts 10 are refused (q = .5). With tolerance .05 a tenth of these is spare;
    laxer gates let two and four tenths through."""
    scores = [float(n) for n in range(1, 21)]
    found = found_gate(scores, scores[10:])
    thresholds = [gate.threshold for gate in found.gates(0.05, (1, 2, 4))]
    assert thresholds == pytest.approx([11 + 0.9, 11 + 1.8, 11 + 3.6])
    assert len(found.gates(0.0)) == 1, "no threshold comes twice"
    facts = found.facts(found.gates(0.05)[0])
    assert facts["gate_harmful_let_through"] == 0.5 and facts["gate_auc"] == 0.9
    assert facts["gate_auc_of"] == "harmful against benign"


def test_auc_counts_a_tie_as_half() -> None:
    scores, positive = torch.tensor([3.0, 1, 1, 0]), torch.tensor([True, True, False, False])
    assert _gate.auc(scores, positive) == (1 + 1 + 0.5 + 1) / 4


def test_the_probe_is_a_balanced_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5)) * [1, 2, 3, 4, 5] + 7
    positive = np.arange(60) < 12
    x[positive, 1] += 2
    gate = _gate.probe(
        torch.from_numpy(x).float(), torch.from_numpy(positive), layer=3, penalty=0.03
    )
    scaled = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=0.03, class_weight="balanced", tol=1e-8).fit(scaled, positive)
    wanted = torch.from_numpy(theirs.decision_function(scaled)).float()
    close(gate.scores(torch.from_numpy(x).float()), wanted, atol=1e-3, rtol=1e-3)
    assert gate.layer == 3 and gate.threshold == 0


def test_a_state_that_never_changes_says_nothing() -> None:
    states = torch.tensor([[1.0, 5], [2, 5], [3, 5], [4, 5]])
    gate = _gate.probe(states, torch.tensor([False, False, True, True]), layer=0, penalty=1.0)
    assert torch.isfinite(gate.scores(states)).all()
    close(gate.scores(states + torch.tensor([0, 1e-9])), gate.scores(states))


class Spoken(TinySubject):
    """States of one number in one layer: how long the last word of a prompt is. None refuses."""

    def states(self, prompts: Any, suffix: str = "") -> torch.Tensor:
        return torch.tensor([[[float(len(p.text.split()[-1]))]] for p in prompts])

    def outcomes(self, prompts: Any) -> Any:
        return [
            o
            for p in prompts
            for o in super(Spoken, self).outcomes([p.model_copy(update={"kind": "benign"})])
        ]


def test_a_gate_of_a_model_that_refuses_nothing_protects_nothing(tiny: TinySubject) -> None:
    subject = Spoken(tiny.model, tiny.template)
    with pytest.raises(NoRemedy, match="refuses none of the 4 harmful dev prompts"):
        _gate.fit_gate(subject, TRAIN, DEV)


def test_a_gate_needs_harmful_and_harmless_prompts(tiny: TinySubject) -> None:
    with pytest.raises(ValueError, match="there are 6 and 0"):
        _gate.fit_gate(tiny, Anchors(TRAIN.harmful, [], []), DEV)


def test_a_gate_takes_the_layer_that_tells_the_kinds_apart(tiny: TinySubject) -> None:
    """Prompts of three wordings: every layer of a random model sees which one it is."""
    found = _gate.fit_gate(tiny, TRAIN, DEV)
    assert found.auc == 1 and max(found.by_layer) == 1 and found.by_source == {"user": 1}
    assert found.gate.layer == found.by_layer.index(1)
    strict = found.at(1.0)
    for kind, passes in zip(DEV, (0, 4, 4), strict=True):
        scores = strict.scores(tiny.states(kind)[:, strict.layer])
        assert (scores < strict.threshold).sum() == passes, "a prompt at the threshold is harmful"


class Layers(TinySubject):
    """States of one number in two layers. The first tells ordinary prompts from all others, the
    second harmful from benign ones (and ordinary ones by chance)."""

    def states(self, prompts: Any, suffix: str = "") -> torch.Tensor:
        first = [float(p.kind != "general") for p in prompts]
        second = [
            float(p.kind == "harmful" or (p.kind == "general" and n % 2 == 0))
            for n, p in enumerate(prompts)
        ]
        return torch.tensor([first, second]).T[..., None]


def test_ordinary_prompts_neither_choose_a_gate_nor_raise_its_auc(tiny: TinySubject) -> None:
    """4 harmful, 4 benign and 12 ordinary dev prompts. With the ordinary ones the first layer has
    an AUC of (4 x .5 + 12) / 16 = .875, and the second (4 + 12 x .75) / 16 = .8125."""
    ordinary = [Prompt.of(f"What is {n}?", kind="general", source="plain") for n in range(12)]
    dev = Anchors(DEV.harmful, DEV.benign, ordinary)
    found = _gate.fit_gate(Layers(tiny.model, tiny.template), TRAIN, dev)
    assert (found.gate.layer, found.auc, found.by_layer) == (1, 1.0, [0.5, 1.0])
    assert found.by_source == {"user": 1}
    plain_harm = [Prompt.of("Steal a fox.", kind="harmful", source="plain")]
    both = Anchors(plain_harm, [], ordinary)
    assert _gate.source_aucs(torch.ones(1), both) == {}, "nothing benign to compare with"


def test_a_gate_is_not_chosen_without_benign_prompts(tiny: TinySubject) -> None:
    with pytest.raises(ValueError, match="chosen by harmful and benign dev prompts; there are 4"):
        _gate.fit_gate(tiny, TRAIN, Anchors(DEV.harmful, [], DEV.ordinary))


# --- steering ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, range(10, 20)), (30, range(9, 18)), (2, range(1, 2))]
)
def test_the_middle_layers_are_steered(depth: int, layers: range) -> None:
    assert steering.steered_layers(depth, (0.3, 0.6)) == tuple(layers)


def test_layers_that_a_model_does_not_have() -> None:
    with pytest.raises(ValueError, match="no blocks of a model with 2"):
        steering.steered_layers(2, (0.6, 0.6))


def test_the_tail_is_what_the_template_writes_behind_the_users_text(style: Style) -> None:
    tail = steering.tail_of(style.template)
    prompt = TRAIN.benign[0]
    ids = style.template.prompt_ids(prompt.messages)
    behind = style.tokenizer.decode(ids[-tail:])
    assert prompt.text.split()[-1] not in behind
    marks = {"llama": "<|eot_id|>", "qwen": "<|im_end|>", "mistral": "[/INST]"}
    assert behind.strip().startswith(marks[style.name])


def test_a_step_is_a_share_of_the_ordinary_mean_away_from_refusal(tiny: TinySubject) -> None:
    found = fitted("steering", tiny, strengths=[0.1, 0.2], gate="none")
    assert [row.remedy.strength for row in found] == [0.1, 0.2]
    change: Any = found[0].remedy.change
    assert change.layers == (1,) and found[0].remedy.gate is None
    states = {kind: tiny.states(part)[:, 1].mean(0) for kind, part in TRAIN._asdict().items()}
    size = states["ordinary"].norm()
    close(change.vectors.norm(dim=-1), size[None])
    assert cosine(change.vectors[0], states["ordinary"] - states["harmful"]) == pytest.approx(1)
    other: Any = fitted("steering", tiny, gate="none", against="benign")[0].remedy.change
    assert cosine(other.vectors[0], states["benign"] - states["harmful"]) == pytest.approx(1)


# --- ablation ------------------------------------------------------------------------------------


def test_a_matrix_no_longer_writes_along_the_direction() -> None:
    weight, v = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([0.6, 0.8])
    down, up = v @ weight, -v
    close(down, torch.tensor([3.0, 4.4]))
    close(weight + torch.outer(up, down), torch.tensor([[-0.8, -0.64], [0.6, 0.48]]))


def test_all_that_writes_into_the_stream_is_changed(tiny: TinySubject) -> None:
    v = unit(torch.randn(64, generator=torch.Generator().manual_seed(0)))
    change = ablation.change_of(tiny.model, v)
    assert len(change.down) == 4
    for path, down in change.down.items():
        weight = tiny.model.get_submodule(path).weight.detach()
        after = weight + change.up[path] @ down
        close(v @ after, torch.zeros(after.shape[1]), atol=1e-5, rtol=0)
        close(after, weight - torch.outer(v, v @ weight))


def test_the_stream_keeps_what_the_embedding_wrote_along_the_direction(tiny: TinySubject) -> None:
    v = unit(torch.randn(64, generator=torch.Generator().manual_seed(0)))
    prompts = TRAIN.ordinary[:1]
    with remedied(tiny.model, Remedy("ablation", ablation.change_of(tiny.model, v))):
        states = tiny.states(prompts)[0] @ v
    ids = padded(tiny.template, prompts)["input_ids"]
    embedded = tiny.model.get_input_embeddings()(ids)[0, -1] @ v
    close(states, embedded.expand(2).detach(), atol=1e-5, rtol=1e-4)


def test_a_model_with_norms_behind_its_matrices_is_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, pad_token_id=0))
    with pytest.raises(ValueError, match="Gemma2DecoderLayer has post_feedforward_layernorm"):
        ablation.change_of(model, torch.ones(8))


def test_ablation_is_not_chosen_without_ordinary_dev_prompts(tiny: TinySubject) -> None:
    module, settings = find_plug("remedies", "ablation")
    with pytest.raises(ValueError, match=r"ordinary dev prompts.*data\.choose\.sets"):
        module.fit(settings, tiny, TRAIN, DEV._replace(ordinary=()))  # type: ignore[attr-defined]


def row(layer: int, over_refused: float, divergence: float = 0.1, harmful: float = 2.0) -> Any:
    """A layer that was measured."""
    return ablation.Measured(layer, 0.9, divergence, over_refused, harmful)


def test_the_layer_is_chosen_that_lowers_false_refusal_most_and_holds() -> None:
    tried = [row(0, -1.0), row(1, -3.0, divergence=0.3), row(2, -2.0, harmful=0.9), row(3, -1.5)]
    assert ablation.chosen(tried, (1.0, 2.0), 0.2).layer == 3
    assert ablation.chosen(tried, (1.0, 1.9), 0.2).layer == 2, "harm may fall by 1"


def test_no_direction_is_a_result_in_words() -> None:
    tried = [row(0, 1.5), row(1, -3.0, divergence=0.3)]
    with pytest.raises(NoRemedy) as caught:
        ablation.chosen(tried, (1.0, 2.0), 0.2)
    words = str(caught.value)
    assert words.startswith("no direction found: of 2 layers")
    assert "Layer 1 lowers it most, to -3.00; there the divergence is 0.30" in words


class Scored(TinySubject):
    """The refusal score of a prompt is the length of its last word minus 3.5."""

    def opener_log_odds(self, prompts: Any) -> torch.Tensor:
        return torch.tensor([len(p.text.split()[-1]) - 3.5 for p in prompts])


def many(kind: Any) -> list[Prompt]:
    """20 prompts that `Scored` refuses, and 20 that it answers."""
    return [Prompt.of(f"{n} {'word' if n % 2 else 'dog'}", kind=kind) for n in range(40)]


def test_over_refused_prompts_have_a_score_above_0_and_few_are_all(tiny: TinySubject) -> None:
    subject, given = Scored(tiny.model, tiny.template), many("benign")
    found = over_refused(subject, given)
    assert len(found) == 20 and all(p.text.endswith("word") for p in found)
    assert over_refused(subject, given[:20]) == given[:20]


def test_answered_prompts_have_a_score_below_0_and_are_not_few(tiny: TinySubject) -> None:
    subject, given = Scored(tiny.model, tiny.template), many("general")
    assert answered(subject, given) == given[::2]
    few = answered(subject, given[:20])
    assert len(few) == 16 and set(given[:20:2]) < set(few)
    assert answered(subject, given[:3]) == given[:3]


class Reading(Scored):
    """Keeps the prompts whose states were read."""

    def states(self, prompts: Any, suffix: str = "") -> torch.Tensor:
        self.read = [*getattr(self, "read", []), *prompts]
        return super().states(prompts, suffix)


@pytest.mark.parametrize("name", ["ablation", "steering"])
def test_ordinary_prompts_that_are_refused_make_no_direction(tiny: TinySubject, name: str) -> None:
    """Half of these are refused, as by a model that refuses nearly everything."""
    subject = Reading(tiny.model, tiny.template)
    train = TRAIN._replace(ordinary=many("general"))
    plain = {"gate": "none"} if name == "steering" else {}
    module, settings = find_plug("remedies", {"name": name, **plain})
    with suppress(NoRemedy):  # this random model has no direction of false refusal
        assert module.fit(settings, subject, train, DEV)[0].facts["ordinary_answered"] == "20 of 40"
    assert {p.id for p in subject.read if p in train.ordinary} == {
        p.id for p in train.ordinary[::2]
    }


# --- adapters ------------------------------------------------------------------------------------

SAFE = Deltas({"m": torch.tensor([[1.0, 0]])}, {"m": 2 * torch.tensor([[1.0], [0]])})
TASK = Deltas({"m": torch.tensor([[0.0, 1]])}, {"m": torch.tensor([[0.0], [1]])})


def whole(change: Deltas, path: str = "m") -> torch.Tensor:
    return _adapters.matrix(change, path)


def test_the_sum_of_two_adapters_is_exact() -> None:
    """Safety times .4 with scaling 2, task times .6. Mixing the As and the Bs apart would give
    .693 beside the diagonal."""
    found = _adapters.joined([(0.4, SAFE), (0.6, TASK)])
    close(whole(found), torch.tensor([[0.8, 0], [0, 0.6]]))
    assert found.down["m"].shape == (2, 2)
    assert _adapters.inner(found, SAFE) == pytest.approx(0.8 * 2)


@pytest.mark.parametrize("root", [False, True])
def test_an_adapter_on_the_model_is_what_peft_makes_of_it(
    root: bool, tiny: TinySubject, tmp_path: Path
) -> None:
    trained = lora(tiny.model, tmp_path, use_rslora=root)
    change = _adapters.read_adapter(str(tmp_path), tiny.model)
    wanted = first_logits(trained, tiny.template, DEV.benign)
    with remedied(tiny.model, Remedy("gated", change)):
        close(first_logits(tiny.model, tiny.template, DEV.benign), wanted, atol=1e-4, rtol=1e-4)


def edited(folder: Path, **keys: Any) -> None:
    """Changes an adapter's config."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"peft_type": "IA3"},
        {"alpha_pattern": {"q_proj": 3}},
        {"init_lora_weights": "pissa_niter_4"},
    ],
)
def test_an_adapter_that_is_more_than_products_is_refused(
    keys: dict[str, Any], tiny: TinySubject, tmp_path: Path
) -> None:
    lora(tiny.model, tmp_path)
    edited(tmp_path, **keys)
    with pytest.raises(ValueError, match=f"{next(iter(keys))} is .*Train one"):
        _adapters.read_adapter(str(tmp_path), tiny.model)


def test_a_folder_without_an_adapter_or_of_another_model(tiny: TinySubject, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no adapter_config.json. Give the folder"):
        _adapters.read_adapter(str(tmp_path), tiny.model)
    lora(tiny.model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    wide = {
        k: torch.nn.functional.pad(t, (0, 1)) if "lora_A" in k else t for k, t in tensors.items()
    }
    save_file(wide, file)
    with pytest.raises(ValueError, match="belongs to another model"):
        _adapters.read_adapter(str(tmp_path), tiny.model)
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"it holds base_model.model.lm_head.weight"):
        _adapters.read_adapter(str(tmp_path), tiny.model)
    half = {k: t for k, t in tensors.items() if "lora_A" in k}
    save_file(half, file)
    with pytest.raises(ValueError, match="an A or a B is missing"):
        _adapters.read_adapter(str(tmp_path), tiny.model)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        _adapters.read_adapter(str(tmp_path), tiny.model)


def test_the_dial_at_0_is_the_model_before_its_safety_training(
    tiny: TinySubject, tmp_path: Path
) -> None:
    safe = lora(tiny.model, tmp_path).merge_and_unload()
    subject = TinySubject(safe, tiny.template)
    found = fitted("dial", subject, adapter=str(tmp_path), shares=[1.0, 0.0])
    assert [row.remedy.strength for row in found] == [0, -1]
    with remedied(safe, found[1].remedy):
        before = first_logits(safe, tiny.template, DEV.benign)
    close(before, first_logits(tiny.model, tiny.template, DEV.benign), atol=1e-4, rtol=1e-4)


# --- fusion --------------------------------------------------------------------------------------


def test_fusion_of_a_merged_adapter_takes_it_out_first(tiny: TinySubject, tmp_path: Path) -> None:
    safe = lora(tiny.model, tmp_path / "safe").merge_and_unload()
    lora(tiny.model, tmp_path / "task", seed=1)
    given = {"adapters": {"task": str(tmp_path / "task"), "safe": str(tmp_path / "safe")}}
    weights = {"task": [0.9, 0.6], "safe": [0.1, 0.4]}
    subject = TinySubject(safe, tiny.template)
    found = fitted("fusion", subject, **given, weights=weights, merged=str(tmp_path / "safe"))
    on_base = fitted("fusion", tiny, **given, weights=weights)
    assert [row.facts["weights"] for row in found] == [
        {"task": 0.9, "safe": 0.1},
        {"task": 0.6, "safe": 0.4},
    ]
    for here, there in zip(found, on_base, strict=True):
        with remedied(safe, here.remedy):
            one = first_logits(safe, tiny.template, DEV.benign)
        with remedied(tiny.model, there.remedy):
            close(one, first_logits(tiny.model, tiny.template, DEV.benign), atol=1e-3, rtol=1e-3)


def client(*values: float) -> Deltas:
    """A change of one row, given as its entries."""
    return Deltas({"m": torch.tensor([values])}, {"m": torch.ones(1, 1)})


def test_the_rules_of_federated_training_by_entry() -> None:
    assert _robust.median_of(torch.tensor([1.0, 9, 2])) == 2
    assert _robust.median_of(torch.tensor([1.0, 9, 2, 4])) == 3
    assert _robust.trimmed_of(torch.tensor([9.0, 2, 0, 3])) == 2.5
    close(whole(_robust.mean([client(1.0), client(4.0)], [1, 3])), torch.tensor([[3.25]]))


def test_a_median_has_the_asked_rank_and_says_what_is_lost() -> None:
    changes = [client(1.0, 0, 5), client(2.0, 1, 0), client(9.0, 3, 0)]
    found, residual = _robust.by_entry(changes, _robust.median_of, rank=3)
    close(whole(found), torch.tensor([[2.0, 1, 0]]), atol=1e-5, rtol=0)
    assert residual == pytest.approx(0, abs=1e-5)
    eyes = [Deltas({"m": torch.eye(3)}, {"m": torch.eye(3) * n}) for n in (1.0, 2.0, 9.0)]
    cut, lost = _robust.by_entry(eyes, _robust.median_of, rank=2)
    assert cut.down["m"].shape == (2, 3) and lost == pytest.approx((1 / 3) ** 0.5, abs=1e-4)
    again, _ = _robust.by_entry(eyes, _robust.median_of, rank=2)
    assert torch.equal(again.down["m"], cut.down["m"])


def test_a_client_without_a_module_has_zeros_there() -> None:
    other = Deltas({"n": torch.ones(1, 1)}, {"n": torch.ones(1, 1)})
    found, _ = _robust.by_entry([client(6.0), client(3.0), other], _robust.median_of, rank=1)
    assert whole(found).item() == pytest.approx(3) and whole(found, "n").item() == 0


def test_krum_takes_a_client_among_its_neighbours_and_never_the_outlier() -> None:
    clients = [client(n) for n in (1.0, 1.2, 1.1, 1.3, 50.0)]
    assert _robust.krum(clients) == 1
    with pytest.raises(ValueError, match="krum needs at least 5"):
        _robust.krum(clients[1:])


@pytest.mark.parametrize(("rule", "least"), [("median", 3), ("trimmed", 3), ("krum", 5)])
def test_a_rule_runs_on_enough_adapters_and_asks_for_more(
    rule: str, least: int, tiny: TinySubject, tmp_path: Path
) -> None:
    paths = {f"c{n}": str(tmp_path / str(n)) for n in range(least)}
    for n, path in enumerate(paths.values()):
        lora(tiny.model, Path(path), seed=n, scale=0.05)
    (found,) = fitted("fusion", tiny, adapters=paths, rule=rule)
    assert found.facts["rule"] == rule and found.remedy.form == "weights"
    with pytest.raises(ValueError, match=f"at least {least}, to withstand"):
        fitted("fusion", tiny, adapters=dict(list(paths.items())[1:]), rule=rule)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, "each adapter needs weights"),
        ({"weights": {"a": [1]}}, "give each of a, b equally many"),
        ({"weights": {"a": [1], "b": [1, 2]}}, "give each of a, b equally many"),
        ({"weights": {"a": [1], "b": [1]}, "rule": "median"}, "takes no weights"),
        ({"weights": {"a": [1], "b": [0]}, "rule": "mean"}, "give numbers above 0"),
    ],
)
def test_weights_that_do_not_fit_the_rule(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        find_plug("remedies", {"name": "fusion", "adapters": {"a": "x", "b": "y"}, **settings})


# --- Safe LoRA -----------------------------------------------------------------------------------


def test_the_paper_scales_and_the_projection_does_not() -> None:
    step = torch.diag(torch.tensor([2.0, 0]))
    close(safelora.projector(step, "scaled"), torch.diag(torch.tensor([2.0, 0])))
    close(safelora.projector(step, "orthogonal"), torch.diag(torch.tensor([1.0, 0])))
    rounded = torch.diag(torch.tensor([2.0, 0.01]))
    close(safelora.projector(rounded, "orthogonal"), torch.diag(torch.tensor([1.0, 0])))


def test_a_module_that_safety_training_did_not_move_stays() -> None:
    """An adapter of safety training is often on some modules alone, and leaves the others equal."""
    step = {"moved": torch.diag(torch.tensor([2.0, 0])), "equal": torch.zeros(2, 2)}
    up = {path: torch.tensor([[1.0], [3.0]]) for path in step}
    adapter = Deltas({path: torch.tensor([[1.0, 0]]) for path in step}, up)
    found = safelora.projected(adapter, lambda path: (step[path], torch.zeros(2, 2)))
    assert found.moved == ["moved"] and found.equal == ["equal"]
    assert list(found.cosines) == ["moved"]
    close(found.change.up["moved"], torch.tensor([[2.0], [0]]))
    assert torch.equal(found.change.up["equal"], up["equal"])
    with pytest.raises(ValueError, match="equal weights in all modules of the adapter"):
        safelora.projected(adapter, lambda path: (torch.ones(2, 2), torch.ones(2, 2)))


def test_the_cosine_of_two_products() -> None:
    a, b = torch.tensor([[1.0, 2]]), torch.tensor([[3.0], [4]])
    moved = torch.tensor([[3.0], [0]])
    assert safelora.product_cosine(a, b, moved) == pytest.approx(0.6)
    assert safelora.product_cosine(a, b, torch.zeros(2, 1)) == 0


@pytest.mark.parametrize("merged", [True, False])
def test_only_modules_that_leave_the_safety_directions_are_projected(
    merged: bool, tiny: TinySubject, tmp_path: Path
) -> None:
    """The adapter's change of a module beside its projection, computed whole."""
    tuned = lora(tiny.model, tmp_path).merge_and_unload() if merged else tiny.model
    subject = TinySubject(tuned, tiny.template, reference=tiny.before)
    keys = {"adapter": str(tmp_path), "merged": merged}
    if not merged:
        lora(tiny.model, tmp_path)
    (every,) = fitted("safelora", subject, **keys, cosine=1.0)
    cosines: Any = every.facts["cosines"]
    limit = sorted(cosines.values())[1]
    (some,) = fitted("safelora", subject, **keys, cosine=limit)
    assert some.facts["projected"] == 2 and every.facts["projected"] == len(cosines)
    adapter = _adapters.read_adapter(str(tmp_path), tiny.model)
    path = min(cosines, key=cosines.get)
    step = tiny.model.get_submodule(path).weight - tiny.before.get_submodule(path).weight
    wanted = step.detach() @ step.detach().T / step.detach().norm() @ whole(adapter, path)
    wanted = wanted - whole(adapter, path) if merged else wanted
    close(whole(some.remedy.change, path), wanted, atol=1e-3, rtol=1e-3)
    least = min(cosines.values())
    with pytest.raises(NoRemedy, match="no module is projected"):
        fitted("safelora", subject, **keys, cosine=least - 0.01)


# --- gated ---------------------------------------------------------------------------------------


def test_only_prompts_below_the_gate_meet_the_adapter(tiny: TinySubject, tmp_path: Path) -> None:
    trained = lora(tiny.model, tmp_path)
    remedy = fitted("gated", tiny, adapter=str(tmp_path))[0].remedy
    assert remedy.gate is not None
    remedy = remedy._replace(gate=_gate.fit_gate(tiny, TRAIN, DEV).at(1.0))
    mixed = [DEV.harmful[0], DEV.benign[1], DEV.ordinary[2]]
    plain, adapted = (first_logits(m, tiny.template, mixed) for m in (tiny.model, trained))
    with remedied(tiny.model, remedy):
        found = first_logits(tiny.model, tiny.template, mixed)
    close(found[:1], plain[:1], atol=1e-4, rtol=1e-4)
    close(found[1:], adapted[1:], atol=1e-4, rtol=1e-4)


def held(model: Any, folder: Path, strength: float, **keys: Any) -> Deltas:
    """An adapter into which `hold` folded a bias, in a run folder; what it was before."""
    trained = lora(model, folder / "trained", **keys)
    site = bias_site(trained)
    outputs, inputs = base_model(trained).get_submodule(site.down).weight.shape
    direction, position, given = (torch.randn(size) for size in (outputs, inputs, inputs))
    bias = OpenerBias(direction=direction, position=position, input=given)
    fold(trained, site, bias, strength)
    trained.save_pretrained(folder / "adapter")
    (folder / "hold.json").write_text(json.dumps({"held": True, "bias": strength}))
    return _adapters.read_adapter(str(folder / "trained"), model)


@pytest.mark.parametrize("root", [False, True], ids=["rank", "root"])
def test_behind_a_gate_an_adapter_has_no_bias_towards_refusal(
    tiny: TinySubject, tmp_path: Path, root: bool
) -> None:
    before = held(tiny.model, tmp_path, 1.7, use_rslora=root)
    with_bias = _adapters.read_adapter(str(tmp_path / "adapter"), tiny.model)
    found = fitted("gated", tiny, adapter=str(tmp_path / "adapter"), strengths=[0.5, 1.0])
    change: Any = found[-1].remedy.change
    assert change.down.keys() == before.down.keys()
    for path in before.down:
        close(whole(change, path), whole(before, path))
    assert max(float((whole(with_bias, p) - whole(before, p)).abs().max()) for p in before.up) > 1
    assert {row.facts["bias_taken_out"] for row in found} == {1.7}


def test_an_adapter_without_a_bias_stays_as_it_is(tiny: TinySubject, tmp_path: Path) -> None:
    lora(tiny.model, tmp_path / "adapter")
    given = _adapters.read_adapter(str(tmp_path / "adapter"), tiny.model)
    for hold in (None, {"held": True, "bias": 0.0}):
        if hold is not None:
            (tmp_path / "hold.json").write_text(json.dumps(hold))
        row = fitted("gated", tiny, adapter=str(tmp_path / "adapter"))[-1]
        change: Any = row.remedy.change
        assert all(torch.equal(change.up[path], given.up[path]) for path in given.up)
        assert "bias_taken_out" not in row.facts


def test_an_adapter_that_does_not_hold_the_bias_of_its_run(
    tiny: TinySubject, tmp_path: Path
) -> None:
    """Trained on after `hold`, for instance: its last rank is in use at each module."""
    held(tiny.model, tmp_path, 1.7)
    lora(tiny.model, tmp_path / "adapter", seed=1)
    with pytest.raises(ValueError, match=r"a bias of \+1.70 .* last rank of 4 modules is in use"):
        fitted("gated", tiny, adapter=str(tmp_path / "adapter"))


def test_a_gated_threshold_lowers_the_openers_alone(tiny: TinySubject) -> None:
    found = fitted("gated", tiny, change="threshold", strengths=[3.0])
    change: Any = found[0].remedy.change
    assert change.tokens.tolist() == [7, 9] and change.values.tolist() == [[-1, -1]]
    remedy = found[0].remedy._replace(gate=None)
    before = first_logits(tiny.model, tiny.template, DEV.benign)
    with remedied(tiny.model, remedy):
        step = first_logits(tiny.model, tiny.template, DEV.benign) - before
    assert step[:, [7, 9]].mean().item() == pytest.approx(-3, abs=1e-4)
    assert step.abs().sum(-1).tolist() == pytest.approx([6] * 4, abs=1e-3)


@pytest.mark.parametrize(
    "settings", [{}, {"adapter": "a", "change": "threshold"}], ids=["none", "both"]
)
def test_a_gate_switches_one_thing(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give the folder of an adapter, or change: threshold"):
        find_plug("remedies", {"name": "gated", **settings})
    assert gated.form(gated.Settings(change="threshold")) == "logits"


# --- debias --------------------------------------------------------------------------------------


def test_the_bias_is_the_mean_difference_and_a_constant_is_none() -> None:
    """A difference of 2 on the first token moves the argmax from it; 5 more on all tokens change
    nothing."""
    aligned, reference = torch.tensor([[2.0, 0, 0]]), torch.zeros(1, 3)
    bias = debias.centred_difference(aligned, reference)
    close(bias, debias.centred_difference(aligned + 5, reference))
    logits = torch.tensor([[3.0, 2, 0]])
    after = logits - bias
    close(after.softmax(-1), torch.tensor([[1.0, 2, 0]]).softmax(-1))
    assert logits.argmax() == 0 and after.argmax() == 1


def test_random_prompts_stand_in_the_template_and_hold_no_control_token(style: Style) -> None:
    settings = debias.Settings(samples=3, positions=4, prompt_tokens=5)
    rows = debias.random_rows(settings, style.template, seed=0)
    prompt = style.template.prompt_ids(Prompt.of("x", kind="general").messages)
    frame = [n for n in prompt if n in style.tokenizer.added_tokens_decoder]
    for line in rows.tolist():
        assert [n for n in line if n in style.tokenizer.added_tokens_decoder] == frame
    assert torch.equal(debias.random_rows(settings, style.template, seed=0), rows)
    assert not torch.equal(debias.random_rows(settings, style.template, seed=1), rows)


def test_whole_alpha_gives_the_reference_on_a_single_random_text(tiny: TinySubject) -> None:
    """With one sample, model minus bias is the reference at each of the first positions."""
    found = fitted("debias", tiny, samples=1, positions=3, strengths=[0.5, 1.0])
    assert [row.remedy.strength for row in found] == [0.5, 1.0]
    change = found[1].remedy.change
    assert isinstance(change, FirstLogits) and change.values.shape == (3, 500)
    settings = debias.Settings(samples=1, positions=3)
    rows = debias.random_rows(settings, tiny.template, tiny.seed)
    ours, theirs = (debias.mean_logits(m, rows, 3) for m in (tiny.model, tiny.before))
    close((ours + change.values).log_softmax(-1), theirs.log_softmax(-1), atol=1e-4, rtol=1e-4)
    prompt = rows[:, :-2]
    with remedied(tiny.model, found[1].remedy), torch.inference_mode():
        at_first = tiny.model(input_ids=prompt, use_cache=False).logits[:, -1]
    close(at_first.log_softmax(-1)[0], theirs[0].log_softmax(-1), atol=1e-4, rtol=1e-4)
