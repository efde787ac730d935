"""Is our training TRL's, number for number? One step of plain TRL against one of ours, on the same
real pairs.

    python benchmarks/exactness.py [--pairs 2] [--json OUT] [--only full lora/ipo two ...]
    # a quarter of an hour

A case is one optimizer step by `trainer.train()` (SGD with learning rate 0: nothing moves); the
logged loss and the gradient that the optimizer is handed are compared. Cases are full/...,
lora/..., qlora/... (nf4, computing in float32), qlora-auto/... (nf4 as the recipes load it:
computing in bfloat16 where the CPU has it), orpo/..., derta/..., two/... and cuts/...; `--only` takes
beginnings of their names. Loss types are those that TRL's DPOConfig names. TRL knows no DeRTa: the
plain side of derta/... is its SFTTrainer on the rows and labels of our collator, so that what is
compared there is the tree of rows alone. The policy is its reference with seeded noise, so that no
loss stands at its symmetric point. The first case with a store fills it, the others read it. A line
a case: loss, greatest entry and norm of the gradient, each as a relative difference, and the bound
of all three.

Two processes (gloo): DDP hands each process the mean of both gradients, and the log has the mean of
both losses. With B pairs in each process that is, for a loss that is a mean over pairs, what one
process has on the 2B pairs. A mean over tokens (sft) or a sort over the batch (aot) is not: for
these the partner is plain TRL in two processes.

cuts/...: the same step on the same four pairs, cut into micro-batches of 4, 2 and 1. TRL's depends
on the cut, so ours is compared with ours: 4 x 1 is the plain side, and the bound is 1e-5.

Ends with 1 and a line for each difference above its bound (BOUND, CUT_BOUND).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import train_speed
from trl_rows import conversations

BOUND = {"float32": 1e-4, "bfloat16": 0.1}
"""Allowed differences (those of Gap) by compute dtype."""

NF4 = {"load_in_4bit": True, "use_bnb_nested_quant": True}
FLOAT32 = {"dtype": "float32"}
KINDS: dict[str, dict[str, Any]] = {
    "full": FLOAT32,
    "lora": FLOAT32,
    "qlora": {**NF4, **FLOAT32},
    "qlora-auto": NF4,
}
"""The `model:` section of each kind of training."""

WAYS = {
    "padded": "ours, padded rows",
    "shared": "ours, shared prefix",
    "store": "ours, shared prefix and store",
}
CUTS = {"2x2": "ours, 2 x 2", "1x4": "ours, 1 x 4"}
CUT_BOUND = 1e-5
SIGMOID = {"loss_type": ["sigmoid"]}
COMBINED: dict[str, dict[str, Any]] = {
    "sigmoid+sft": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
    "sigmoid+bco_pair+sft": {
        "loss_type": ["sigmoid", "bco_pair", "sft"],
        "loss_weights": [0.8, 0.2, 1.0],
    },
    "sigmoid, ld_alpha": {**SIGMOID, "ld_alpha": 0.5},
    "sigmoid_norm, ld_alpha": {"loss_type": ["sigmoid_norm"], "ld_alpha": 0.2},
    "sigmoid, use_weighting": {**SIGMOID, "use_weighting": True},
    "sigmoid, gradient_checkpointing": {**SIGMOID, "gradient_checkpointing": True},
}
WIDER, ROUNDED = "sigmoid, plain rows padded to 256", "sigmoid, adapter rounded by TRL"
"""WIDER shows in its padded column how far TRL is from itself. ROUNDED: TRL trains a quantised
model's adapter in bfloat16, ours is float32 (as both are in all other cases), and no agreement is
claimed."""


class Case(NamedTuple):
    """One row: trainer keys of both sides, those of the plain side alone, and the ways of ours."""

    name: str
    kind: str
    method: str = "dpo"
    keys: Mapping[str, Any] = MappingProxyType({})
    plain_keys: Mapping[str, Any] = MappingProxyType({})
    ways: tuple[str, ...] = tuple(WAYS)
    world: int = 0
    """Processes of the plain side where ours has two; 0: one process each."""


class Step(NamedTuple):
    """The logged loss and the gradient by parameter name."""

    loss: float
    gradient: dict[str, Any]


class Gap(NamedTuple):
    """|loss - plain| / |plain|; the greatest gradient difference over the greatest plain entry; |g
    - plain| / |plain|."""

    loss: float
    gradient: float
    norm: float


class Found(NamedTuple):
    """What a row shows; `bound` None where no agreement is claimed."""

    case: Case
    plain_loss: float
    gaps: dict[str, Gap]
    bound: float | None


class Base(NamedTuple):
    """What each trainer gets a twin of. `late`: the policy gets its noise when the trainer is made,
    being its reference."""

    policy: Any
    reference: Any
    late: bool


def main() -> None:
    options = arguments()
    chosen = [case for case in cases() if wanted(options, case.name)]
    if options.world:
        return in_world(options, chosen)
    report: dict[str, Any] = {"settings": vars(options), "cases": []}
    if not chosen:
        raise SystemExit(f"--only {' '.join(options.only)}: no case begins so")
    wrong = []
    for section in dict.fromkeys(case.name.split("/")[0] for case in chosen):
        ways, plain = (CUTS, "loss of 4 x 1") if section == "cuts" else (WAYS, "plain loss")
        columns = [section, plain, *ways.values(), "allowed"]
        print(f"\n| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|", flush=True)
        some = [case for case in chosen if case.name.split("/")[0] == section]
        finder = {"two": two, "cuts": cuts}.get(section, alone)
        for case, loss, gaps, bound in finder(options, some):
            texts = [
                " / ".join(f"{value:.0e}" for value in gaps[way]) if way in gaps else "-"
                for way in ways
            ]
            allowed = "-" if bound is None else f"{bound:.0e}"
            print(f"| {case.name} | {loss:.4f} | {' | '.join(texts)} | {allowed} |", flush=True)
            found = {way: value._asdict() for way, value in gaps.items()}
            report["cases"].append({"name": case.name, "plain_loss": loss, "bound": bound, **found})
            wrong += failures(case, gaps, bound)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1))
    if wrong:
        raise SystemExit("\n".join(wrong))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled:smollm2-135m-instruct")
    parser.add_argument("--pairs", type=int, default=2, help="pairs a step and process")
    parser.add_argument("--json", help="file for the result")
    parser.add_argument(
        "--only", nargs="*", default=[], help="beginnings of case names: lora full/ipo two"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--world", help=argparse.SUPPRESS
    )  # this process is one of two: the folder for its steps
    options = parser.parse_args()
    os.environ |= {
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",
    }
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import torch

    torch.set_num_threads(max(1, options.threads // int(os.environ.get("WORLD_SIZE", "1"))))
    return options


def wanted(options: argparse.Namespace, name: str) -> bool:
    return not options.only or any(name.startswith(beginning) for beginning in options.only)


def cases() -> list[Case]:
    """Every row of every table."""
    losses = {name: {"loss_type": [name]} for name in choices("loss_type")} | COMBINED
    losses |= {
        f"sigmoid, {n}": {**SIGMOID, "f_divergence_type": n}
        for n in choices("f_divergence_type")[1:]
    }
    found = []
    for kind in KINDS:
        for name, keys in losses.items():
            if kind != "qlora-auto" or name in (
                "sigmoid",
                "ipo",
                "sigmoid+sft",
            ):  # rounding hides the rest
                found.append(Case(f"{kind}/{name}", kind, keys={"label_smoothing": 0.1, **keys}))
        found.append(
            Case(f"{kind}/{WIDER}", kind, keys=SIGMOID, plain_keys={"pad_to_multiple_of": 256})
        )
        if "qlora" in kind:
            found.append(Case(f"{kind}/{ROUNDED}", kind, keys=SIGMOID))
    for kind in ("full", "lora"):
        found.append(Case(f"orpo/{kind}", kind, "orpo", ways=("padded", "shared")))
        found.append(Case(f"derta/{kind}", kind, "derta", ways=("shared",)))
        found.append(
            Case(
                f"two/{kind}/sigmoid, TRL in one process",
                kind,
                keys=SIGMOID,
                ways=("store",),
                world=1,
            )
        )
    recipe = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]}  # recipes/dpo.yaml
    found.append(Case("cuts/lora/sigmoid+sft", "lora", keys=recipe, ways=tuple(CUTS)))
    found.append(Case("cuts/lora/orpo", "lora", "orpo", ways=tuple(CUTS)))
    for name in (
        "sigmoid",
        "sigmoid+sft",
        "aot",
    ):  # with adapters, since full fine-tuning here would take 5 GB
        case = f"two/lora/{name}, TRL in two processes"
        found.append(Case(case, "lora", keys=losses[name], ways=("store",), world=2))
    return found


def choices(key: str) -> list[str]:
    """The values that TRL's DPOConfig names for a key, its default first."""
    from overrefusal_po.recipe.trl_fields import field_table

    schema = field_table("trl.DPOConfig")[key]["schema"]
    return [value for value in schema.get("anyOf", [schema])[0]["enum"] if value]


