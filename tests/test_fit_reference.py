"""fit/reference.py: a reference that cannot be compared with the model ends a fit before weights
are loaded; one that can is loaded as the model is."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style
from test_fit import values_of
from tiny_subject import DEV, TRAIN, TinySubject, lora

from overrefusal_po.cli import main
from overrefusal_po.fit.reference import reference_loader
from overrefusal_po.fit.stage import checked_prompts
from overrefusal_po.model.compared import moved
from overrefusal_po.model.load import load_model, save_merged
from overrefusal_po.model.remedy import Deltas
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.load import check_body
from overrefusal_po.remedies import debias, safelora

CHANGES: dict[str, dict[str, Any]] = {
    "wider": {"hidden_size": 256},
    "heads": {"head_dim": 64},
    "words": {"vocab_size": 20_000},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"]},
    "deeper": {"num_hidden_layers": 9},
    "packed": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
}
"""What each folder's config says otherwise than the model's."""


def altered(start: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a model whose config says something else. Its weights are not touched."""
    shutil.copytree(start, folder)
    config = json.loads((start / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def fit_values(name: str, model: Path, folder: Path, reference: object) -> dict[str, Any]:
    """A fit recipe of a remedy that compares the model with a reference."""
    remedy: dict[str, Any] = {"name": name}
    if name == "safelora":
        remedy["adapter"] = str(folder / "adapter")
        if not (folder / "adapter").is_dir():
            lora(load_model(str(model), dtype="float32"), folder / "adapter")
    return values_of(model, folder / "data", remedy=remedy, reference=reference)


def checked(values: dict[str, Any]) -> None:
    checked_prompts(check_body(values, "test"))  # type: ignore[arg-type]


@pytest.fixture
def before(styles: dict[str, Style], tmp_path: Path) -> Path:
    """A model of other weights, as the one before a safety training."""
    style = styles["llama"]
    return save_merged(style.make_model(1), style.tokenizer, tmp_path / "before" / "model")


BOTH = ["safelora", "debias"]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("wider", "its hidden_size is 256, and that of the model is"),
        ("heads", r"its model\.layers\.0\.self_attn\.q_proj has the shape"),
        ("words", "its vocab_size is 20000, and that of the model is"),
        ("mistral", "its model_type is mistral, and that of the model is llama"),
        ("deeper", "its num_hidden_layers is 9, and that of the model is"),
        ("itself", "it is the model itself"),
        ("link", "it is the model itself"),
        ("no weights", r"its folder holds no file of weights \(model\.safetensors\)"),
        ("no model", "The model '.*no model' cannot be found"),
    ],
)
def test_a_reference_of_another_shape_ends_a_fit_before_weights_are_loaded(
    name: str, which: str, said: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    start = styles["llama"].folder
    place = tmp_path / which
    if which == "itself":
        place = start
    elif which == "link":
        place.symlink_to(start)
    elif which != "no model":
        altered(start, place, **CHANGES.get(which, {}))
    if which == "no weights":
        (place / "model.safetensors").unlink()
    values = fit_values(name, start, tmp_path, str(place))
    with pytest.raises(ValueError, match=f"reference is '{place}': {said}") as caught:
        checked(values)
    if which != "no model":
        assert f"The remedy {name} compares the model with the one" in str(caught.value)


def test_a_reference_of_the_model_s_shape_is_taken(
    before: Path, styles: dict[str, Style], tmp_path: Path
) -> None:
    for name in BOTH:
        checked(fit_values(name, styles["llama"].folder, tmp_path, str(before)))
        later = {"model_name_or_path": "@base.model"}  # an earlier stage makes it
        checked(fit_values(name, styles["llama"].folder, tmp_path, later))


@pytest.mark.parametrize("name", BOTH)
def test_weights_that_are_compared_are_neither_quantised_nor_equal(
    name: str, before: Path, styles: dict[str, Style], tmp_path: Path
) -> None:
    """Debias compares logits, which a quantised model has too."""
    start = styles["llama"].folder
    copied = shutil.copytree(start, tmp_path / "copied")
    packed = altered(before, tmp_path / "packed", **CHANGES["packed"])
    cases = [
        (fit_values(name, start, tmp_path, str(packed)), "its weights are quantised"),
        (fit_values(name, packed, tmp_path, str(before)), "the model is quantised"),
        (fit_values(name, start, tmp_path, str(copied)), "equal weights in all linear layers"),
    ]
    for values, said in cases:
        if name == "debias":
            checked(values)
            continue
        with pytest.raises(ValueError, match=said):
            checked(values)


def test_check_says_it_too(
    styles: dict[str, Style], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = styles["llama"].folder
    wider = altered(start, tmp_path / "wider", **CHANGES["wider"])
    file = tmp_path / "fit.yaml"
    file.write_text(json.dumps(fit_values("debias", start, tmp_path, str(wider))))
    with pytest.raises(SystemExit) as caught:
        main(["check", str(file), "--data"])
    assert caught.value.code == 2
    assert "its hidden_size is 256" in capsys.readouterr().err


def test_both_remedies_say_what_they_compare() -> None:
    assert safelora.NEEDS_REFERENCE and safelora.COMPARES_WEIGHTS
    assert debias.NEEDS_REFERENCE and not hasattr(debias, "COMPARES_WEIGHTS")


# ------------------------------------------------------------------------------------ rounding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_reference_has_the_number_format_of_the_model(
    dtype: str, before: Path, styles: dict[str, Style], tmp_path: Path
) -> None:
    """A default of this machine would differ from the model's by rounding alone."""
    values = fit_values("debias", styles["llama"].folder, tmp_path, str(before))
    values["model"] |= {"dtype": dtype, "attn_implementation": "eager"}
    model = load_model(str(styles["llama"].folder), dtype=dtype)
    for given, wanted in (({}, dtype), ({"dtype": "bfloat16"}, "bfloat16")):
        values["reference"] = {"model_name_or_path": str(before), **given}
        body = check_body(values, "test")
        assert isinstance(body, FitRecipe)
        load = reference_loader(body, model)
        assert load is not None
        found = load()
        assert str(found.dtype) == f"torch.{wanted}"
        assert found.config._attn_implementation == "eager"


ROUND = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("scale", [1e-3, 0.05, 3.0])
@pytest.mark.parametrize("one", ROUND)
@pytest.mark.parametrize("other", ROUND)
def test_rounding_moves_no_weight_and_a_small_training_does(
    one: str, other: str, scale: float
) -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(300, 200, generator=draw) * scale
    first, second = start.to(ROUND[one]), start.to(ROUND[other])
    assert not moved(first, second)
    change = torch.randn(300, 2, generator=draw) @ torch.randn(2, 200, generator=draw) * scale
    for size in (1e-3, 1e-2):  # of a weight; half a step of bfloat16 is 2e-3 to 4e-3
        trained = (start + size * change).to(ROUND[one])
        assert moved(trained, second)
        assert not moved(trained, start.to(ROUND[other]) + size * change, size * change)


def test_one_step_of_bfloat16_is_a_move() -> None:
    """1 and the next number, 1 + 2^-7. Half of that step is what rounding can do."""
    one = torch.ones(2, 2, dtype=torch.bfloat16)
    stepped = one.clone()
    stepped[0, 1] += 2.0**-7
    assert moved(one, stepped)
    assert not moved(one.float() + 2.0**-8, stepped)
    assert not moved(one, one)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_weights_in_two_number_formats_are_equal(
    merged: bool, dtype: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    """The model is the reference, or the reference with the adapter in it: nothing but rounding is
    between them. That was taken for directions of safety."""
    style = styles["llama"]
    start = load_model(str(style.folder), dtype="float32")
    adapted = lora(start, tmp_path, scale=0.05)
    whole: Any = adapted.merge_and_unload() if merged else start
    settings = safelora.Settings(adapter=str(tmp_path), merged=merged)
    reference = load_model(str(style.folder), dtype="bfloat16")
    if dtype == "bfloat16":
        whole, reference = whole.to(torch.bfloat16), start
    subject = TinySubject(whole, style.template, reference=reference)
    with pytest.raises(safelora.EqualWeights, match="but for rounding"):
        safelora.fit(settings, subject, TRAIN, DEV)
    if not merged:
        with pytest.raises(ValueError, match="have equal weights, but for rounding"):
            debias.fit(debias.Settings(), subject, TRAIN, DEV)


def test_modules_that_safety_training_did_not_move_are_counted(
    styles: dict[str, Style], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    style = styles["llama"]
    start = load_model(str(style.folder), dtype="float32")
    adapter = lora(start, tmp_path)  # on q_proj and down_proj
    modules = len(adapter.base_model.model.model.layers) * 2
    safe = load_model(str(style.folder), dtype="float32")
    torch.manual_seed(0)
    for name, weight in safe.named_parameters():
        if name.endswith("q_proj.weight"):
            weight.data += 0.1 * torch.randn(weight.shape[0], 1) @ torch.randn(1, weight.shape[1])
    reference = load_model(str(style.folder), dtype="bfloat16")
    subject = TinySubject(safe, style.template, reference=reference)
    settings = safelora.Settings(adapter=str(tmp_path), merged=False, cosine=1.0)
    with caplog.at_level(logging.WARNING):
        (found,) = safelora.fit(settings, subject, TRAIN, DEV)
    assert found.facts["projected"] == found.facts["equal_modules"] == modules // 2
    assert (
        f"{modules // 2} of {modules} modules have equal weights in the model and in reference"
        in (caplog.text)
    )
    assert isinstance(found.remedy.change, Deltas)
