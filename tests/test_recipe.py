"""Recipes: every form of override, every fault a user can make, and the shipped recipes."""

import os
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import overrefusal_po
from overrefusal_po.named_plugs import check_plugs
from overrefusal_po.recipe.describe import describe
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.recipe.overrides import dotted, parse_overrides
from overrefusal_po.recipe.schema import PipelineRecipe, TrainRecipe
from overrefusal_po.stage_recipes import stage_bodies

FOLDER = Path(__file__).parents[1] / "recipes"
DPO = FOLDER / "dpo.yaml"
SHIPPED = sorted(p for p in FOLDER.rglob("*.yaml") if "\ntask:" in p.read_text())

TRAIN = "task: train\nmethod: dpo\nmodel: {model_name_or_path: some/model}\n"
DERTA = TRAIN.replace("dpo", "derta")
EVALUATE = "task: evaluate\nmodel: {model_name_or_path: some/model}\n"
CURATE = "task: curate\nmodel: {model_name_or_path: some/model}\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a recipe; returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def fault(path: Path, *overrides: str) -> str:
    """The text of the ValueError that a recipe raises."""
    with pytest.raises(ValueError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


# overrides


@pytest.mark.parametrize(
    ("tokens", "key", "value"),
    [
        (["--trainer.beta=0.2"], "trainer.beta", 0.2),
        (["--trainer.beta", "0.2"], "trainer.beta", 0.2),
        (["trainer.beta=0.2"], "trainer.beta", 0.2),
        (["+trainer.beta=0.2"], "trainer.beta", 0.2),
        (["--trainer.bf16"], "trainer.bf16", True),
        (["--seed", "3"], "seed", 3),
        (["--trainer.max_steps", "-1"], "trainer.max_steps", -1),
        (["--trainer.learning_rate=5e-6"], "trainer.learning_rate", 0.000005),
        (["--trainer.learning_rate=1E5"], "trainer.learning_rate", 100000.0),
        (["--trainer.bf16=True"], "trainer.bf16", True),
        (["--trainer.bf16=False"], "trainer.bf16", False),
        (["--trainer.bf16=false"], "trainer.bf16", False),
        (["--data.max_pairs=None"], "data.max_pairs", None),
        (["--data.max_pairs=null"], "data.max_pairs", None),
        (["--chat.system_prompt="], "chat.system_prompt", None),
        (["--trainer.loss_type=[sigmoid, sft]"], "trainer.loss_type", ["sigmoid", "sft"]),
        (["--trainer.loss_type=['sigmoid', 'sft']"], "trainer.loss_type", ["sigmoid", "sft"]),
        (["--data.sets=[starter, {name: xstest}]"], "data.sets", ["starter", {"name": "xstest"}]),
        (["--model.model_name_or_path=bundled:x"], "model.model_name_or_path", "bundled:x"),
        (["--name=a: b # c"], "name", "a: b # c"),
        (["--name='12'"], "name", "12"),
        (["--name=@dpo.model"], "name", "@dpo.model"),
        (["--name=a=b"], "name", "a=b"),
        (["--name=${x}"], "name", "${x}"),
        *((["--name=" + text], "name", text) for text in ("#7", "&a", "*a", "!a", "&a 5", "# ")),
        (["--name='#7'"], "name", "#7"),
        (["--name=5\nseed: 3"], "name", "5\nseed: 3"),
        (["--seed=5 # a note"], "seed", 5),
        (["--seed=null # a note"], "seed", None),
        (["--names=['&a', '#b']"], "names", ["&a", "#b"]),
        (["--data.waive.contamination/xstest=never"], "data.waive.contamination/xstest", "never"),
    ],
)
def test_an_override_has_many_forms(tokens: list[str], key: str, value: Any) -> None:
    assert parse_overrides(tokens) == [(key, value)]
    assert type(parse_overrides(tokens)[0][1]) is type(value)


@pytest.mark.parametrize("text", ["[a, &b]", "[a, *b]", "[a, !b c]", "[{a: &b}]"])
def test_a_sign_of_yaml_inside_of_a_list_is_an_error_and_not_null(text: str) -> None:
    with pytest.raises(ValueError, match=r"--names holds a sign of YAML .*quotation marks"):
        parse_overrides([f"--names={text}"])


def test_a_bare_flag_does_not_swallow_the_next_override() -> None:
    wanted = [("trainer.bf16", True), ("seed", 2)]
    assert parse_overrides(["--trainer.bf16", "--seed=2"]) == wanted
    assert parse_overrides(["--trainer.bf16", "seed=2"]) == wanted
    assert parse_overrides(["--trainer.bf16", "+seed=2"]) == wanted
    assert parse_overrides(["--seed", "2", "--trainer.bf16"]) == wanted[::-1]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--trainer.learning_rate=.inf", r"trainer\.learning_rate is inf; allowed is a finite"),
        ("--trainer.beta=.nan", r"trainer\.beta is nan; allowed is a finite"),
        ("--trainer.lr_scheduler_kwargs.min_lr=.inf", r"lr_scheduler_kwargs\.min_lr is inf"),
        ("--search.space=[{trainer.beta: [.nan]}]", r"search\.space\.0\.trainer\.beta\.0 is nan"),
        ("--generation.temperature=inf", r"generation\.temperature"),
        ("--trainer.learning_rate=0", r"learning_rate is 0, and no weight would change"),
        ("--trainer.learning_rate=-1e-5", r"learning_rate is -1e-05"),
        ("--trainer.num_train_epochs=0", r"num_train_epochs is 0, and nothing would be trained"),
        (f"--seed={2**32}", r"seed.*4294967295"),
        (f"--trainer.seed={2**32}", r"trainer\.seed is 4294967296; allowed is .* to 4294967295"),
        (f"--trainer.data_seed={2**40}", r"trainer\.data_seed is "),
    ],
)
def test_a_number_with_which_nothing_can_be_trained_is_an_error(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_recipe(DPO, [override])


def test_the_greatest_seed_and_steps_in_place_of_epochs_are_taken() -> None:
    most = 2**32 - 1
    body = load_recipe(DPO, [f"--seed={most}", f"--trainer.data_seed={most}"]).body
    assert body.seed == most
    load_recipe(DPO, ["--trainer.num_train_epochs=0", "--trainer.max_steps=5"])


def test_the_last_of_two_overrides_wins() -> None:
    assert load_recipe(DPO, ["--seed=1", "seed=2"]).body.seed == 2


@pytest.mark.parametrize("token", ["foo", "-x", "--", "---", "--1a=2", "--a..b=1"])
def test_what_is_no_override_is_an_error_that_shows_the_form(token: str) -> None:
    with pytest.raises(ValueError, match="Write"):
        parse_overrides([token])


def test_a_python_repr_of_a_mapping_is_an_error_that_names_dotted_keys() -> None:
    text = fault(DPO, "--trainer={'beta': 0.2, 'fsdp_config': {'version': 2}}")
    assert "--trainer.beta=0.2 --trainer.fsdp_config.version=2" in text


def test_an_override_makes_sections_that_the_file_lacks(write: Callable[[str], Path]) -> None:
    recipe = load_recipe(
        write(TRAIN), ["--chat.chat_template_kwargs.enable_thinking=false", "--trainer.beta=0.2"]
    )
    assert isinstance(recipe.body, TrainRecipe)
    assert recipe.body.chat.chat_template_kwargs == {"enable_thinking": False}
    assert recipe.body.trainer == {"beta": 0.2}


def test_5e_minus_6_in_a_file_is_a_number(write: Callable[[str], Path]) -> None:
    body = load_recipe(write(TRAIN + "trainer: {learning_rate: 5e-6}\n")).body
    assert isinstance(body, TrainRecipe) and body.trainer["learning_rate"] == 5e-6


def test_a_whole_number_that_a_sweep_writes_as_2_0_becomes_2() -> None:
    body = load_recipe(
        DPO, ["--trainer.max_steps=2.0", "--trainer.max_length=512.0", "--trainer.beta=1.0"]
    ).body
    assert isinstance(body, TrainRecipe)
    assert [repr(body.trainer[key]) for key in ("max_steps", "max_length", "beta")] == [
        "2",
        "512",
        "1.0",
    ]


def test_a_no_that_yaml_takes_for_false_is_a_no_again_in_files_and_overrides(
    write: Callable[[str], Path],
) -> None:
    path = write(TRAIN + "trainer: {save_strategy: no, bf16: no}\n")
    body = load_recipe(
        path, ["--trainer.eval_strategy=no", "--trainer.logging_strategy", "no"]
    ).body
    assert isinstance(body, TrainRecipe)
    names = ("save_strategy", "eval_strategy", "logging_strategy")
    assert [body.trainer[name] for name in names] == ["no"] * 3 and body.trainer["bf16"] is False


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_quantised_weights_are_trained_with_adapters_alone(
    write: Callable[[str], Path], key: str
) -> None:
    text = fault(write(TRAIN), f"--model.{key}")
    assert f"model.{key}" in text and "use_peft: true" in text
    assert load_recipe(write(TRAIN), [f"--model.{key}", "--model.use_peft"])
    assert load_recipe(write(EVALUATE), [f"--model.{key}"])  # which only reads them


# faults: what was given, what is allowed, what to do


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--trainer.betta=1", ["trainer.betta", "DPOConfig", "Did you mean beta"]),
        ("--trainer.optim=adamwx", ["trainer.optim", "'adamwx'", "adamw_torch", "one of"]),
        ("--trainer.beta=-1", ["trainer.beta", "-1", "at least 0"]),
        ("--trainer.beta=abc", ["trainer.beta", "'abc'", "text", "a number"]),
        ("--trainer.beta=None", ["trainer.beta", "null", "a number"]),
        ("--trainer.beta=[0.1]", ["trainer.beta", "[0.1]", "list", "a number"]),
        ("--trainer.beta.x=1", ["trainer.beta", "mapping", "a number"]),
        ("--trainer.max_steps=1.5", ["trainer.max_steps", "1.5", "a whole number"]),
        ("--trainer.per_device_train_batch_size=0", ["per_device_train_batch_size", "at least 1"]),
        ("--trainer.bf16=maybe", ["trainer.bf16", "'maybe'", "true or false"]),
        ("--trainer.loss_type=sigmoyd", ["trainer.loss_type", "'sigmoyd'", "sigmoid (nearest)"]),
        ("--trainer.loss_type=[sft, x]", ["trainer.loss_type", "['sft', 'x']"]),
        ("--trainer.output_dir=x", ["trainer.output_dir", "run_dir"]),
        ("--trainer.hub_token=secret", ["trainer.hub_token", "HF_TOKEN"]),
        ("--trainer=3", ["trainer is 3", "dictionary"]),
        ("--model.lora=3", ["model.lora", "ModelConfig", "lora_r"]),
        ("--model.dtype=bf16", ["model.dtype", "'bf16'", "bfloat16 (nearest)"]),
        ("--model.trust_remote_code=1", ["model.trust_remote_code", "1", "true or false"]),
        ("--model.model_name_or_path=None", ["model.model_name_or_path", "bundled:"]),
        ("--data.pears=x", ["data.pears", "Did you mean pairs"]),
        ("--data.containment=teacher", ["data.containment", "'teacher'", "'student' or 'none'"]),
        ("--data.max_pairs=0", ["data.max_pairs", "0", "greater than 0"]),
        ("--chat.systemprompt=x", ["chat.systemprompt", "Did you mean system_prompt"]),
        ("--chat.system_prompt=12", ["chat.system_prompt", "12", "quotes"]),
        ("--generation.temprature=1", ["generation.temprature", "Did you mean temperature"]),
        ("--generation.top_p=2", ["generation.top_p", "2", "less than or equal to 1"]),
        ("--generation.max_new_tokens=abc", ["generation.max_new_tokens", "'abc'", "integer"]),
        ("--sed=1", ["sed", "Did you mean seed"]),
        ("--zzz=1", ["zzz", "Known keys", "trainer"]),
        ("--learning_rate=1", ["learning_rate is not a known", "stands in trainer.learning_rate."]),
        ("--data.lora_r=8", ["data.lora_r is not a known", "It stands in model.lora_r."]),
        ("--trainer.opening=8", ["of DPOConfig", " more. It stands in data.opening."]),
        (
            "--data.max_new_tokens=8",
            ["stands in generation.max_new_tokens and in hold.max_new_tokens and in select"],
        ),
        ("--seed=-1", ["seed", "-1", "greater than or equal to 0"]),
        ("--method=ppo", ["method", "'ppo'", "one of sft, derta, dpo, orpo, cpo, kto"]),
        ("--task=trian", ["task", "'trian'", "train, curate, fit, evaluate, pipeline"]),
        ("--task=None", ["task", "None", "train, curate, fit, evaluate, pipeline"]),
    ],
)
def test_a_wrong_override_names_what_was_given_and_what_is_allowed(
    override: str, parts: list[str]
) -> None:
    text = fault(DPO, override)
    assert str(DPO) in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("method: dpo\n", ["task is missing", "train, curate, fit, evaluate, pipeline"]),
        ("", ["task is missing"]),
        ("- a\n- b\n", ["mapping", "list"]),
        ("task: train\nmodel: [a\nx: 1\n", ["not YAML", "line 2"]),
        ("task: train\n\tmodel: a\n", ["not YAML", "tab", "line 2"]),
        ("task: train\ntask: curate\n", ["duplicate key task", "line 2"]),
        ("task: train\nmodel: {model_name_or_path: a}\n", ["method is missing", "--method=value"]),
        ("task: train\nmethod: dpo\n", ["model is missing"]),
        ("task: train\nmethod: dpo\nmodel: {}\n", ["model.model_name_or_path is missing"]),
        (TRAIN + "run_dir: '${nope}'\n", ["run_dir", "recipes fill in none"]),
        (
            "program: a.yaml\nparameters: {}\n",
            ["is no recipe but a sweep of wandb", ": wandb sweep "],
        ),
        (
            DERTA + "data: {helpful: [genral]}\n",
            ["data.helpful.0", "'genral'", "'general' or 'benign'"],
        ),
        (DERTA + "data: {rto_dropout: 1.0}\n", ["data.rto_dropout", "1.0", "less than 1"]),
        (DERTA + "data: {pairs: starter}\n", ["data.pairs", "triples"]),
        (TRAIN.replace("dpo", "sft") + "data: {triples: starter}\n", ["data.triples", "prompts"]),
        (EVALUATE + "data: {sets: []}\n", ["data.sets", "at least 1"]),
        (
            EVALUATE + "data: {split: testt}\n",
            ["data.split", "'testt'", "'train', 'dev' or 'test'"],
        ),
        (
            EVALUATE + "trainer: {beta: 1}\n",
            ["trainer is not a known key of task evaluate; it is one of task train. Take it out."],
        ),
        (EVALUATE + "rejects: {}\n", ["rejects is not", "of task evaluate", "task curate. Take"]),
        (EVALUATE + "traner: {}\n", ["traner is not a known key. Known keys: ", "tamper"]),
        ("task: pipeline\nstages: {a: {}}\nhold: {}\n", ["hold", "Write it in a stage: stages.N"]),
        (CURATE + "rejects: {prefil: x}\n", ["rejects.prefil", "Did you mean prefill"]),
        (CURATE + "data: {benine: x}\n", ["data.benine", "Did you mean benign"]),
        ("task: pipeline\nstages: {}\n", ["stages", "at least 1"]),
        ("task: pipeline\nstages: {train: 3}\n", ["stages.train is 3"]),
        ("task: pipeline\nstagse: {}\n", ["stages is missing"]),
    ],
)
def test_a_wrong_file_names_the_place(
    write: Callable[[str], Path], text: str, parts: list[str]
) -> None:
    path = write(text)
    found = fault(path)
    assert str(path) in found
    for part in parts:
        assert part in found


