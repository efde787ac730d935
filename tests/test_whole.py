"""A model that is incomplete, damaged or not finite is named when it is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Style
from safetensors.torch import load_file, save_file

from overrefusal_po.engines.transformers import TransformersEngine
from overrefusal_po.evaluate.capability import perplexity
from overrefusal_po.model.finite import NotFiniteError
from overrefusal_po.model.load import load_model, load_tokenizer, save_merged
from overrefusal_po.model.whole import hashes_beside
from overrefusal_po.records import Prompt, Sampling

WEIGHTS = "model.safetensors"


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def add_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def reshape_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def cut_file(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def lost_shard(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (drop_tensor, r"hold no tensors for model\.layers\.0\.mlp\.up_proj\.weight"),
        (add_tensor, r"does not have: model\.layers\.7\.mlp\.up_proj\.weight"),
        (reshape_tensor, r"up_proj\.weight"),
        (cut_file, "cannot be read"),
        (no_weights, "cannot be read"),
        (lost_shard, "cannot be read"),
        (no_config, "cannot be read"),
    ],
)
def test_a_model_that_is_not_whole_is_named(
    damage: Callable[[Path], None], says: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(styles["llama"].folder, folder)
    load_model(str(folder))
    damage(folder)
    with pytest.raises(ValueError, match=rf"{folder}.*{says}"):
        load_model(str(folder))


def test_old_buffers_that_newer_code_computes_are_no_fault(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(styles["llama"].folder, folder)
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    load_model(str(folder))


def test_tied_embeddings_are_not_missing(styles: dict[str, Style], tmp_path: Path) -> None:
    model = styles["llama"].make_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / WEIGHTS)
    load_model(str(tmp_path / "tied"))


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
def test_one_bit_of_a_saved_model_is_noticed(
    name: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    style = styles["llama"]
    folder = save_merged(style.make_model(), style.tokenizer, tmp_path / "model")
    load_model(str(folder))
    data = bytearray((folder / name).read_bytes())
    data[-9] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(ValueError, match=rf"{name} are not as they were saved"):
        load_model(str(folder))
    hashes_beside(folder).unlink()  # what the sentence says to do if one changed it
    if name == WEIGHTS:
        load_model(str(folder))


def test_what_people_edit_is_no_damage(styles: dict[str, Style], tmp_path: Path) -> None:
    style = styles["llama"]
    folder = save_merged(style.make_model(), style.tokenizer, tmp_path / "model")
    (folder / "README.md").write_text("# Mine")
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    load_model(str(folder))


def test_a_damaged_tokenizer_is_named(styles: dict[str, Style], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(styles["llama"].folder, folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {')
    with pytest.raises(ValueError, match=rf"{folder}: its tokenizer cannot be read"):
        load_tokenizer(str(folder))


def test_weights_that_are_not_finite_are_refused_at_load(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    model = styles["llama"].make_model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(NotFiniteError, match=r"1 of \d+ weights .*first: .*up_proj"):
        load_model(str(tmp_path / "nan"))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error_and_no_answer(
    value: float, temperature: float, styles: dict[str, Style]
) -> None:
    style = styles["llama"]
    model = style.make_model()
    with torch.no_grad():
        model.lm_head.weight[7] = value
    engine = TransformersEngine(model, style.template, name="broken")
    prompts = [Prompt.of("How do I stop it?", kind="benign", reference="So.")]
    with pytest.raises(NotFiniteError, match="broken: its logits"):
        list(engine.complete(prompts, Sampling(max_new_tokens=3, temperature=temperature)))
    with pytest.raises(NotFiniteError, match="no perplexity"):
        perplexity(model, style.template, prompts)


def test_a_model_is_read_by_transformers_alone_and_stops_where_it_was_trained(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    """Servers read model/ with transformers' own files, and the end of turn from its config."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    style = styles["qwen"]
    model = style.make_model()
    model.generation_config.eos_token_id = style.tokenizer.pad_token_id  # as a base model's
    folder = save_merged(model, style.tokenizer, tmp_path / "model")
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert found.generation_config.eos_token_id == [
        style.tokenizer.pad_token_id,
        style.end_of_turn,
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == style.tokenizer.chat_template
    own = {"config.json", "generation_config.json", WEIGHTS}
    own |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in folder.iterdir()} == own
