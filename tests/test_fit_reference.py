"""fit/reference.py: a reference that cannot be compared with the model ends a fit before weights
are loaded; one that can is loaded as the model is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Style
from test_fit import values_of
from tiny_subject import lora

from overrefusal_po.cli import main
from overrefusal_po.fit.stage import checked_prompts
from overrefusal_po.model.load import load_model, save_merged
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
