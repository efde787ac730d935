"""Model name -> weights and tokenizer: the one place that loads, quantises, merges and saves.

    model = load_model("bundled:smollm2-135m-instruct")
    tokenizer = load_tokenizer("bundled:smollm2-135m-instruct")

`bundled:` names are models that a Python package ships. They are converted once to safetensors in
the user's cache (`OVERREFUSAL_PO_CACHE`, else `~/.cache/overrefusal-po`) and checked by hash.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from overrefusal_po.model.bundled import bundled_folder, find_bundled
from overrefusal_po.model.sharding import wants_fsdp

logger = logging.getLogger(__name__)

REPACKS = "support_avx512bf16_for_cpu"
"""The switch by which bitsandbytes repacks 4-bit weights on CPUs."""


def resolve(name: str) -> str:
    """The path or hub name behind `name`; converts a bundled model the first time.

    Raises ValueError for a bundled name that is not known, or whose package is not installed.
    """
    if not name.startswith("bundled:"):
        return name
    return str(bundled_folder(find_bundled(name)[0]))


def has_cuda() -> bool:
    """Whether a CUDA GPU can be used."""
    import torch

    return bool(torch.cuda.is_available())


def has_bf16() -> bool:
    """Whether the GPU, or without one the CPU, multiplies bfloat16 matrices natively (on others it
    is slow)."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probes = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(probe() for probe in probes if probe is not None)


def default_dtype() -> str:
    """What weights are loaded in where a recipe leaves it open: bfloat16 where it is native, else
    float32."""
    return "bfloat16" if has_bf16() else "float32"


def check_available(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> None:
    """Raises ValueError where a model cannot be found; reads its config only, no weights."""
    if name.startswith("bundled:"):
        find_bundled(name)
        return
    folder = Path(name)
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(
                f"{name}: this is an adapter alone. Give the merged model (model/ beside adapter/ "
                "in a run)."
            )
        if not (folder / "config.json").is_file():
            raise ValueError(f"{name}: this folder holds no model (there is no config.json in it).")
        return
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The model {name!r} cannot be found: it is no folder here, and the hub says: "
            f"{str(error).splitlines()[0]} "
            "Give a path, a hub name (log in for gated ones: hf auth login), or "
            "bundled:smollm2-135m-instruct."
        ) from None


def check_world(*, use_cpu: bool, fsdp: bool = False, timeout_seconds: float = 1800) -> Any:
    """The accelerate state of this process, with all launched processes in one world.

    `fsdp`: whether the trainer's settings ask for it (the launcher's are looked at here).
    `timeout_seconds`: how long a process waits for the others (rank 0 makes data meanwhile); NCCL's
    own are ten minutes. Raises ValueError where the launcher started several processes that would
    train unconnected (without `use_cpu` the ranks of a CPU launch all report a world of one, train
    alone and end with 0).
    """
    from accelerate import PartialState

    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if use_cpu and (fsdp or wants_fsdp()):
        raise ValueError(
            "The accelerate config or the recipe asks for FSDP, which accelerate does on GPUs "
            "only: on CPUs every process would hold the whole model (DDP), without a word. Take a "
            "config of type MULTI_CPU, or torchrun."
        )
    try:
        state = PartialState(cpu=use_cpu, timeout=timedelta(seconds=timeout_seconds))
    except ValueError as error:
        raise ValueError(
            f"WORLD_SIZE={launched} is set in the environment, but the processes cannot be joined "
            f"({error}). Launch with "
            "accelerate launch or torchrun, which set what is missing, or unset WORLD_SIZE for a "
            "single process."
        ) from None
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, but this one sees a world of "
            f"{state.num_processes}: they would train "
            "unconnected. On CPUs set trainer.use_cpu=true and launch with torchrun or an "
            "accelerate config of type MULTI_CPU; on GPUs launch one process a GPU with a "
            "multi-GPU accelerate config."
        )
    return state