@pytest.mark.parametrize("sign", ["[]", "{}"], ids=["lists", "mappings"])
def test_a_recipe_that_is_nested_too_deep_is_named(write: Callable[[str], Path], sign: str) -> None:
    opening = sign[0] + ("a: " if sign == "{}" else "")
    path = write(f"{TRAIN}x: {opening * 2000}{sign[1] * 2000}\n")
    assert fault(path) == f"{path} is nested too deep for a recipe. Take levels out."


LONG_KEY = "A1b2C3d4E5f6G7h8I9j0"
SECRETS = {
    "name": f"sk-proj-{LONG_KEY}",
    "engine": f"sk-{LONG_KEY}",
    "engine.extra_body.foo": f"Bearer sk-{LONG_KEY}",
    "engine.base_url": f"https://host/sk-{LONG_KEY}/v1",
    "judge.base_url": f"http://me:{LONG_KEY}@host/v1",
    "model.model_name_or_path": f"https://me:hf_{LONG_KEY}@huggingface.co/m",
    "trainer.hub_token": f"hf_{LONG_KEY}",
}


@pytest.mark.parametrize("key", SECRETS)
def test_a_key_anywhere_in_a_recipe_is_refused_and_not_repeated(
    write: Callable[[str], Path], key: str
) -> None:
    path = write("task: train")
    with pytest.raises(ValueError, match=rf"{re.escape(key)} holds what looks like") as caught:
        load_recipe(path, [f"--{key}={SECRETS[key]}"])
    assert LONG_KEY not in str(caught.value) and "environment variable" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["risk-2024assessmentofeverything", "hf_llama3_finetuned_2024_06", "sk-learn-models-2"]
)
def test_a_name_that_is_like_a_key_is_none(write: Callable[[str], Path], name: str) -> None:
    path = write("task: evaluate\nmodel: {model_name_or_path: m}\ndata: {sets: [a.jsonl]}\n")
    assert load_recipe(path, [f"--run_dir=runs/{name}"]).body.run_dir == f"runs/{name}"


