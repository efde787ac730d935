"""Model name -> weights and tokenizer. Only this module loads, quantises, merges and saves.

    model = load_model("bundled:smollm2-135m-instruct")
    tokenizer = load_tokenizer("bundled:smollm2-135m-instruct")

A `bundled:` name is a model that a Python package ships. It is converted once to safetensors in the
user's cache (`OVERREFUSAL_PO_CACHE`, else `~/.cache/overrefusal-po`), and checked by its hash.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from overrefusal_po.model import zero
from overrefusal_po.model.bundled import bundled_folder, bundled_names, find_bundled
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.finite import check_finite
from overrefusal_po.model.folders import is_model_folder
from overrefusal_po.model.folding import folded_inputs, merge
from overrefusal_po.model.hardware import default_dtype as default_dtype
from overrefusal_po.model.hardware import has_bf16 as has_bf16
from overrefusal_po.model.hardware import has_cuda as has_cuda
from overrefusal_po.model.padded import give_pad_token
from overrefusal_po.model.remedied import install
from overrefusal_po.model.remedy import load_remedy
from overrefusal_po.model.remedy_facts import warn_other_base
from overrefusal_po.model.sharding import wants_fsdp
from overrefusal_po.model.waits import limit_waits
from overrefusal_po.model.whole import (
    check_model_files,
    check_tensors,
    hashes_beside,
    named_faults,
    write_hashes,
)
from overrefusal_po.recipe.model_names import OWN_MODEL_KEYS

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import (
        BitsAndBytesConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
    )

logger = logging.getLogger(__name__)

ModelSection = Mapping[str, Any]
"""A recipe's `model:` section. Any: TRL's ModelConfig checks the value of each key."""

CPU_REPACK_SWITCH = "support_avx512bf16_for_cpu"
"""The attribute that makes bitsandbytes repack 4-bit weights on CPUs."""


class LoadOptions(TypedDict):
    """The arguments of `load_model`."""

    name: str
    revision: str
    dtype: str | None
    attn_implementation: str | None
    quantization_config: BitsAndBytesConfig | None
    trust_remote_code: bool
    remedy: str | None


def resolve(name: str) -> str:
    """The path or hub name for `name`; it converts a bundled model the first time.

    Raises ValueError for an unknown bundled name, and if its package is not installed.
    """
    if not name.startswith("bundled:"):
        return name
    return str(bundled_folder(find_bundled(name)[0]))


def check_available(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> None:
    """Raises ValueError if a model cannot be found. It reads the config only, no weights."""
    if name.startswith("bundled:"):
        find_bundled(name)
        return
    if is_model_folder(name):
        return
    if name.startswith(("/", "./", "../", "~")):
        raise ValueError(
            f"The model {name!r} cannot be found: there is no such folder. Give the path of a "
            "model (a folder with config.json), or a hub name."
        )
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The model {name!r} cannot be found: it is no folder here, and the hub says: "
            f"{str(error).splitlines()[0]} "
            "Give a path, a hub name (log in for gated ones: hf auth login), or one of "
            f"{bundled_names()}."
        ) from None


def check_world(*, use_cpu: bool, fsdp: bool = False, timeout_seconds: float = 1800) -> Any:
    """The accelerate state of this process, with all launched processes in one world.

    Any: a `PartialState`; accelerate has no types.

    Args:
        use_cpu: train on CPUs.
        fsdp: the trainer's settings ask for FSDP; the launcher's settings are read here.
        timeout_seconds: how long a process waits for the others, while rank 0 makes the data.
            NCCL's own timeout is ten minutes.

    Raises:
        ValueError: the launched processes would train unconnected. Without `use_cpu` each rank of
            a CPU launch reports a world of one, trains alone and exits with 0.
    """
    from accelerate import PartialState

    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if use_cpu and (fsdp or wants_fsdp()):
        raise ValueError(
            "The accelerate config or the recipe asks for FSDP, which accelerate does on GPUs "
            "only. On CPUs every process would hold the whole model (DDP), without a warning. "
            "Use a config of type MULTI_CPU, or torchrun."
        )
    try:
        timeout = limit_waits(timeout_seconds)
        state = PartialState(cpu=use_cpu, timeout=timeout, **zero.backend())
    except ValueError as error:
        raise ValueError(
            f"WORLD_SIZE={launched} is set in the environment, but the processes cannot be joined "
            f"({error}). Launch with accelerate launch or torchrun, which set what is missing. For "
            "a single process unset WORLD_SIZE."
        ) from None
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, but this one sees a world of "
            f"{state.num_processes}: they would train unconnected. On CPUs set "
            "trainer.use_cpu=true and launch with torchrun or an accelerate config of type "
            "MULTI_CPU. On GPUs launch one process for each GPU with a multi-GPU accelerate config."
        )
    return state


def load_tokenizer(
    name: str, *, revision: str = "main", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model: it pads on the left and has a pad token; ValueError if it can have
    none."""
    from transformers import AutoTokenizer

    place = resolve(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place, revision=revision, trust_remote_code=trust_remote_code, padding_side="left"
        )
    except Exception as error:
        if isinstance(error, MemoryError) or not Path(name).is_dir():
            raise
        # tokenizers has no error class of its own
        raise ValueError(
            f"{name}: its tokenizer cannot be read ({' '.join(str(error).split())[:200]}). A file "
            "is damaged or missing (tokenizer.json, tokenizer_config.json). Copy it again."
        ) from None
    give_pad_token(tokenizer)
    return tokenizer