def load_tokenizer(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, padding on the left and with a pad token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        resolve(name), revision=revision, trust_remote_code=trust_remote_code, padding_side="left"
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str,
    *,
    revision: str = "main",
    dtype: str | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
) -> Any:
    """A causal language model in eval mode. `dtype` None means `default_dtype()`.

    No device map is set: the trainer or `engines.transformers` places the model.
    """
    from transformers import AutoModelForCausalLM

    extra: dict[str, Any] = {}
    if quantization_config is not None:
        extra["quantization_config"] = quantization_config
    model = AutoModelForCausalLM.from_pretrained(
        resolve(name),
        revision=revision,
        dtype=dtype or default_dtype(),
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        **extra,
    )
    for module in model.modules():
        # bitsandbytes 0.50 repacks 4-bit weights at the first CPU pass in eval mode into a form
        # without gradients
        if hasattr(module, REPACKS):
            setattr(module, REPACKS, False)
    return model.eval()


def save_merged(
    model: Any, tokenizer: Any, folder: Path, weights: Mapping[str, Any] | None = None
) -> Path:
    """Writes a whole model (adapter merged into the weights) and its tokenizer, beside `folder` and
    renamed.

    The next stage loads this path, so that its reference is this policy (TRL rebuilds a reference
    from `config._name_or_path`, which for an adapter names the base). A quantised base is written
    in the 16 or 32 bits that it computed in. `weights`: those of a sharded model without adapter
    (`gathered_weights`).
    """
    if hasattr(model, "merge_and_unload"):
        model = merged(model)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    model.save_pretrained(beside, state_dict=weights)
    tokenizer.save_pretrained(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
    return folder


def merged(adapted: Any) -> Any:
    """The base of a peft model with the adapter in its weights; the peft model cannot be used any
    more.

    A quantised base is first spread out as what its 4 bits stand for, since that is the policy that
    was trained: merging into 4 bits rounds the adapter away, and merging into the original weights
    gives another policy.
    """
    if not getattr(adapted.get_base_model(), "is_quantized", False):
        return adapted.merge_and_unload()
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config, weights = (
        adapted.active_peft_config,
        get_peft_model_state_dict(adapted, adapter_name=adapted.active_adapter),
    )
    base = adapted.unload()
    whole = get_peft_model(base.dequantize(base.dtype), config)
    set_peft_model_state_dict(whole, weights)
    return whole.merge_and_unload()


def gathered_weights(trainer: Any) -> dict[str, Any] | None:
    """The whole weights of a model that FSDP has sharded, in the first process's memory; None where
    it is whole.

    Every process has to call this.
    """
    if not trainer.is_fsdp_enabled:
        return None
    found: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model)
    return found


def model_options(section: Mapping[str, Any], *, fsdp: bool = False) -> dict[str, Any]:
    """The arguments of `load_model` out of a recipe's `model:` section (TRL ModelConfig keys);
    `fsdp` as in `check_world`.

    ModelConfig's own dtype is float32, in which a quantised model would compute; here that is
    `default_dtype()` too. Raises ValueError where FSDP could not shard the quantised weights.
    """
    from trl import ModelConfig, get_quantization_config

    given = {k: v for k, v in section.items() if k != "trust_remote_code"}
    dtype = given["dtype"] if given.get("dtype") not in (None, "auto") else default_dtype()
    config = ModelConfig(**{**given, "dtype": dtype})
    if (fsdp or wants_fsdp()) and config.load_in_4bit and config.bnb_4bit_quant_storage != dtype:
        raise ValueError(
            f"FSDP shards 4-bit weights only when they are stored in the dtype of the others: set "
            f"model.bnb_4bit_quant_storage={dtype} (it is "
            f"{config.bnb_4bit_quant_storage or 'uint8'})."
        )
    return {
        "name": config.model_name_or_path,
        "revision": config.model_revision,
        "dtype": section.get("dtype"),
        "attn_implementation": config.attn_implementation,
        "quantization_config": get_quantization_config(config),
        "trust_remote_code": bool(section.get("trust_remote_code", False)),
    }
