"""A tiny model and a tokenizer -> a GGUF file, and packages that ship such a file in parts."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

NORMAL, CONTROL = 1, 3
"""GGUF's kinds of tokens."""

FINE, COARSE = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q5_0


def write_gguf(
    path: Path, model: Any, tokenizer: Any, *, embedding: Any = None, head: Any = None
) -> Path:
    """`path` with the model; `embedding` and `head` are the types that these matrices get.

    None keeps float32. An output matrix that is tied is written only if `head` is given.
    """
    architecture = model.config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    write_config(writer, model.config)
    write_tokenizer(writer, tokenizer)
    kinds = {"token_embd": embedding, "output": head}
    for name, values in tensors(model, architecture).items():
        kind = kinds.get(name.rpartition(".")[0])
        if name == "output.weight" and model.config.tie_word_embeddings and head is None:
            continue
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_config(writer: Any, config: Any) -> None:
    """The shape of the model."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)


def write_tokenizer(writer: Any, tokenizer: Any) -> None:
    """The tokens, merges and chat template of a byte-level tokenizer."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    writer.add_token_types([CONTROL if i in special else NORMAL for i in range(len(tokenizer))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def tensors(model: Any, architecture: str) -> dict[str, Any]:
    """{GGUF name: float32 values}; Llama's q and k in the order of its converter."""
    names = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(names[architecture], model.config.num_hidden_layers)
    found = {}
    for name, value in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        values = value.float().numpy()
        if architecture == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = values.shape[0] // model.config.head_dim
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2)
            values = np.ascontiguousarray(values.reshape(-1, values.shape[-1]))
        found[f"{table.get_name(stem)}.{suffix}"] = values
    return found


def install(folder: Path, package: str, version: str, file: str, content: bytes) -> None:
    """A package in `folder` (to be put on sys.path) that ships one file.

    Its code raises an error: it may not be imported.
    """
    module = package.replace("-", "_")
    (folder / module / "data").mkdir(parents=True)
    (folder / module / "__init__.py").write_text("raise AssertionError('it was imported')")
    (folder / module / "data" / file).write_bytes(content)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n{module}/data/{file},,\n")