@pytest.mark.parametrize("value", ["9" * 5000, "2024-13-45"])
def test_a_value_that_yaml_cannot_read_is_named_with_its_file(
    write: Callable[[str], Path], value: str
) -> None:
    path = write(f"task: train\nseed: {value}\n")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_recipe(path)


def test_an_override_that_is_nested_too_deep_is_named() -> None:
    with pytest.raises(ValueError, match=r"--data\.sets is nested too deep"):
        parse_overrides(["--data.sets=" + "[" * 2000 + "]" * 2000])


def test_a_missing_file_says_how_to_get_recipes(tmp_path: Path) -> None:
    assert "overrefusal-po init" in fault(tmp_path / "none.yaml")
    assert "overrefusal-po init" in fault(tmp_path)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00task")
    text = fault(path)
    assert str(path) in text and "UTF-8" in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--judge=llm", "judge 'llm': model is missing. Give the model's name at the server."),
        ("--data.attacks=[pair]", "attacker is missing. Give the model that writes the prompts."),
    ],
)
def test_a_setting_that_a_plug_needs_is_explained(override: str, words: str) -> None:
    body = load_recipe(DPO.with_name("evaluate.yaml"), [override]).body
    with pytest.raises(ValueError, match=words) as caught:
        check_plugs(body)
    assert "It stands beside the name: {name: ..., " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (TRAIN + "data: {pairs: {name: ultrafedback}}\n", "ultrafeedback"),
        (TRAIN + "select: {sets: [startre]}\n", "starter"),
        (TRAIN + "select: {judge: refusl}\n", "refusal"),
    ],
)
def test_every_plug_of_a_training_is_checked_with_the_recipe(
    write: Callable[[str], Path], text: str, name: str
) -> None:
    with pytest.raises(ValueError, match=f"Did you mean {name}"):
        check_plugs(load_recipe(write(text)).body)