def load_config(
    name: str, *, revision: str = "main", trust_remote_code: bool = False
) -> PretrainedConfig:
    """The config of a model. No weights are read."""
    from transformers import AutoConfig

    found: PretrainedConfig = AutoConfig.from_pretrained(
        resolve(name), revision=revision, trust_remote_code=trust_remote_code
    )
    return found


def load_model(
    name: str,
    *,
    revision: str = "main",
    dtype: str | None = None,
    attn_implementation: str | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    trust_remote_code: bool = False,
    remedy: str | None = None,
) -> PreTrainedModel:
    """A causal language model in eval mode. `dtype` None means `default_dtype()`.

    No device map is set: the trainer or `engines.transformers` chooses the device. The fitted
    remedy of the folder `remedy` is on the model.

    Raises ValueError for files that are damaged, tensors that are missing or not expected, a remedy
    that does not fit, and NotFiniteError for weights that are NaN or infinite.
    """
    from transformers import AutoModelForCausalLM

    fitted = None
    if remedy is not None:  # a remedy for another model is found before the weights are read
        with named_faults(name):
            config = load_config(name, revision=revision, trust_remote_code=trust_remote_code)
        fitted = load_remedy(Path(remedy), config)
    extra = {} if quantization_config is None else {"quantization_config": quantization_config}
    if Path(name).is_dir():
        check_model_files(Path(name))
    with named_faults(name):
        load = partial(
            AutoModelForCausalLM.from_pretrained,
            resolve(name),
            revision=revision,
            dtype=dtype or default_dtype(),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check_tensors` names them
            **extra,
        )
        zero.check_files(name, load)
        model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", load())
    check_tensors(name, info)
    check_finite(model, name)
    for module in model.modules():
        # At the first CPU pass in eval mode bitsandbytes 0.50 repacks 4-bit weights into a form
        # without gradients.
        if hasattr(module, CPU_REPACK_SWITCH):
            setattr(module, CPU_REPACK_SWITCH, False)
    model.eval()
    if remedy is not None and fitted is not None:
        install(model, fitted)
        warn_other_base(Path(remedy), model)
    return model


def save_merged(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """The folder with a whole model (adapter merged into the weights) and its tokenizer.

    It is written beside `folder` and then renamed. The next stage loads this path, so that its
    reference is this policy. (TRL loads a reference by the model's name, which for an adapter is
    the name of the base.) A quantised base is written in the 16 or 32 bits in which it computed.
    `weights` are those of a sharded model without adapter (`gathered_weights`).
    """
    if hasattr(model, "merge_and_unload"):
        whole = merged(cast("PeftModel", model))
    else:
        whole = cast("PreTrainedModel", model)
    stop_where_trained(whole, tokenizer)
    zero.check_not_empty(dict(whole.named_parameters()) if weights is None else weights, folder)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    whole.save_pretrained(beside, state_dict=weights)
    tokenizer.save_pretrained(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
    write_hashes(folder, hashes_beside(folder))
    return folder


def stop_where_trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds the template's end of turn to the tokens at which generation stops, if it is none.

    Servers read them from generation_config.json. A base model that got a template has none.
    """
    config = model.generation_config
    if config is None or not getattr(tokenizer, "chat_template", None):
        return
    end = ChatTemplate(tokenizer).end_of_turn_id
    known = config.eos_token_id
    ids = [i for i in (known if isinstance(known, list) else [known]) if i is not None]
    if end is not None and end not in ids:
        config.eos_token_id = [*ids, end]


def merged(adapted: PeftModel) -> PreTrainedModel:
    """The base of a peft model with the adapter in its weights.

    The peft model cannot be used after that. A quantised base is first dequantised, since those
    values are the policy that was trained. Merging into 4 bits would round the adapter away.
    Merging into the original weights would give another policy.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    whole, folded = adapted, folded_inputs(adapted)
    if getattr(adapted.get_base_model(), "is_quantized", False):
        config = adapted.active_peft_config
        weights = get_peft_model_state_dict(adapted, adapter_name=adapted.active_adapter)
        base: PreTrainedModel = adapted.unload()
        whole = get_peft_model(base.dequantize(base.dtype), config)
        set_peft_model_state_dict(whole, weights)
    return merge(whole, folded)


def gathered_weights(trainer: Trainer) -> dict[str, Tensor] | None:
    """The whole weights of a model that FSDP or ZeRO-3 has sharded; None if it is not sharded.

    They are in the memory of the first process. Every process has to call this.
    """
    if not trainer.is_fsdp_enabled:
        return zero.shared_weights(trainer.accelerator.unwrap_model(trainer.model))
    return cast("dict[str, Tensor]", trainer.accelerator.get_state_dict(trainer.model))


def model_options(section: ModelSection, *, fsdp: bool = False) -> LoadOptions:
    """The arguments of `load_model` for a recipe's `model:` section; `fsdp` as in `check_world`.

    The dtype of ModelConfig is float32, in which a quantised model would compute; here it is
    `default_dtype()`. Raises ValueError if FSDP cannot shard the quantised weights.
    """
    from trl import ModelConfig, get_quantization_config

    given = {k: v for k, v in section.items() if k not in OWN_MODEL_KEYS}
    dtype = given["dtype"] if given.get("dtype") not in (None, "auto") else default_dtype()
    config = ModelConfig(**{**given, "dtype": dtype})
    if (fsdp or wants_fsdp()) and config.load_in_4bit and config.bnb_4bit_quant_storage != dtype:
        raise ValueError(
            f"FSDP shards 4-bit weights only when they are stored in the dtype of the others: set "
            f"model.bnb_4bit_quant_storage={dtype} (it is "
            f"{config.bnb_4bit_quant_storage or 'uint8'})."
        )
    return {
        "name": cast(str, config.model_name_or_path),  # the recipe's check asks for it
        "revision": config.model_revision,
        "dtype": section.get("dtype"),
        "attn_implementation": config.attn_implementation,
        "quantization_config": get_quantization_config(config),
        "trust_remote_code": bool(section.get("trust_remote_code", False)),
        "remedy": section.get("remedy"),
    }
