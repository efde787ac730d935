"""zero.py: DeepSpeed for real. Two processes over gloo share gradients (ZeRO-2) or weights (ZeRO-3),
and train what one process trains.

`make test-deepspeed` installs deepspeed and runs these tests; where it is not installed they are
skipped. What is refused before weights load is in test_sharding.py.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Style, write_rank_script
from machine_faults import disk, grow
from safetensors.torch import load_file, save_file
from test_distributed import TORCHRUN
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from overrefusal_po.model.zero import check_files, loading_whole
from overrefusal_po.records import PreferencePair, Prompt, Triple, write_jsonl

pytestmark = [
    pytest.mark.deepspeed,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None
        and os.environ.get("DEEPSPEED_TESTS") != "required",
        reason="deepspeed is not installed: make test-deepspeed",
    ),
]

STAGES = {
    stage: {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": stage},
    }
    for stage in (2, 3)
}
SETTINGS = {
    "max_steps": 2,
    "learning_rate": 0.1,
    "optim": "sgd",  # whose steps are as close as the gradients are
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "max_length": 256,
    "disable_tqdm": True,
}


def case(method: str, stage: int, **more: Any) -> dict[str, Any]:
    """A training of the rank script; `lora`, `store` (reference log-probs ahead), `trainer`, `resume`."""
    return {"method": method, "stage": stage, **more}


CASES = {
    "dpo-3": case("dpo", 3, store=True),
    "dpo-3-reference": case("dpo", 3),  # a second model, shared out too
    "kto-3": case("kto", 3),
    "orpo-3": case("orpo", 3),
    "derta-3": case("derta", 3),
    "sft-3": case("sft", 3),
    "dpo-3-lora": case("dpo", 3, lora=True, store=True),
    "kto-3-lora": case("kto", 3, lora=True),
    "orpo-3-lora": case("orpo", 3, lora=True),
    "derta-3-lora": case("derta", 3, lora=True),
    "sft-3-lora": case("sft", 3, lora=True),
    "dpo-2": case("dpo", 2, store=True),
    "kto-2": case("kto", 2),
    "orpo-2": case("orpo", 2),
    "derta-2": case("derta", 2),
    "dpo-2-lora": case("dpo", 2, lora=True),
    "derta-2-lora": case("derta", 2, lora=True),
    "dpo-3-saved": case("dpo", 3, store=True, trainer={"save_strategy": "steps", "save_steps": 1}),
    "dpo-3-resumed": case("dpo", 3, store=True, resume="dpo-3-saved"),
}

# trains each case, saves it, and writes down losses; with ranks by DeepSpeed, else alone
RANK = """
import importlib, json, os, sys
from pathlib import Path
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, PeftModel
import overrefusal_po
from overrefusal_po.model import load as models
from overrefusal_po.model.parts import load_start
from overrefusal_po.model.zero import is_shared_out, loading_whole
from overrefusal_po.recipe.methods import find_method
from overrefusal_po.model.zero import check_files, loading_whole
from overrefusal_po.records import PreferencePair, Triple, read_jsonl
from overrefusal_po.train.saved import check_saved, live_probe
from overrefusal_po.train.settings import trainer_config