# where values come from


def test_describe_says_where_each_value_comes_from() -> None:
    recipe = load_recipe(DPO, ["--trainer.beta=0.2", "--trainer.bf16=false", "--data.max_pairs=5"])
    rows = {key: (value, origin) for key, value, origin in describe(recipe)}
    assert rows["trainer.learning_rate"] == (5e-4, "file")
    assert rows["trainer.beta"] == (0.2, "override")
    assert rows["data.max_pairs"] == (5, "override")
    assert rows["generation.max_new_tokens"] == (40, "default")
    assert rows["trainer.bf16"] == (False, "override")
    assert rows["trainer.use_cpu"] == ("auto", "auto (hardware)")
    assert rows["model.dtype"] == ("auto", "auto (hardware)")
    assert rows["trainer.seed"] == (0, "auto (seed)")
    assert "trainer.weight_decay" not in rows


def test_describe_everything_adds_what_trl_would_take() -> None:
    rows = {
        key: (value, origin) for key, value, origin in describe(load_recipe(DPO), everything=True)
    }
    assert rows["trainer.weight_decay"] == (0.0, "default (TRL)")
    assert rows["trainer.beta"] == (0.3, "file")


def test_describe_names_each_key_once() -> None:
    keys = [
        key
        for key, _, _ in describe(
            load_recipe(DPO, ["--trainer.use_cpu", "--trainer.seed=1"]), everything=True
        )
    ]
    assert len(keys) == len(set(keys))


