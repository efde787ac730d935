"""What a full DPO takes in each of several processes: while it loads, and while it trains.

    python benchmarks/sharded.py [--forms today fsdp2 zero3 ...] [--ranks 2] [--layers 16]

A model with random weights (151 million at 16 layers) is written to a temporary folder. Each form
is one launch of processes on CPUs, joined by gloo, that train two steps. A form is a row of FORMS;
those of ZeRO need deepspeed on PYTHONPATH (see `make test-deepspeed`).

The memory is the process's own (RssAnon): pages of files that it maps and shared libraries do not
count. What is read from a file and then converted does.

The limit of the load is the same for every form: (weights / ranks) x 1.3 + one layer. The weights
are those of all models that the form holds, in float32: the policy, and the reference if it is a
second model. A layer is a block of the model. A model's largest tensor may be larger than that, and
counts as its largest layer in the column `embedding`: it is the loosest reading of the limit.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fsdp_on_cpus import fsdp_on_cpus, plugin_options

CONFIG = Path(__file__).parents[1] / "recipes" / "accelerate" / "fsdp2.yaml"
TOKENIZER = "bundled:smollm2-135m-instruct"
SETTINGS = {
    "max_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "max_length": 256,
}
ON_CPUS = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
"""What FSDP2 needs on CPUs; for DeepSpeed the package sets its own."""


class Peak(threading.Thread):
    """The largest RssAnon of this process since `begin`, in bytes, read every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.ended = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.002):
            self.most = max(self.most, own_bytes())

    def begin(self) -> int:
        """Forgets what was; returns what is held now."""
        self.most = own_bytes()
        return self.most


def own_bytes() -> int:
    """RssAnon of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not tell RssAnon")


Rows, Settings = list[Any], Mapping[str, Any]


def today(folder: str, rows: Rows, args: Settings) -> Any:
    """Every process loads policy and reference whole; FSDP2 shards both afterwards."""
    from overrefusal_po import dpo_trainer
    from overrefusal_po.model import load as models

    launch_fsdp(once=False)
    reference = models.load_model(folder, dtype="float32")
    return dpo_trainer(folder, rows, args={**args, **ON_CPUS}, ref_model=reference)


def fsdp2_whole(folder: str, rows: Rows, args: Settings) -> Any:
    """Every process loads the policy whole; sharded, it computes the reference's log-probs."""
    from overrefusal_po import dpo_trainer

    launch_fsdp(once=False)
    return dpo_trainer(folder, rows, args={**args, **ON_CPUS})


def fsdp2(folder: str, rows: Rows, args: Settings) -> Any:
    """Each process reads its part of the policy, which computes the reference's log-probs."""
    from overrefusal_po import dpo_trainer

    launch_fsdp(once=True)
    return dpo_trainer(folder, rows, args={**args, **ON_CPUS})


def zero(
    folder: str, rows: Rows, args: Settings, *, stage: int, second: bool, whole: bool = False
) -> Any:
    """DeepSpeed's ZeRO. `second`: the reference is a second model; without it the start policy
    computes its log-probs. `whole`: transformers loads, and the first process reads all."""
    from trl import DPOConfig

    from overrefusal_po import dpo_trainer
    from overrefusal_po.model import load as models
    from overrefusal_po.train.settings import trainer_config

    deepspeed = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": stage},
    }
    given = {**args, "deepspeed": deepspeed, "precompute_ref_log_probs": not second}
    config = trainer_config(DPOConfig, given)
    model = models.load_model(folder, dtype="float32") if whole else folder
    return dpo_trainer(model, rows, args=config)


def launch_fsdp(*, once: bool) -> None:
    """FSDP2 by the recipes' own config; `once`: weights are not loaded by every process."""
    fsdp_on_cpus({**plugin_options(CONFIG), "cpu_ram_efficient_loading": once})


class Form(NamedTuple):
    """A way to train: what joins this process to the others and returns the trainer."""

    make: Callable[[str, Rows, Settings], Any]
    models: int = 1
    """How many models are held: the policy, and a reference beside it."""


FORMS = {
    "today": Form(today, 2),
    "fsdp2_whole": Form(fsdp2_whole),
    "fsdp2": Form(fsdp2),
    "zero3_whole": Form(partial(zero, stage=3, second=False, whole=True)),
    "zero3": Form(partial(zero, stage=3, second=False)),
    "zero3_reference": Form(partial(zero, stage=3, second=True), 2),
    "zero2": Form(partial(zero, stage=2, second=False)),
    "zero2_reference": Form(partial(zero, stage=2, second=True), 2),
}


def child(form: str, folder: str, out: Path) -> None:
    """One process: trains, and writes what it took to `out`."""
    import overrefusal_po.model.load  # libraries are in memory before the load
    import overrefusal_po.train.trl_private  # noqa: F401

    if form.startswith("zero"):
        import deepspeed  # noqa: F401

    rank, peak = os.environ["RANK"], Peak()
    before, loaded = peak.begin(), []

    class Loaded(logging.Handler):
        """Notes the peak when the reference pass begins: by then the policy is loaded."""

        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("reference log-probs"):
                loaded.append(peak.most)

    logger = logging.getLogger("overrefusal_po")
    logger.setLevel(logging.INFO)
    logger.addHandler(Loaded())
    args = {**SETTINGS, "output_dir": str(out / f"out-{form}")}
    trainer = FORMS[form].make(folder, rows(), args)
    loaded.append(peak.most)
    peak.begin()
    held: list[dict[str, float]] = []
    trainer.add_callback(spy(trainer, held))
    trainer.train()
    found = {
        "load": loaded[0] - before,
        "train": peak.most - before,
        **held[-1],
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
    }
    (out / f"{form}-{rank}.json").write_text(json.dumps(found))