def failures(case: Case, gaps: dict[str, Gap], bound: float | None) -> Iterator[str]:
    """A line for each difference above the bound; a NaN is above it."""
    for way, value in gaps.items():
        if bound is not None and not all(number <= bound for number in value):
            name = {**WAYS, **CUTS}[way]
            yield f"{case.name}, {name}: {value} to the plain side; allowed is {bound:g}"


# -------------------------------------------------------------------------------------------- steps


def alone(options: argparse.Namespace, chosen: list[Case]) -> Iterator[Found]:
    """What each case finds in this process; each kind of model is loaded once."""
    with tempfile.TemporaryDirectory() as store:
        held, base = "", Base(None, None, late=False)
        for case in chosen:
            if case.kind != held:
                base = Base(None, None, late=False)  # so that only one is held
                held, base = case.kind, load(options, case.kind)
            plain = step(options, case, "plain", base, store)
            gaps = {way: gap(plain, step(options, case, way, base, store)) for way in case.ways}
            dtype = str(base.policy.dtype).removeprefix("torch.")
            yield Found(
                case, plain.loss, gaps, None if case.name.endswith(ROUNDED) else BOUND[dtype]
            )


def cuts(options: argparse.Namespace, chosen: list[Case]) -> Iterator[Found]:
    """Our step on four pairs in one micro-batch, against the same in two and in four."""
    four = argparse.Namespace(**{**vars(options), "pairs": 4})
    for case in chosen:
        base = load(four, case.kind)

        def cut(size: int, case: Case = case, base: Base = base) -> Step:
            keys = {
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": 4 // size,
                "train_sampling_strategy": "sequential",
            }
            return step(four, case._replace(keys={**case.keys, **keys}), "shared", base, "")

        whole = cut(4)
        gaps = {name: gap(whole, cut(int(name[0]))) for name in CUTS}
        yield Found(case, whole.loss, gaps, CUT_BOUND)