def test_a_checked_recipe_is_frozen() -> None:
    body = load_recipe(DPO).body
    with pytest.raises(ValueError, match="frozen"):
        body.seed = 3  # type: ignore[misc]


# the shipped recipes


def test_there_are_shipped_recipes() -> None:
    assert len(SHIPPED) >= 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    bodies = (
        stage_bodies(recipe).values() if isinstance(recipe.body, PipelineRecipe) else [recipe.body]
    )
    for body in bodies:
        check_plugs(body)
    assert bodies
    assert "launch" not in recipe.resolved()
    assert not any(key.startswith("launch") for key in recipe.origin)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_shipped_recipe_is_plain_yaml_with_our_keys(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert isinstance(values.pop("launch"), str)
    values.pop("base", None)
    resolved = dict(dotted(load_recipe(path).resolved()))
    for key in dict(dotted(values)):
        assert key in resolved or isinstance(load_recipe(path).body, PipelineRecipe), key


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_shipped_recipe_is_a_script_that_launches_itself_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(overrefusal_po, "launch", calls.append)
    compile(path.read_text(), str(path), "exec")
    runpy.run_path(str(path), run_name="__mp_main__")
    assert calls == []
    runpy.run_path(str(path), run_name="__main__")
    assert calls == [str(path)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_shipped_recipe_opens_with_what_it_does(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    "line",
    [
        'name: "x ${oc.env:HOME}"',
        "name: ${oc.env:HOME}",
        "name: ${title}",
        'engine: {name: openai, base_url: "http://127.0.0.1:1/${oc.env:HOME}/v1"}',
        'data: {sets: ["${oc.env:HOME}/prompts.jsonl"]}',
        '"${oc.env:HOME}": 1',
    ],
)
def test_a_recipe_cannot_read_the_environment(line: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"task: evaluate\nmodel: {{model_name_or_path: m}}\n{line}\n")
    with pytest.raises(ValueError, match="recipes fill in none") as error:
        load_recipe(file)
    assert os.environ["HOME"] not in str(error.value).replace(str(tmp_path), "")