model, cases = sys.argv[1], json.loads(sys.argv[2])
together, found = "RANK" in os.environ, {}
pairs = read_jsonl(Path("pairs.jsonl"), PreferencePair)
answers = [pair.prompt.model_copy(update={"reference": pair.chosen}) for pair in pairs]
rows = {"derta": read_jsonl(Path("triples.jsonl"), Triple), "sft": answers}
for name, case in cases.items():
    method, lora, folder = case["method"], case.get("lora"), Path("together" if together else "alone", name)
    args = {**case["settings"], "output_dir": str(folder / "out"), "per_device_train_batch_size": 2 if method == "kto" else 1}
    if together:
        AcceleratorState._reset_state()  # accelerate allows one a process
        args["deepspeed"] = case["deepspeed"]
    else:
        args["gradient_accumulation_steps"] = 2
    given = {"rto_dropout": 0} if method == "derta" else {}
    if case.get("store"):
        given["reference_store"] = folder / "store"
    module, _, config = find_method(method).config.rpartition(".")
    args = trainer_config(getattr(importlib.import_module(module), config), args)
    options = {**models.model_options({"model_name_or_path": model}), "dtype": "float32"}
    loaded = load_start(options, trains_all=not lora)  # as a recipe's training loads it
    begun = is_shared_out(loaded)
    torch.manual_seed(0)
    peft = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False) if lora else None
    make = getattr(overrefusal_po, f"{method}_trainer")
    trainer = make(loaded, rows.get(method, pairs), args=args, peft_config=peft, **given)
    resume = str(folder.parent / case["resume"] / "out" / "checkpoint-1") if case.get("resume") else None
    trainer.train(resume_from_checkpoint=resume)
    weights, probe = models.gathered_weights(trainer), live_probe(trainer)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    found[name] = {"losses": losses, "shared": [begun, weights is not None], "type": str(trainer.accelerator.distributed_type)}
    if trainer.accelerator.is_main_process:
        with loading_whole():
            trained = trainer.accelerator.unwrap_model(trainer.model)
            if lora:
                trained.save_pretrained(folder / "adapter", state_dict=weights)
            if lora and weights is not None:
                trained, weights = PeftModel.from_pretrained(models.load_model(model, dtype="float32"), folder / "adapter"), None
            models.save_merged(trained, trainer.processing_class, folder / "model", weights)
            check_saved(probe, folder / "model")
    print(name, found[name], flush=True)
Path(f"losses-{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(found))
"""


def run(command: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Starts a command in `folder`, without a GPU, in a process group of its own."""
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    return subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**kept, "CUDA_VISIBLE_DEVICES": "", **environment},
        start_new_session=True,
    )


def ended(child: subprocess.Popen[str]) -> str:
    """What a command said, which has to end with exit code 0."""
    said = child.communicate(timeout=1500)[0]
    assert child.returncode == 0, said[-4000:]
    return said