def load(options: argparse.Namespace, kind: str, *, reference: bool = True) -> Base:
    """The models of a kind. Without `reference` full fine-tuning has its start policy for one, as
    adapters have."""
    from overrefusal_po.model import load as models
    from overrefusal_po.train.policy import frozen_copy

    policy = models.load_model(
        **models.model_options({"model_name_or_path": options.model, **KINDS[kind]})
    ).train()
    if kind != "full" or not reference:
        return Base(policy, None, late=True)
    start = frozen_copy(policy)
    return Base(train_speed.disturb(policy), start, late=False)


def twin(model: Any) -> Any:
    """Other modules over the same weights: each trainer patches a forward of its own, and memory
    holds one model."""
    return model and copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def step(options: argparse.Namespace, case: Case, way: str, base: Base, store: str) -> Step:
    """One step of a fresh trainer."""
    from transformers import PrinterCallback, TrainerCallback

    shared = argparse.Namespace(
        bf16=False, gradient_checkpointing=False, steps=0, seed=options.seed
    )
    args = {
        **train_speed.settings(shared, options.pairs),
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    args |= {
        "optim": "sgd",
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
    }  # nothing moves, nothing is clipped
    args |= {**case.keys, **(case.plain_keys if way == "plain" else {})}
    maker = {"dpo": dpo, "orpo": orpo, "derta": derta}[case.method]
    trainer = maker(
        options, case, way, Base(twin(base.policy), twin(base.reference), base.late), args, store
    )
    if base.late:
        train_speed.disturb(trainer.model)
    gradient: dict[str, Any] = {}

    class Catch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gradient.update(
                (name, p.grad) for name, p in trainer.model.named_parameters() if p.grad is not None
            )

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Catch())
    trainer.train()
    [loss] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return Step(loss, gradient)


