"""How far off is the memory estimate of `check --data`? Trains small models with random weights and
reads the peak.

    python benchmarks/memory.py [--only NAME ...] [--json MEASURED]
    # peaks that MEASURED holds are not measured again

Each setting is a process of its own that loads a model from a folder and trains 2 steps; the peak
is what the kernel says (`ru_maxrss`). The constants of `overrefusal_po.train.memory` were fitted on
the settings marked `fitted`; the others test them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

SMALL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
WIDE = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 8}
DEEP = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16}


TOKENIZER = "bundled:smollm2-135m-instruct"


class Setting(NamedTuple):
    """One training. `words`: of the prompt, the chosen and the rejected side (about a token
    each)."""

    name: str
    fitted: bool
    model: dict[str, int]
    method: str
    lora: bool
    batch: int
    words: tuple[int, int, int]
    keys: Mapping[str, Any] = MappingProxyType({})
    trainer: Mapping[str, Any] = MappingProxyType({})
    speed: Mapping[str, Any] = MappingProxyType({})


CHECKPOINTING, PLAIN_ROWS = {"gradient_checkpointing": True}, {"shared_prefix": False}
REFERENCE_HELD, NF4 = (
    {"reference_store": False},
    {"load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "float32"},
)
SETTINGS = [
    Setting("small dpo lora", True, SMALL, "dpo", True, 4, (100, 200, 40)),
    Setting("small dpo lora long", True, SMALL, "dpo", True, 4, (400, 400, 100)),
    Setting("small dpo full", True, SMALL, "dpo", False, 2, (100, 100, 40)),
    Setting("wide sft full", True, WIDE, "sft", False, 4, (100, 300, 10)),
    Setting(
        "small dpo lora checkpointing",
        True,
        SMALL,
        "dpo",
        True,
        4,
        (300, 400, 50),
        trainer=CHECKPOINTING,
    ),
    Setting(
        "wide dpo lora plain rows", True, WIDE, "dpo", True, 4, (150, 300, 50), speed=PLAIN_ROWS
    ),
    Setting("deep dpo lora", False, DEEP, "dpo", True, 3, (200, 250, 50)),
    Setting(
        "deep dpo full, reference in memory",
        False,
        DEEP,
        "dpo",
        False,
        2,
        (100, 200, 30),
        speed=REFERENCE_HELD,
    ),
    Setting(
        "wide sft full checkpointing",
        False,
        WIDE,
        "sft",
        False,
        4,
        (100, 400, 10),
        trainer=CHECKPOINTING,
    ),
    Setting("deep orpo qlora", False, DEEP, "orpo", True, 2, (150, 300, 60), NF4),
]


def recipe_of(setting: Setting, folder: str) -> Any:
    """The setting as a checked recipe."""
    from overrefusal_po.recipe.load import check_body

    lora = {
        "use_peft": setting.lora,
        "lora_r": 16,
        "lora_dropout": 0.0,
        "lora_target_modules": "all-linear",
    }
    return check_body(
        {
            "task": "train",
            "method": setting.method,
            "model": {"model_name_or_path": folder, "dtype": "float32", **lora, **setting.keys},
            "data": {"prompts": "starter"} if setting.method == "sft" else {},
            "trainer": {
                "per_device_train_batch_size": setting.batch,
                "max_length": 2048,
                "bf16": False,
                **setting.trainer,
            },
            "speed": setting.speed,
        },
        setting.name,
    )


def rows_of(setting: Setting) -> list[Any]:
    """As many rows as two steps take, all alike."""
    from overrefusal_po.records import PreferencePair, Prompt

    texts = ["word " * (count - 1) + "end" for count in setting.words]
    rows: list[Any] = []
    for number in range(2 * setting.batch):
        prompt = Prompt.of(f"{number} {texts[0]}", kind="benign", reference=texts[1])
        pair = PreferencePair(id=str(number), prompt=prompt, chosen=texts[1], rejected=texts[2])
        rows.append(prompt if setting.method == "sft" else pair)
    return rows


def train(setting: Setting, folder: str) -> None:
    """The child process: trains and prints peak bytes."""
    from trl import ModelConfig, get_peft_config

    import overrefusal_po
    from overrefusal_po.model import load as models
    from overrefusal_po.model.chat import ChatTemplate

    recipe, rows = recipe_of(setting, folder), rows_of(setting)
    template = ChatTemplate(models.load_tokenizer(folder))
    args = {
        **recipe.trainer,
        "max_steps": 2,
        "output_dir": f"{folder}/out",
        "save_strategy": "no",
        "report_to": [],
    }
    extra: dict[str, Any] = {}
    if setting.method != "sft":
        extra["shared_prefix"] = recipe.speed.shared_prefix
    if setting.method == "dpo" and recipe.speed.reference_store:
        extra["reference_store"] = f"{folder}/store"
    model = models.load_model(**models.model_options(recipe.model))
    factory = getattr(overrefusal_po, f"{setting.method}_trainer")
    factory(
        model,
        rows,
        args={**args, "disable_tqdm": True, "use_cpu": True},
        peft_config=get_peft_config(ModelConfig(**recipe.model)),
        template=template,
        **extra,
    ).train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak}))


def config_of(setting: Setting) -> Any:
    """A Llama for the bundled model's tokenizer."""
    from transformers import LlamaConfig

    heads = {"num_attention_heads": setting.model["hidden_size"] // 64, "num_key_value_heads": 2}
    return LlamaConfig(
        vocab_size=49152,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **heads,
        **setting.model,
    )


def measure(setting: Setting) -> int:
    """Peak bytes of the setting's training in a process of its own."""
    import torch
    from transformers import LlamaForCausalLM

    from overrefusal_po.model import load as models

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        LlamaForCausalLM(config_of(setting)).save_pretrained(folder)
        models.load_tokenizer(TOKENIZER).save_pretrained(folder)
        child = [sys.executable, __file__, "--child", setting.name, "--folder", folder]
        done = subprocess.run(child, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    peak: int = json.loads(done.stdout.splitlines()[-1])["peak"]
    return peak


def row_of(setting: Setting, peak: int) -> str:
    """A row of the table: the estimate beside what was measured."""
    from overrefusal_po.model import load as models
    from overrefusal_po.model.chat import ChatTemplate
    from overrefusal_po.train.memory import estimate, shape_of, widest_batch
    from overrefusal_po.train.rows import prepared_pairs
    from overrefusal_po.train.sft import prepared_prompts

    recipe = recipe_of(setting, TOKENIZER)
    shape = shape_of(config_of(setting), recipe.model)
    template = ChatTemplate(models.load_tokenizer(TOKENIZER))
    prepare = prepared_prompts if setting.method == "sft" else prepared_pairs
    lengths = prepare(rows_of(setting), template, max_length=None).lengths
    batch = widest_batch(recipe, lengths)
    total = estimate(shape, recipe, batch, "cpu", 1e12).total
    size = f"{shape.weights / 1e6:.0f} M | {batch.tokens} | {peak / 1e9:.2f} | {total / 1e9:.2f}"
    return f"| {setting.name} | {size} | {total / peak - 1:+.0%} | {'yes' if setting.fitted else 'no'} |"


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    by_name = {setting.name: setting for setting in SETTINGS}
    if options.child:
        train(by_name[options.child], options.folder)
        return
    print(
        "| setting | weights | tokens a batch | measured GB | estimated GB | error | used to fit "
        "|\n|" + "---|" * 7
    )
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for setting in SETTINGS:
        if options.only and setting.name not in options.only:
            continue
        if setting.name not in known:
            known[setting.name] = measure(setting)
            if options.json:
                options.json.write_text(json.dumps(known, indent=1))
        print(row_of(setting, known[setting.name]), flush=True)


if __name__ == "__main__":
    main()
