"""What a full DPO takes in each of several processes: while it loads, and while it trains.

    python benchmarks/sharded.py [--forms today fsdp2_whole fsdp2] [--ranks 2] [--layers 16]

A model with random weights (151 million at 16 layers) is written to a temporary folder. Each form
is one launch of processes on CPUs, joined by gloo, that train two steps. A form is a function of
FORMS. The memory is the process's own (RssAnon: file pages and shared libraries do not count).
The limit of the load is (weights / ranks) x 1.3 + one layer.
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
from pathlib import Path
from typing import Any

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
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": 256,
}


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


def today(folder: str, rows: list[Any], args: Mapping[str, Any]) -> Any:
    """Every process loads policy and reference whole; FSDP2 shards both afterwards."""
    from overrefusal_po import dpo_trainer
    from overrefusal_po.model import load as models

    launch_fsdp(once=False)
    reference = models.load_model(folder, dtype="float32")
    return dpo_trainer(folder, rows, args=args, ref_model=reference)


def fsdp2_whole(folder: str, rows: list[Any], args: Mapping[str, Any]) -> Any:
    """Every process loads the policy whole; sharded, it computes the reference's log-probs."""
    from overrefusal_po import dpo_trainer

    launch_fsdp(once=False)
    return dpo_trainer(folder, rows, args=args)


def fsdp2(folder: str, rows: list[Any], args: Mapping[str, Any]) -> Any:
    """Each process reads its part of the policy, which computes the reference's log-probs."""
    from overrefusal_po import dpo_trainer

    launch_fsdp(once=True)
    return dpo_trainer(folder, rows, args=args)


def launch_fsdp(*, once: bool) -> None:
    """FSDP2 by the recipes' own config; `once`: weights are not loaded by every process."""
    fsdp_on_cpus({**plugin_options(CONFIG), "cpu_ram_efficient_loading": once})


FORMS: dict[str, Callable[[str, list[Any], Mapping[str, Any]], Any]] = {
    form.__name__: form for form in (today, fsdp2_whole, fsdp2)
}
"""Each joins this process to the others, and returns the trainer."""


def child(form: str, folder: str, out: Path) -> None:
    """One process: trains, and writes what it took to `out`."""
    import overrefusal_po.model.load  # libraries are in memory before the load
    import overrefusal_po.train.trl_private  # noqa: F401

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
    trainer = FORMS[form](folder, rows(), args)
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
    """A callback that notes the bytes of weights, gradients and optimiser states of this process."""
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
            states = trainer.optimizer.state.values()
            held[-1]["optimiser"] = sum(
                local_bytes(value)
                for state in states
                for value in state.values()
                if hasattr(value, "numel") and value.numel() > 1
            )

    return Spy()


def local_bytes(tensor: Any) -> int:
    """The bytes of this process's part of a tensor."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
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
    """Writes a random model and a tokenizer; returns its bytes in float32, and those of a layer."""
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
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    return {"weights": 4 * sum(w.numel() for w in model.parameters()), "layer": 4 * layer}


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


def row_of(form: str, found: list[dict[str, Any]], limit: float) -> str:
    """A row of the table, in MB: of the process that took most, and of the host."""
    most = {
        key: max(rank[key] for rank in found) / 1e6
        for key in ("load", "train", "weights", "gradients", "optimiser")
    }
    host = (sum(rank[key] for rank in found) / 1e6 for key in ("load", "train"))
    losses = ", ".join(f"{loss:.6f}" for loss in found[0]["losses"])
    cells = [most["load"], most["load"] / limit, *[most[k] for k in list(most)[1:]], *host]
    numbers = [f"{cell:.2f}" if at == 1 else f"{cell:.0f}" for at, cell in enumerate(cells)]
    return f"| {form} | {' | '.join(numbers)} | {losses} |"


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
        return child(options.child, options.folder, options.out)
    with tempfile.TemporaryDirectory() as place:
        folder = f"{place}/model"
        size = make_model(folder, options.layers)
        limit = (1.3 * size["weights"] / options.ranks + size["layer"]) / 1e6
        print(
            f"{size['weights'] / 1e6:.0f} MB of weights in float32, a layer of "
            f"{size['layer'] / 1e6:.0f} MB, {options.ranks} processes; limit of the load "
            f"{limit:.0f} MB\n\n| form | load | load / limit | train | weights | gradients | "
            "optimiser | load, host | train, host | losses |\n|" + "---|" * 10
        )
        for form in options.forms:
            found = measure(form, folder, options.ranks, Path(place))
            print(row_of(form, found, limit), flush=True)


if __name__ == "__main__":
    main()
