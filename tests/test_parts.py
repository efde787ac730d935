"""A model that processes read in parts: which files allow it, and which numbers a part holds."""

from itertools import combinations_with_replacement
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from overrefusal_po.model import load as models
from overrefusal_po.model.parts import ROWS, readable_in_parts
from overrefusal_po.model.zero_parts import read_flat

TENSORS = {
    "matrix": torch.arange(15.0).reshape(5, 3),
    "cube": torch.arange(24.0).reshape(2, 3, 4),
    "row": torch.arange(7.0),
    "single": torch.tensor(3.0),
}


@pytest.mark.parametrize("name", TENSORS)
def test_any_numbers_of_a_tensor_are_read(name: str, tmp_path: Path) -> None:
    file, tensor = str(tmp_path / "x.safetensors"), TENSORS[name]
    save_file(TENSORS, file)
    flat = tensor.reshape(-1)
    for begin, end in combinations_with_replacement(range(len(flat) + 1), 2):
        found = read_flat("my/model", file, name, tuple(tensor.shape), begin, end)
        assert found.tolist() == flat[begin:end].tolist(), (begin, end)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, str(tmp_path / "x.safetensors"))
    with pytest.raises(ValueError, match=r"my/model: tensors of another shape .* matrix"):
        read_flat("my/model", str(tmp_path / "x.safetensors"), "matrix", (3, 5), 0, 3)


def test_a_file_that_is_cut_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(TENSORS, str(file))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="my/model: its weights cannot be read"):
        read_flat("my/model", str(file), "matrix", (5, 3), 0, 3)


def in_parts(folder: Path, head: Tensor | None) -> bool:
    """Whether a tied model is read in parts; its files hold `head` for the output too."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors if head is None else {**tensors, "lm_head.weight": head}, file)
    options = models.model_options({"model_name_or_path": str(folder), "dtype": "float32"})
    return readable_in_parts(options) is not None


def test_a_tied_tensor_with_values_of_its_own_is_refused(tmp_path: Path) -> None:
    """Sharded, a training would have lost them; loaded whole, transformers unties them."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=ROWS + 5, num_attention_heads=2, tie_word_embeddings=True, **sizes
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    embedding = model.model.embed_tokens.weight.detach().clone()
    assert in_parts(tmp_path, None), "the tensor stands there once"
    assert in_parts(tmp_path, embedding), "twice, with equal values"
    embedding[-1, -1] += 1
    for head in (embedding, embedding[:-1].contiguous()):
        with pytest.raises(ValueError, match=r"lm_head\.weight is model\.embed_tokens\.weight"):
            in_parts(tmp_path, head)