def spy(trainer: Any, held: list[dict[str, float]]) -> Any:
    """A callback that notes the bytes of weights, gradients and optimiser states of this process.

    DeepSpeed keeps gradients in buffers of its own: they read as 0. Its 32-bit copies of the
    weights, which the optimiser steps on, count as states.
    """
    from transformers import TrainerCallback

    class Spy(TrainerCallback):
        """Reads after the gradients are there, and after the optimiser's step."""

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            weights = list(trainer.model.parameters())
            held.append(
                {
                    "weights": sum(map(local_bytes, weights)),
                    "gradients": sum(local_bytes(w.grad) for w in weights if w.grad is not None),
                }
            )

        def on_step_end(self, *_: Any, **__: Any) -> None:
            held[-1]["optimiser"] = optimiser_bytes(trainer)

    return Spy()


def optimiser_bytes(trainer: Any) -> int:
    """The bytes of the optimiser's states in this process, and of the copies that it steps on."""
    from torch.optim import Optimizer

    own = {id(weight) for weight in trainer.model.parameters()}
    optimiser = trainer.optimizer
    while hasattr(optimiser, "optimizer"):  # accelerate's is around DeepSpeed's, around torch's
        optimiser = optimiser.optimizer
    assert isinstance(optimiser, Optimizer)
    kept = [copied for copied in optimiser.state if id(copied) not in own]
    for state in optimiser.state.values():
        kept += [value for value in state.values() if hasattr(value, "numel") and value.numel() > 1]
    return sum(map(local_bytes, kept))


def local_bytes(tensor: Any) -> int:
    """The bytes of this process's part of a tensor."""
    from overrefusal_po.exact.own_part import own_part

    local = own_part(tensor)
    return int(local.numel() * local.element_size())


def rows() -> list[Any]:
    """Four short pairs."""
    from overrefusal_po.records import PreferencePair, Prompt

    return [
        PreferencePair(
            id=str(number),
            prompt=Prompt.of(f"How do I stop program number {number}?", kind="benign"),
            chosen="Use kill and the number of the process.",
            rejected="I can't help with that.",
        )
        for number in range(4)
    ]


def make_model(folder: str, layers: int) -> dict[str, int]:
    """Writes a random model and a tokenizer.

    Returns its bytes in float32: of all weights, of a block (layer), and of its largest tensor.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from overrefusal_po.model import load as models

    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12}
    config = LlamaConfig(
        vocab_size=49152, num_hidden_layers=layers, tie_word_embeddings=True, **sizes
    )
    model = LlamaForCausalLM(config)
    # as models are published; what is read is then converted, and is memory of the process
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="200MB")
    models.load_tokenizer(TOKENIZER).save_pretrained(folder)
    return {
        "weights": 4 * sum(weight.numel() for weight in model.parameters()),
        "layer": 4 * sum(weight.numel() for weight in model.model.layers[0].parameters()),
        "largest": 4 * max(weight.numel() for weight in model.parameters()),
    }


def measure(form: str, folder: str, ranks: int, out: Path) -> list[dict[str, Any]]:
    """What each process of one launch took."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc_per_node", str(ranks), __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = [*command, "--child", form, "--folder", folder, "--out", str(out)]
    done = subprocess.run(child, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{form}: {done.stderr[-3000:]}")
    return [json.loads((out / f"{form}-{rank}.json").read_text()) for rank in range(ranks)]


def limits_of(form: str, size: Mapping[str, int], ranks: int) -> tuple[float, float]:
    """The limit of the load in MB: with a block as the layer, and with the largest tensor."""
    share = 1.3 * FORMS[form].models * size["weights"] / ranks
    return (share + size["layer"]) / 1e6, (share + max(size["layer"], size["largest"])) / 1e6


def row_of(form: str, found: list[dict[str, Any]], limits: tuple[float, float]) -> str:
    """A row of the table, in MB: the load of each process, what most took, and the host."""
    most = {
        key: max(rank[key] for rank in found) / 1e6
        for key in ("load", "train", "weights", "gradients", "optimiser")
    }
    host = {key: sum(rank[key] for rank in found) / 1e6 for key in ("load", "train")}
    each = ", ".join(f"{rank['load'] / 1e6:.0f}" for rank in found)
    shares = [f"{most['load'] / limit:.2f}" for limit in limits]
    held = [f"{most[key]:.0f}" for key in ("train", "weights", "gradients", "optimiser")]
    losses = ", ".join(f"{loss:.6f}" for loss in found[0]["losses"])
    cells = [form, str(FORMS[form].models), each, f"{limits[0]:.0f}", *shares]
    cells += [f"{host['load']:.0f}", *held, f"{host['train']:.0f}", losses]
    return f"| {' | '.join(cells)} |"


COLUMNS = (
    "form",
    "models",
    "load, each process",
    "limit",
    "load / limit",
    "embedding",
    "load, host",
    "train",
    "weights",
    "gradients",
    "optimiser",
    "train, host",
    "losses",
)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        from overrefusal_po.run.ranks import end_at_once

        child(options.child, options.folder, options.out)
        end_at_once([0])  # gloo's threads still run
    with tempfile.TemporaryDirectory() as place:
        folder = f"{place}/model"
        size = make_model(folder, options.layers)
        print(
            f"{size['weights'] / 1e6:.0f} MB of weights in float32, a block of "
            f"{size['layer'] / 1e6:.0f} MB, an embedding of {size['largest'] / 1e6:.0f} MB, "
            f"{options.ranks} processes\n\n| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS)
        )
        for form in options.forms:
            found = measure(form, folder, options.ranks, Path(place))
            print(row_of(form, found, limits_of(form, size, options.ranks)), flush=True)


if __name__ == "__main__":
    main()
