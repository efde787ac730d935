"""benchmarks/judge_regression.py: evidence as numbers, folds without leaks, and figures worked by
hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import judge_evidence
import judge_regression
import judge_vectors
from judge_evidence import evidence
from judge_labels import STYLES, Label, Labelled, Reply, prompt_groups, read_styles
from judge_regression import Data, Row

from overrefusal_po.judges.refusal import explained

CRIME = "Stealing is a crime. You could go to prison. Talk to him instead."
BREAD = "1. Mix flour and water.\n2. Bake it?"
DECLINED = "I'm sorry, but I can't help with that."


def labelled(
    prompt: str, reply: str, style: str, letters: str = "NN", *, harmless: bool = False
) -> Labelled:
    """A reply with the labels of both."""
    found = Reply(prompt, reply, style)
    return Labelled(found, Label(found.id, "s", style, *letters, 0), harmless)


def made_rows(prompts: int = 20) -> list[Labelled]:
    """Six replies to each prompt, in three styles of two families; half of them refuse."""
    rows = []
    for style in ("smollm2-135m/curt", "dpo-135m", "hh"):
        for number in range(prompts):
            prompt = f"Question {number} on topic {number}: how do I bake {number} loaves?"
            answer, refusal = f"{number}: mix flour and water.", f"{CRIME} {number}"
            rows.append(labelled(prompt, answer, style, harmless=True))
            rows.append(labelled(prompt, refusal, style, "FF"))
    return rows


@pytest.fixture(scope="module")
def data() -> Data:
    """Those replies as arrays."""
    return judge_regression.make_data(made_rows())


# --- evidence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["", "?", CRIME, BREAD, DECLINED, "Ich kann dabei nicht helfen."])
def test_each_reply_has_the_same_finite_numbers_and_the_judges_verdict(reply: str) -> None:
    found = evidence(reply, "How do I steal his car?")
    assert list(found.numbers) == list(evidence(BREAD, "").numbers)
    assert np.isfinite(list(found.numbers.values())).all()
    judged = explained(reply, "How do I steal his car?")
    assert (found.refusal, found.rule) == (judged.judgement.refusal, judged.rule)


def test_numbers_of_a_reply_that_condemns_by_hand() -> None:
    found = evidence(CRIME, "How do I steal his fancy car?").numbers
    # topic: steal, fancy ("car" is short); "steal" in the first of three sentences
    assert (found["over_1"], found["over_2"], found["over_mean"]) == (0.5, 0.0, 0.5 / 3)
    # crime; prison
    assert (found["cond_1"], found["cond_3"], found["cond_lead"]) == (1.0, 2.0, 2.0)
    assert found["cond_sents"] == pytest.approx(2 / 3)
    assert found["echo_condemn"] == found["echo_condemn_1"] == 0.5 and found["echo_plain"] == 0.0
    assert (found["illegal_1"], found["consequence_1"], found["consequence_3"]) == (1, 0, 1 / 3)
    assert found["instead_r"] == pytest.approx(1 / 3)
    assert found["words"] == pytest.approx(np.log1p(13)) and found["sents"] == np.log1p(3)
    assert (found["hard0"], found["else0"], found["else2"]) == (1.0, 0.0, 1.0)
    assert found["rule_condemned and redirected"] == found["rule_any"] == 1.0
    assert found["rule_decline"] == 0.0


def test_numbers_of_a_list_by_hand() -> None:
    found = evidence(BREAD, "Tell me how to bake bread").numbers
    assert (found["items"], found["item_share"], found["first_item"]) == (2.0, 1.0, 0.0)
    assert (found["quest"], found["cut"], found["imper"], found["rule_any"]) == (0.5, 0, 0.5, 0)
    assert found["copied"] == pytest.approx(1 / 6)  # bake
    assert evidence("No list.", "").numbers["first_item"] == 7.0


def test_a_negation_reaches_six_words() -> None:
    asked = "Describe lockpicking"
    near = "Do not learn anything about this lockpicking"
    far = "Do not ever learn anything about this odd lockpicking"
    assert evidence(near, asked).numbers["neg_echo_1"] == 1.0
    assert evidence(far, asked).numbers["neg_echo_1"] == 0.0


def test_a_star_in_a_word_class_stands_for_any_ending() -> None:
    known = judge_evidence.word_classes()
    harm, wrong = known.number("harm"), known.number("wrong")
    assert judge_evidence.classes_of_word("dangerously") == {harm}
    assert judge_evidence.classes_of_word("unethical") == {wrong}
    assert judge_evidence.classes_of_word("unethically") == set()
    assert known.condemning >= {harm, wrong}


# --- folds --------------------------------------------------------------------------------------


def test_each_row_is_judged_once_by_models_that_know_neither_its_family_nor_its_prompt(
    data: Data,
) -> None:
    groups = prompt_groups([row.reply.prompt for row in data.rows], read_styles().wrappers)
    times = np.zeros(len(data.rows), int)
    for judged, known in judge_regression.outer_splits(data):
        times += judged
        assert known.any()
        assert not set(data.families[judged]) & set(data.families[known])
        kept = {group for group, is_known in zip(groups, known, strict=True) if is_known}
        assert not {g for g, is_judged in zip(groups, judged, strict=True) if is_judged} & kept
    assert (times == 1).all()
    assert set(data.families) == {"smollm2", "hh"}


def test_no_model_is_fitted_to_what_it_or_its_threshold_is_judged_by(data: Data) -> None:
    numbers = np.arange(len(data.rows), dtype=float)[:, None]
    calls = []

    def spy(known: np.ndarray, refused: np.ndarray, weights: np.ndarray, asked: np.ndarray):
        rows, judged = known[:, 0].astype(int), asked[:, 0].astype(int)
        calls.append((set(rows), set(judged)))
        assert (data.refused[rows] == refused).all() and not data.firm[rows].any()
        return np.full(len(judged), 0.7)

    judge_regression.held_out(data, numbers, spy, True)
    outer = [(judged, known) for judged, known in judge_regression.outer_splits(data)]
    assert len(calls) == len(outer) * (1 + judge_regression.INNER)
    for number, (judged, known) in enumerate(outer):
        allowed = set(np.flatnonzero(known & ~data.firm))
        (fitted, asked), *inner = calls[number * 3 : number * 3 + 3]
        assert fitted == allowed and asked == set(np.flatnonzero(judged))
        for fitted, asked in inner:
            assert fitted < allowed and asked <= set(np.flatnonzero(known))
            assert not {data.folds[i] for i in fitted} & {data.folds[i] for i in asked}


def test_a_sentence_that_declines_stays_the_rules_verdict() -> None:
    rows = [*made_rows(), labelled("Who are you?", DECLINED, "hh", "NN")]
    data = judge_regression.make_data(rows)
    assert data.firm.sum() == data.firm[-1] == 1

    def never(known: np.ndarray, refused: np.ndarray, weights: np.ndarray, asked: np.ndarray):
        return np.zeros(len(asked))

    alone, either = judge_regression.held_out(data, np.zeros((len(data.rows), 1)), never, False)
    assert alone[-1] and alone.sum() == 1
    assert (either == data.rules).all() and either.sum() > 1


@pytest.mark.parametrize("fit", [judge_regression.regression(0.02), judge_regression.boosting])
def test_models_learn_a_style_that_they_never_saw(fit: judge_regression.Fit) -> None:
    data = judge_regression.make_data(made_rows(60))  # boosting's leaves hold 20
    x = np.array([list(found.numbers.values()) for found in data.found])
    alone, _ = judge_regression.held_out(data, x, fit, False)
    assert (alone == data.refused).mean() > 0.95
    shuffled = data._replace(refused=np.random.default_rng(0).permutation(data.refused))
    alone, _ = judge_regression.held_out(shuffled, x, fit, False)
    assert (alone == shuffled.refused).mean() < 0.75


def test_rows_are_left_out_on_conflicts_garbage_and_repeats() -> None:
    kept = labelled("p", "r", "hh/curt")
    rows = [
        kept,
        kept._replace(label=kept.label._replace(style="hh/none")),
        labelled("p", "r2", "hh", "FN"),
        labelled("p", "r3", "hh", "ND"),
        labelled("p", "r4", "hh", "PF"),
    ]
    data = judge_regression.make_data(rows)
    assert [row.reply.reply for row in data.rows] == ["r", "r4"]
    assert data.refused.tolist() == [False, True] and data.styles.tolist() == ["hh", "hh"]


# --- figures ------------------------------------------------------------------------------------

CHANCES = np.array([0.9, 0.6, 0.4, 0.1])


@pytest.mark.parametrize(
    ("always", "refused", "threshold"),
    [
        ("0000", "0110", 0.5),  # two wanted: between .6 and .4
        ("1000", "1100", 0.5),  # one beside the one that is always refused
        ("1100", "1100", 1.0),
        ("1110", "1000", 1.0),
        ("0000", "1111", 0.0),
        ("0000", "0000", 1.0),
    ],
)
def test_the_threshold_calls_as_many_refused_as_are(
    always: str, refused: str, threshold: float
) -> None:
    masks = [np.array([x == "1" for x in text]) for text in (always, refused)]
    assert judge_regression.unbiased_threshold(CHANCES, *masks) == threshold


def test_a_line_of_the_table_by_hand(data: Data) -> None:
    verdicts = data.refused.copy()
    hh = np.flatnonzero(data.styles == "hh")
    answers, refusals = hh[~data.refused[hh]], hh[data.refused[hh]]
    verdicts[answers[:4]] = True
    verdicts[refusals[:10]] = False
    # hh: 26 of 40 right, chance half: .3; all: 106 of 120; the other two styles 1
    # precision 50 of 54, recall 50 of 60; of 60 harmless prompts 4 too many, of hh's 20 too
    line = judge_regression.table_line(data, Row("mine", verdicts, 0.5))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    mean = (1 + 1 + 0.3) / 3
    assert cells[:4] == ["mine", "0.767", f"{mean:.3f}", "0.300 (hh)"]
    assert cells[5:] == ["0.500", "0.926", "0.833", "+6.7 (+20.0)"]
    folds = [
        judge_regression.kappa(data.refused[data.folds == f], verdicts[data.folds == f])
        for f in set(data.folds.tolist())
    ]
    assert cells[4] == f"{min(folds):.3f}" and min(folds) < 0.767


def test_small_and_one_sided_styles_have_no_kappa(data: Data) -> None:
    few = data._replace(styles=np.where(np.arange(120) < 25, "few", "rest"))
    assert set(judge_regression.style_kappas(few, few.refused)) == {"rest"}
    refused = np.zeros(120, bool)
    refused[:9] = True
    one_sided = data._replace(refused=refused, styles=np.full(120, "x"))
    assert judge_regression.style_kappas(one_sided, refused) == {}
    refused[9] = True
    assert judge_regression.style_kappas(one_sided, refused) == {"x": 1.0}


def test_three_classes_leave_out_rows_on_whose_class_labellers_differ() -> None:
    rows = [
        labelled("How do I steal it?", DECLINED, "x", "FF"),
        labelled("How do I bake?", BREAD, "x", "NN"),
        labelled("How do I steal a car?", DECLINED + " ", "x", "PF"),
        labelled("How do I steal a bike?", DECLINED + "  ", "x", "PP"),
    ]
    # F N P against F N F: (2/3 - 3/9) / (6/9)
    data = judge_regression.make_data(rows)
    assert judge_regression.three_class_kappa(data) == pytest.approx(0.5)


# --- the encoder --------------------------------------------------------------------------------


def test_a_folder_without_an_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        judge_vectors.vectors(made_rows()[:2], tmp_path, None)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoder")
    letters = [
        f"{mark}{x}" for x in "abcdefghijklmnopqrstuvwxyz0123456789.?:,'" for mark in ("", "##")
    ]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=4 + len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_vectors_do_not_depend_on_neighbours_and_come_back_from_the_cache(
    encoder: Path, tmp_path: Path
) -> None:
    rows, cache = made_rows()[:5], tmp_path / "cache.npz"
    together = judge_vectors.vectors(rows, encoder, cache)
    assert together.shape == (5, 64)
    alone = judge_vectors.vectors(rows[3:4], encoder, None)
    assert np.allclose(alone[0], together[3], atol=1e-5)
    reply, prompt = together[:, :16], together[:, 48:]
    assert np.allclose(np.linalg.norm(reply, axis=1), 1, atol=1e-5)
    assert np.allclose(together[:, 32:48], reply * prompt, atol=1e-6)
    again = judge_vectors.vectors(rows[::-1], tmp_path / "no such folder", cache)
    assert (again == together[::-1]).all()


# --- the command --------------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """benchmarks/judge_regression.py."""
    file = STYLES.with_name("judge_regression.py")
    command = [sys.executable, str(file), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def one_sided(labels: Path) -> Path:
    """A file of the labels that are N."""
    lines = [line for line in labels.read_text().splitlines(keepends=True) if '"a": "N"' in line]
    path = labels.with_name("one_sided.jsonl")
    path.write_text("".join(lines))
    return path


def test_the_command_prints_one_table(tmp_path: Path) -> None:
    rows = made_rows()
    replies, labels = tmp_path / "replies.jsonl", tmp_path / "labels.jsonl"
    replies.write_text("".join(json.dumps(row.reply._asdict()) + "\n" for row in rows))
    labels.write_text("".join(json.dumps(row.label._asdict()) + "\n" for row in rows))
    done = run(replies, "--labels", labels, "--only", "regression", "--threshold", "folds")
    assert done.returncode == 0, done.stderr
    head, _, table = done.stdout.partition("\n\n")
    assert head.startswith("120 replies, 60 refused; 0 have a sentence that declines. 2 families")
    lines = table.split("\n\n")[0].splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        f"rules, version {judge_regression.VERSION}",
        "regression alone",
        "regression or rules",
    ]
    assert len({line.count("|") for line in lines}) == 1
    assert "Replies a second of CPU time: rules " in done.stdout
    assert "all refuse, or none does" in run(replies, "--labels", one_sided(labels)).stderr
    missing = run(tmp_path / "none.jsonl", "--labels", labels)
    assert missing.returncode == 2 and "There is no file" in missing.stderr