@pytest.fixture(scope="module")
def trained(
    styles: dict[str, Style],
    pairs: list[PreferencePair],
    triples: list[Triple],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with every case trained by two ranks under together/, by one process under alone/."""
    folder = tmp_path_factory.mktemp("zero")
    write_rank_script(folder, RANK)
    write_jsonl(folder / "pairs.jsonl", pairs[:4])
    write_jsonl(folder / "triples.jsonl", triples[:2])
    cases = {
        name: {
            **one,
            "settings": {**SETTINGS, **one.get("trainer", {})},
            "deepspeed": STAGES[one["stage"]],
        }
        for name, one in CASES.items()
    }
    arguments = ["rank.py", str(styles["llama"].folder), json.dumps(cases)]
    ended(run([sys.executable, *arguments], folder))
    ended(run([*TORCHRUN, *arguments], folder))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_process_trains(trained: Path, name: str) -> None:
    """Losses, the gathered adapter, and every weight of the saved model, merged if there is one."""
    one, other, alone = (
        json.loads((trained / f"losses-{who}.json").read_text())[name] for who in (0, 1, "alone")
    )
    assert one["type"] == "DistributedType.DEEPSPEED" and one["losses"] == other["losses"]
    zero_3 = CASES[name]["stage"] == 3
    assert one["shared"] == [zero_3, zero_3], "loaded and trained in parts"
    assert one["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    parts = [Path("model", "model.safetensors")]
    parts += [Path("adapter", "adapter_model.safetensors")] * bool(CASES[name].get("lora"))
    for part in parts:
        saved, wanted = (load_file(trained / who / name / part) for who in ("together", "alone"))
        assert saved.keys() == wanted.keys() and all(len(weight) for weight in saved.values())
        for key, weight in wanted.items():
            assert torch.allclose(saved[key], weight, atol=1e-5), f"{part}: {key}"


def write_own(file: Path, pairs: list[PreferencePair]) -> None:
    """Writes pairs with prompts that no benchmark has: those of the fixture are refused as
    XSTest's."""
    asked = [Prompt.of(f"Which way do I fold napkin number {n}?", kind="benign") for n in range(6)]
    own = [pair.model_copy(update={"prompt": q}) for pair, q in zip(pairs, asked, strict=True)]
    write_jsonl(file, own)


def recipe(folder: Path, model: str, **more: Any) -> list[str]:
    """The command that trains a recipe under ZeRO-3 in two processes, its run folder named by
    --run_dir."""
    body = {
        "task": "train",
        "method": "dpo",
        "model": {"model_name_or_path": model, "dtype": "float32", **more},
        "data": {"pairs": "pairs.jsonl", "allow_no_anchor": True},
        "trainer": {
            "deepspeed": "zero3.json",
            "max_steps": 6,
            "max_length": 256,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 1,
            "logging_steps": 1,
            "save_steps": 2,
        },
    }
    name = "lora.yaml" if more else "full.yaml"
    (folder / name).write_text(yaml.safe_dump(body))
    (folder / "zero3.json").write_text(json.dumps(STAGES[3]))
    return [*TORCHRUN, "-m", "overrefusal_po", name]


@pytest.mark.parametrize(
    "adapter", [{}, {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}]
)
def test_a_killed_run_goes_on_to_what_an_undisturbed_one_saves(
    adapter: dict[str, Any], styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    write_own(tmp_path / "pairs.jsonl", pairs)
    command = recipe(tmp_path, str(styles["llama"].folder), **adapter)
    said = ended(run([*command, "--run_dir=whole"], tmp_path))
    assert "the saved model agrees with the live one" in said
    child = run([*command, "--run_dir=killed"], tmp_path)
    sign = tmp_path / "killed" / "checkpoints" / "checkpoint-4" / "hashes.json"
    deadline = time.monotonic() + 900
    while not sign.is_file() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    ranks = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    for process in (*ranks, child.pid):  # torchrun starts each rank in a session of its own
        os.kill(int(process), signal.SIGKILL)
    child.wait(timeout=60)
    assert sign.is_file() and not (tmp_path / "killed" / "model").exists()
    for later in (tmp_path / "killed" / "checkpoints").glob("checkpoint-6"):
        shutil.rmtree(later)  # the kill may have come late
    ended(run([*command, "--run_dir=killed"], tmp_path))
    parts = [Path("model", "model.safetensors")]
    parts += [Path("adapter", "adapter_model.safetensors")] * bool(adapter)
    for part in parts:
        assert (tmp_path / "whole" / part).read_bytes() == (tmp_path / "killed" / part).read_bytes()


def test_a_disk_that_fills_while_processes_write_their_parts(
    styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """There is room for one checkpoint and a half: no half one counts, and with room again the same
    command goes on to what an undisturbed run saves."""
    write_own(tmp_path / "pairs.jsonl", pairs)
    command = recipe(tmp_path, str(styles["llama"].folder))
    ended(run([*command, "--run_dir=whole"], tmp_path))
    first = tmp_path / "whole" / "checkpoints" / "checkpoint-2"
    size = sum(file.stat().st_size for file in first.rglob("*") if file.is_file())
    with disk(tmp_path / "small", f"size={size * 3 // 2}") as small:
        command = [*command, f"--run_dir={small / 'run'}"]
        child = run(command, tmp_path)
        said = " ".join(child.communicate(timeout=900)[0].split())
        assert child.returncode != 0, said[-3000:]
        assert "disk is full" in said and "give the same command again" in said
        status = json.loads((small / "run" / "status.json").read_text())
        assert (status["state"], status["exit_code"]) == ("failed", 1)
        assert not (small / "run" / "model").exists()
        grow(small, f"size={size * 20}")
        said = " ".join(ended(run(command, tmp_path)).split())
        assert "checkpoint-4 is incomplete" in said and "checkpoints/checkpoint-2" in said
        part = Path("model", "model.safetensors")
        assert (small / "run" / part).read_bytes() == (tmp_path / "whole" / part).read_bytes()


@pytest.mark.parametrize("stage", [2, 3])
def test_a_gradient_that_is_not_finite_ends_the_training(
    stage: int, styles: dict[str, Style], pairs: list[PreferencePair], tmp_path: Path
) -> None:
    """DeepSpeed has taken its step by then, or left it out: the weights may stay finite."""
    write_own(tmp_path / "pairs.jsonl", pairs)
    command = recipe(tmp_path, str(styles["llama"].folder))
    (tmp_path / "zero3.json").write_text(json.dumps(STAGES[stage]))
    child = run([*command, "--run_dir=run", "--trainer.beta=1e38"], tmp_path)
    said = " ".join(child.communicate(timeout=900)[0].split())
    assert child.returncode != 0, said[-3000:]
    assert "The loss or its gradient became NaN or infinite at step 1" in said
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert not (tmp_path / "run" / "model").exists()


def test_files_are_checked_before_processes_read_them_together(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    """With ZeRO-3 transformers itself says nothing of tensors that the model does not have."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    folder = styles["llama"].folder
    shutil.copytree(folder, tmp_path / "more")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "odd": torch.zeros(1)}, tmp_path / "more" / "model.safetensors")
    held = HfDeepSpeedConfig(STAGES[3])
    for place, fault in ((folder, None), (tmp_path / "more", "does not have: odd")):
        load = partial(AutoModelForCausalLM.from_pretrained, place, output_loading_info=True)
        with pytest.raises(ValueError, match=fault) if fault else nullcontext():
            check_files(str(place), load)
    assert held.is_zero3() and is_deepspeed_zero3_enabled(), "the next load is shared out again"
    with loading_whole():
        assert not is_deepspeed_zero3_enabled()
    unset_hf_deepspeed_config()


# one rank of two: loads models in parts, and compares them with what it loads alone
PARTS = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from sharded import Peak, own_bytes
from transformers.integrations import HfDeepSpeedConfig
from overrefusal_po.exact.own_part import own_part
from overrefusal_po.model import load as models, zero
from overrefusal_po.model.finite import NotFiniteError
from overrefusal_po.model.parts import load_start

with zero.joining({"deepspeed": {"zero_optimization": {"stage": 3}}}):
    models.check_world(use_cpu=False)
base = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
configs = {"float32": base, "bfloat16": {**base, "bf16": {"enabled": True}}}
options, found = models.model_options({"model_name_or_path": "x"}), {}


def load(name, dtype):
    return load_start({**options, "name": str(Path(sys.argv[1], name)), "dtype": dtype}, trains_all=True)


def tensors(model):
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


for name in ("tied", "odd", "half"):
    for dtype, config in configs.items():
        held = HfDeepSpeedConfig(config)
        parts = load(name, dtype)
        sent = models.load_model(str(Path(sys.argv[1], name)), dtype=dtype)
        copies = [zero.shared_copy(parts), zero.gathered_copy(parts)]
        with zero.loading_whole():
            whole = models.load_model(str(Path(sys.argv[1], name)), dtype=dtype)
        wrong, own, expected = [], tensors(parts), tensors(whole)
        assert own.keys() == expected.keys() and zero.is_shared_out(parts), "another model"
        assert not parts.training and parts.generation_config.to_dict() == whole.generation_config.to_dict()
        for key, weight in own.items():
            with zero.gathered(weight):
                same = weight.dtype == expected[key].dtype and torch.equal(weight, expected[key])
            halves = [torch.equal(own_part(weight), own_part(tensors(m)[key])) for m in (sent, *copies)]
            tied = [[w is m.get_input_embeddings().weight for w in [tensors(m)[key]]] for m in (parts, whole)]
            wrong += [key] * (not same or not all(halves) or tied[0] != tied[1])
            if hasattr(weight, "ds_tensor"):
                begin = int(os.environ["RANK"]) * weight.ds_tensor.numel()
                wrong += [key] * bool(weight.ds_tensor[max(0, weight.ds_numel - begin):].any())
        found[f"{name}, {dtype}"] = wrong
        trained = [any(w.requires_grad for w in m.parameters()) for m in (parts, *copies)]
        assert trained[0], "all weights are trained"
held, peak = HfDeepSpeedConfig(base), Peak()
before = peak.begin()
kept = load("wide", "float32")
found["peak"] = peak.most - before
for fault in ("nan", "untied", "older"):
    if fault == "older":  # a DeepSpeed without the name that is used
        import deepspeed
        del deepspeed.zero.Init._convert_to_deepspeed_param
    try:
        load("odd" if fault == "older" else fault, "float32")
    except (ValueError, NotFiniteError) as error:
        found[fault] = f"{type(error).__name__}: {error}"
Path(f"parts-{os.environ['RANK']}.json").write_text(json.dumps(found))
"""

SIZES = {
    "vocab_size": 100,
    "hidden_size": 8,
    "intermediate_size": 13,  # an odd number of biases, of which the last process pads its part
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_bias": True,
}
WIDE = {"vocab_size": 2**15, "hidden_size": 512}


def written(folder: Path, *, tied: bool, dtype: torch.dtype, **sizes: Any) -> None:
    """Writes a random Llama in several files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**SIZES, **sizes}, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder, max_shard_size="6KB" if not sizes else "1GB")


@pytest.fixture(scope="module")
def read_in_parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """{rank: what PARTS found} in two processes."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    written(folder / "tied", tied=True, dtype=torch.bfloat16)
    written(folder / "odd", tied=False, dtype=torch.float32)
    written(folder / "half", tied=False, dtype=torch.float16)
    written(folder / "wide", tied=True, dtype=torch.bfloat16, **WIDE)
    for fault in ("nan", "untied"):
        shutil.copytree(folder / "odd", folder / fault)
    config = json.loads((folder / "untied" / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (folder / "untied" / "config.json").write_text(json.dumps(config))
    index = json.loads((folder / "nan" / "model.safetensors.index.json").read_text())
    file = folder / "nan" / index["weight_map"]["lm_head.weight"]
    head = load_file(file)
    head["lm_head.weight"][-1, -1] = torch.nan  # in the part of the second process
    save_file(head, file, metadata={"format": "pt"})
    write_rank_script(folder, PARTS, "parts.py")
    benchmarks = str(Path(__file__).parents[1] / "benchmarks")
    ended(run([*TORCHRUN, "parts.py", str(folder), benchmarks], folder))
    return {rank: json.loads((folder / f"parts-{rank}.json").read_text()) for rank in "01"}


@pytest.mark.parametrize("rank", "01")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tied", "odd", "half"])
def test_parts_are_byte_for_byte_what_a_whole_load_gives(
    read_in_parts: dict[str, dict[str, Any]], name: str, dtype: str, rank: str
) -> None:
    """Gathered weights and buffers, ties, copies for a reference; padding is zero."""
    assert read_in_parts[rank][f"{name}, {dtype}"] == []


@pytest.mark.parametrize("rank", "01")
def test_no_process_holds_more_than_its_share(
    read_in_parts: dict[str, dict[str, Any]], rank: str
) -> None:
    """The embedding is nearly all of the model here, and is never whole."""
    whole = 4 * WIDE["vocab_size"] * WIDE["hidden_size"]
    assert read_in_parts[rank]["peak"] < 1.3 * whole / 2 + 8e6


@pytest.mark.parametrize("rank", "01")
def test_what_cannot_be_shared_out_is_said_by_all_processes(
    read_in_parts: dict[str, dict[str, Any]], rank: str
) -> None:
    found = read_in_parts[rank]
    assert "NotFiniteError" in found["nan"] and "NaN or infinite" in found["nan"]
    assert "tie_word_embeddings: false" in found["untied"] and "lm_head.weight" in found["untied"]
    assert "has no _convert_to_deepspeed_param" in found["older"]
    assert "Install deepspeed==0.19.8" in found["older"]
