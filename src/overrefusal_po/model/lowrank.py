"""Low-rank changes of a model's weights -> plain weights, or an adapter that any server loads.

    fold_deltas(model, deltas, 1.0, inputs)                  # W += B A, in place
    save_adapter(deltas, 1.0, Path("run/adapter"), base="my/model")

`inputs` are mean inputs of the modules: weights of 16 bits keep the change for them whole
(`folding.rounded`). Weights of 32 bits need none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from overrefusal_po.model.folding import rounded
from overrefusal_po.model.padded import read_texts

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from overrefusal_po.model.remedy import Deltas


def fold_deltas(
    model: PreTrainedModel, change: Deltas, strength: float, inputs: Mapping[str, Tensor]
) -> PreTrainedModel:
    """The model with the change in its weights, which are changed in place. A quantised model is
    dequantised first: in 4 bits the change would be rounded away.

    ValueError for a matrix that is the token embedding too.
    """
    import torch

    check_untied(model, change)
    if getattr(model, "is_quantized", False):
        model = model.dequantize(model.dtype)
    with torch.no_grad():
        for path, down in change.down.items():
            weight = cast("Linear", model.get_submodule(path)).weight
            delta = (change.up[path].float() @ down.float()) * strength
            wanted = weight.float() + delta.to(weight.device)
            given = inputs.get(path)
            found = wanted.to(weight.dtype)
            if given is not None:
                found = rounded(wanted, weight.dtype, given.to(weight.device))
            weight.copy_(found)
    return model


def check_untied(model: PreTrainedModel, change: Deltas) -> None:
    """Raises ValueError if a changed matrix is the token embedding too, which would change with
    it."""
    embedding = model.get_input_embeddings()
    shared = getattr(embedding, "weight", None)
    for path in change.down:
        if getattr(model.get_submodule(path), "weight", None) is shared:
            raise ValueError(
                f"{path} shares its weight with the token embedding, so a change of it would "
                "change what every token means. Leave that module out of the remedy."
            )


def save_adapter(change: Deltas, strength: float, folder: Path, *, base: str) -> Path:
    """The folder of a peft LoRA adapter that adds exactly this change: its alpha is its rank.

    All matrices have one rank, as servers want it; smaller ones are filled up with zeros.
    """
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    rank = max(down.shape[0] for down in change.down.values())
    tensors = {}
    for path, down in change.down.items():
        a, b = down.float().cpu(), change.up[path].float().cpu() * strength
        missing = rank - a.shape[0]
        above = f"base_model.model.{path}"
        tensors[f"{above}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, missing))
        tensors[f"{above}.lora_B.weight"] = torch.nn.functional.pad(b, (0, missing))
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(change.down),
        base_model_name_or_path=base,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "adapter_model.safetensors")
    config.save_pretrained(str(folder))
    return folder


def mean_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    paths: Sequence[str],
    *,
    batch_size: int,
) -> dict[str, Tensor]:
    """{path: (F,) the mean input of a linear module at the last token of each text}, in float32."""
    import torch

    sums: dict[str, Tensor] = {}

    def add(path: str, given: tuple[Tensor, ...]) -> None:
        rows = given[0][:, -1].detach().float().sum(0)
        sums[path] = sums[path] + rows if path in sums else rows

    def hook(path: str) -> object:
        return lambda _, given: add(path, given)

    modules: dict[str, Module] = {path: model.get_submodule(path) for path in paths}
    handles = [m.register_forward_pre_hook(hook(path)) for path, m in modules.items()]  # type: ignore[arg-type]
    try:
        with torch.inference_mode():
            for start in range(0, len(texts), batch_size):
                read_texts(model, tokenizer, texts[start : start + batch_size])
    finally:
        for handle in handles:
            handle.remove()
    return {path: rows / len(texts) for path, rows in sums.items()}