def gap(plain: Step, ours: Step) -> Gap:
    """How far ours is from plain. ValueError where plain has no gradient or one of 0, or where
    other weights are trained."""
    if plain.gradient.keys() != ours.gradient.keys() or not any(
        g.any() for g in plain.gradient.values()
    ):
        raise ValueError(
            f"{len(plain.gradient)} and {len(ours.gradient)} weights have gradients, or all are 0."
        )
    top = far = square = apart = 0.0
    for name, gradient in plain.gradient.items():
        expected, off = gradient.float(), ours.gradient[name].float() - gradient.float()
        top, far = (
            max(top, expected.abs().max().item()),
            max(far, off.abs().max().nan_to_num(float("inf")).item()),
        )
        square, apart = square + expected.norm().item() ** 2, apart + off.norm().item() ** 2
    return Gap(abs(ours.loss - plain.loss) / abs(plain.loss), far / top, (apart / square) ** 0.5)


# ----------------------------------------------------------------------------------------- trainers


def dpo(
    options: argparse.Namespace, case: Case, way: str, base: Base, args: dict[str, Any], store: str
) -> Any:
    """TRL's DPOTrainer as it is, or our factory."""
    from trl import DPOConfig, DPOTrainer

    from overrefusal_po import dpo_trainer
    from overrefusal_po.model import load as models
    from overrefusal_po.model.chat import ChatTemplate
    from overrefusal_po.pairs.make import written_pairs
    from overrefusal_po.prompts import read_source
    from overrefusal_po.train.policy import exact_adapter

    template = ChatTemplate(models.load_tokenizer(options.model))
    number = options.pairs * (2 if case.world else 1)
    pairs = sorted(
        written_pairs(read_source("starter", "train")),
        key=lambda pair: len(pair.chosen + pair.rejected),
    )
    pairs = random.Random(options.seed).sample(
        pairs[: len(pairs) // 4], number
    )  # short ones, for time
    given = {"ref_model": base.reference, "peft_config": adapter(case)}
    if way == "plain":
        rows = conversations(pairs, template)
        config, tokenizer = DPOConfig(**args), template.tokenizer
        trainer = DPOTrainer(
            base.policy, args=config, train_dataset=rows, processing_class=tokenizer, **given
        )
        if not case.name.endswith(ROUNDED):
            exact_adapter(trainer.model)
        return trainer
    folder = store if way == "store" else None
    more = {"template": template, "shared_prefix": way != "padded", "reference_store": folder}
    trainer = dpo_trainer(base.policy, pairs, args=args, **given, **more)
    if train_speed.shares(trainer) == (way == "padded"):
        raise SystemExit("this model or setting falls back to plain rows: nothing to compare")
    return trainer


def orpo(
    options: argparse.Namespace, case: Case, way: str, base: Base, args: dict[str, Any], store: str
) -> Any:
    """`trl.experimental.orpo` or ours, on text rows: to messages that would add a second end of
    turn."""
    from datasets import Dataset
    from trl.experimental import orpo as theirs

    from overrefusal_po.model import load as models
    from overrefusal_po.train import orpo as ours

    tokenizer, module = models.load_tokenizer(options.model), theirs if way == "plain" else ours
    start = tokenizer.decode(
        tokenizer("")["input_ids"]
    )  # some put a BOS before every text, also a rendered one
    rows = [
        pair._replace(prompt=pair.prompt.removeprefix(start)) for pair in texts(options, tokenizer)
    ]
    trainer = module.ORPOTrainer(
        model=base.policy,
        args=module.ORPOConfig(**args),
        train_dataset=Dataset.from_list([pair._asdict() for pair in rows]),
        processing_class=tokenizer,
        peft_config=adapter(case),
    )
    return train_speed.shared(trainer) if way == "shared" else trainer


def derta(
    options: argparse.Namespace, case: Case, way: str, base: Base, args: dict[str, Any], store: str
) -> Any:
    """TRL's SFTTrainer on the padded rows of each question, or on trees."""
    from overrefusal_po.model import load as models

    side = argparse.Namespace(
        side="plain" if way == "plain" else "ours", seed=options.seed, lora=case.kind != "full"
    )
    tokenizer = models.load_tokenizer(options.model)
    return train_speed.derta(side, texts(options, tokenizer), base.policy, tokenizer, args)


def adapter(case: Case) -> Any:
    return train_speed.lora(argparse.Namespace(lora=case.kind != "full"))


def texts(options: argparse.Namespace, tokenizer: Any) -> list[train_speed.Pair]:
    return train_speed.make_pairs(
        argparse.Namespace(work="starter", seed=options.seed), tokenizer, options.pairs
    )


# ------------------------------------------------------------------------------------ two processes


def two(options: argparse.Namespace, chosen: list[Case]) -> Iterator[Found]:
    """As `alone`: ours with shared prefix and store in two processes, plain TRL in one on both
    batches or in two."""
    import torch

    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for case in chosen:
            given = {
                "world": folder,
                "model": options.model,
                "pairs": options.pairs,
                "threads": options.threads,
            }
            command = [*torchrun, __file__, *(f"--{key}={value}" for key, value in given.items())]
            command += [f"--seed={options.seed}", "--only", case.name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{case.name}: {done.stderr[-3000:]}")
            if case.world == 1:
                both = argparse.Namespace(**{**vars(options), "pairs": 2 * options.pairs})
                plain = step(
                    both, case._replace(world=0), "plain", load(options, case.kind), folder
                )
            else:
                plain = Step(**torch.load(f"{folder}/plain.pt", mmap=True, weights_only=True))
            ours = Step(**torch.load(f"{folder}/store.pt", mmap=True, weights_only=True))
            yield Found(case, plain.loss, {"store": gap(plain, ours)}, BOUND["float32"])


def in_world(options: argparse.Namespace, chosen: list[Case]) -> None:
    """One of two processes: does the only case, and the first leaves the steps in the folder."""
    import torch

    from overrefusal_po.model import load as models
    from overrefusal_po.run.ranks import end_at_once

    state = models.check_world(use_cpu=True)
    assert state.num_processes == 2
    [case] = chosen
    for way in ("plain", "store") if case.world == 2 else ("store",):
        done = step(
            options,
            case,
            way,
            load(options, case.kind, reference=False),
            f"{options.world}/reference",
        )
        if state.is_main_process:
            torch.save(done._asdict(), f"{options.world}/{way}.pt")
    end_at_once([0])  # gloo's threads still run


if __name__ == "__main__":
    main()
