"""remedy.py and remedy_facts.py: what is written is read again; files that are damaged or belong to
another model are errors with a way on."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style
from factories import tiny_model
from safetensors.torch import load_file, save_file

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.model import load as models
from overrefusal_po.model.remedied import remedied, remedy_of
from overrefusal_po.model.remedy import (
    Change,
    Deltas,
    FirstLogits,
    Gate,
    Remedy,
    Steering,
    base_facts,
    config_hash,
    load_remedy,
    remedy_id,
    save_remedy,
)
from overrefusal_po.model.remedy_facts import remedy_words
from overrefusal_po.records import Prompt, Sampling

PROMPTS = [Prompt.of(f"How do I kill process {n}?", kind="benign") for n in range(3)]
CHANGES = ("steering", "deltas", "logits")


def change_of(kind: str) -> Change:
    """A strong change of a model of width 64 with 2 blocks."""
    torch.manual_seed(0)
    path = "model.layers.1.mlp.down_proj"
    changes: dict[str, Change] = {
        "steering": Steering((1,), torch.randn(1, 64) * 20, 2),
        "deltas": Deltas({path: torch.randn(2, 128)}, {path: torch.randn(64, 2) * 3}),
        "logits": FirstLogits(torch.tensor([9, 200]), torch.tensor([[50.0, 0], [0, 50.0]])),
    }
    return changes[kind]


def gate(layer: int = 1, width: int = 64) -> Gate:
    """A gate that lets everything through."""
    return Gate(
        layer, torch.zeros(width), torch.ones(width), torch.ones(width) / 7, 0.25, 1e3 + 1 / 3
    )


def said(model: Any, style: Style) -> list[tuple[str, str | None]]:
    """(text, revision) of the responses to `PROMPTS`."""
    engine = TransformersEngine(model, style.template, name="m", device="cpu")
    drawn = engine.complete(PROMPTS, Sampling(max_new_tokens=6))
    return [(c.text, c.revision) for c in sorted(drawn, key=lambda c: c.prompt_id)]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", CHANGES)
def test_a_saved_remedy_says_what_it_said_before(
    kind: str, gated: bool, styles: dict[str, Style], tmp_path: Path
) -> None:
    style = styles["llama"]
    model = style.make_model()
    remedy = Remedy(kind, change_of(kind), 0.3, gate() if gated else None)
    plain = said(model, style)
    with remedied(model, remedy):
        before = said(model, style)
    save_remedy(remedy, tmp_path, {"base": base_facts(model), "tried": [1]})
    loaded = models.load_model(str(style.folder), dtype="float32", remedy=str(tmp_path))
    found = remedy_of(loaded)
    assert found is not None and found.form == remedy.form
    assert before == said(loaded, style) != plain
    assert {revision for _, revision in before} == {remedy_id(remedy)} == {remedy_id(found)}
    assert {path.name for path in tmp_path.iterdir()} == {"remedy.json", "remedy.safetensors"}
    assert json.loads((tmp_path / "remedy.json").read_text())["tried"] == [1]


@pytest.mark.parametrize(
    "other",
    [
        {"strength": 0.31},
        {"name": "t"},
        {"gate": gate()},
        {"change": Steering((0,), change_of("steering").vectors, 2)},  # type: ignore[union-attr]
        {"change": Steering((1,), torch.ones(1, 64), 2)},
    ],
)
def test_remedies_that_do_something_else_have_other_ids(other: dict[str, Any]) -> None:
    remedy = Remedy("s", change_of("steering"), 0.3)
    assert remedy_id(remedy) != remedy_id(remedy._replace(**other))
    assert remedy_id(remedy) == remedy_id(Remedy("s", change_of("steering"), 0.3))


def test_completions_of_two_remedies_never_have_the_same_id(styles: dict[str, Style]) -> None:
    style, model = styles["qwen"], styles["qwen"].make_model()
    engine = TransformersEngine(model, style.template, name="m", revision="main", device="cpu")
    drawn = [*engine.complete(PROMPTS, Sampling(max_new_tokens=4))]
    for strength in (0.0, 1e-9):  # the texts stay the same
        with remedied(model, Remedy("s", change_of("steering"), strength)):
            drawn += engine.complete(PROMPTS, Sampling(max_new_tokens=4))
    assert len({c.text for c in drawn}) <= 3
    assert len({c.id for c in drawn}) == 9 and all(c.id == c.content_id for c in drawn)
    assert [(c.revision or "").partition("-")[0] for c in drawn[2:4]] == ["main", "main + s"]


def test_a_remedy_in_words(tmp_path: Path) -> None:
    remedy = Remedy("steering", change_of("steering"), 0.5, gate())
    save_remedy(remedy, tmp_path, {})
    assert remedy_words(tmp_path) == f"{remedy_id(remedy)} (strength 0.5, gated)"
    save_remedy(remedy._replace(gate=None), tmp_path, {})
    assert remedy_words(tmp_path).endswith("(strength 0.5, on every prompt)")


def in_json(**changes: Any) -> Callable[[Path], None]:
    """Damage: other values in remedy.json, and no id that would show it."""

    def damage(folder: Path) -> None:
        known = json.loads((folder / "remedy.json").read_text())
        known = {**known, "id": None} | changes
        (folder / "remedy.json").write_text(json.dumps(known))

    return damage


def in_tensors(**changes: Any) -> Callable[[Path], None]:
    """Damage: other tensors; None takes one out."""

    def damage(folder: Path) -> None:
        known = {**load_file(folder / "remedy.safetensors"), **changes}
        save_file({k: t for k, t in known.items() if t is not None}, folder / "remedy.safetensors")

    return damage


def pickled(folder: Path) -> None:
    """Damage: a pickle, which would run code if anything read it."""
    (folder / "remedy.safetensors").write_bytes(pickle.dumps({"vectors": [1.0]}))


def cut_off(folder: Path) -> None:
    """Damage: the last bytes are missing."""
    file = folder / "remedy.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


STEERED = {"kind": "steering", "layers": [1], "tail": 2}
GATED = {"layer": 1, "intercept": 0.25, "threshold": 3.0}

DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / "remedy.json").unlink(), "holds no remedy.json"),
    (lambda folder: (folder / "remedy.safetensors").unlink(), "holds no remedy.json"),
    (lambda folder: (folder / "remedy.json").write_text("[1]"), "Fit the remedy again"),
    (lambda folder: (folder / "remedy.json").write_text("{}"), "has no 'name'"),
    (pickled, "cannot be read"),
    (cut_off, "cannot be read"),
    (in_json(strength="much"), "cannot be read"),
    (in_json(strength=float("nan")), "its strength is nan"),
    (in_json(change="steering"), "cannot be read"),
    (in_json(change={"kind": "prompt"}), "known are steering, deltas, first_logits and contrast"),
    (in_json(change={"kind": "deltas", "modules": []}), "it changes no module"),
    (in_json(change={**STEERED, "layers": []}), "1 vectors for the blocks"),
    (in_json(change={**STEERED, "layers": [0, 1]}), "1 vectors for the blocks"),
    (in_json(change={**STEERED, "layers": [-1]}), "1 vectors for the blocks"),
    (in_json(change={**STEERED, "layers": 1}), "cannot be read"),
    (in_json(change={**STEERED, "tail": 0}), "its tail is 0"),
    (in_json(gate={**GATED, "layer": -1}), "its gate reads block -1"),
    (in_json(gate={**GATED, "threshold": None}), "cannot be read"),
    (in_json(gate={"layer": 1}), "cannot be read"),
    (in_tensors(vectors=None), "cannot be read"),
    (in_tensors(vectors=torch.full((1, 64), torch.nan)), "NaN or infinity"),
    (in_tensors(vectors=torch.ones(64)), r"vectors has the shape \(64,\)"),
    (in_tensors(**{"gate.scale": torch.zeros(64)}), "do not fit each other"),
    (in_tensors(**{"gate.weights": torch.ones(8)}), "do not fit each other"),
    (in_tensors(vectors=torch.ones(1, 64)), "do not belong together"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_folder_is_an_error(
    damage: Callable[[Path], Any], words: str, tmp_path: Path
) -> None:
    save_remedy(Remedy("s", change_of("steering"), 1.0, gate()), tmp_path, {})
    load_remedy(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_remedy(tmp_path)


def test_a_run_that_was_killed_while_it_wrote_leaves_no_remedy(tmp_path: Path) -> None:
    save_remedy(Remedy("s", change_of("steering")), tmp_path, {})
    with pytest.raises(TypeError):
        save_remedy(Remedy("s", change_of("logits")), tmp_path, {"no JSON": object()})
    with pytest.raises(ValueError, match=r"holds no remedy\.json"):
        load_remedy(tmp_path)


@pytest.mark.parametrize(
    ("remedy", "changes", "words"),
    [
        (Remedy("s", change_of("steering")), {"hidden_size": 32}, "steers block 1 of width 64"),
        (Remedy("s", change_of("steering")), {"num_hidden_layers": 1}, "steers block 1"),
        (Remedy("l", change_of("logits")), {"vocab_size": 100}, "token 200 of 100"),
        (
            Remedy("l", change_of("logits"), 1.0, gate(layer=4)),
            {"vocab_size": 300},
            "its gate reads block 4",
        ),
        (Remedy("d", change_of("deltas")), {"num_hidden_layers": 3}, "had 2 blocks of width 64"),
    ],
)
def test_another_shape_is_found_in_the_config_alone(
    remedy: Remedy, changes: dict[str, Any], words: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    save_remedy(remedy, tmp_path / "remedy", {"base": base_facts(styles["llama"].make_model())})
    known = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 500, **changes}
    config = tiny_model("Llama", **known).config
    with pytest.raises(ValueError, match=f"fitted on another model: .*{words}"):
        load_remedy(tmp_path / "remedy", config)
    # a folder with this config and no weights at all: they would be missed if they were looked for
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="fitted on another model"):
        models.load_model(str(tmp_path / "model"), remedy=str(tmp_path / "remedy"))


def test_a_model_keeps_its_marks_in_any_number_format(style: Style) -> None:
    facts = base_facts(style.make_model())
    for dtype in ("float32", "bfloat16"):
        again = base_facts(models.load_model(str(style.folder), dtype=dtype))
        assert {**again, "name": facts["name"]} == facts
    assert facts["blocks"] == 2 and facts["width"] == 64 and facts["weights"]


def test_other_weights_and_other_configs_have_other_marks(styles: dict[str, Style]) -> None:
    one, other = styles["llama"].make_model(), styles["llama"].make_model(seed=1)
    assert base_facts(one)["config_hash"] == base_facts(other)["config_hash"]
    assert base_facts(one)["weights"] != base_facts(other)["weights"]
    trained = styles["llama"].make_model()
    trained.model.layers[1].self_attn.q_proj.weight.data *= 1.01
    assert base_facts(one)["weights"] != base_facts(trained)["weights"]
    assert config_hash(one.config) != config_hash(styles["qwen"].make_model().config)


@pytest.mark.parametrize(("seed", "warned"), [(0, False), (1, True)])
def test_a_model_with_other_weights_is_a_warning(
    seed: int,
    warned: bool,
    styles: dict[str, Style],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    style = styles["llama"]
    base = base_facts(style.make_model(seed=seed))
    save_remedy(Remedy("s", change_of("steering")), tmp_path, {"base": base})
    models.load_model(str(style.folder), dtype="float32", remedy=str(tmp_path))
    assert ("other weights. What it adds" in caplog.text) == warned
