"""hash_team.py: two real processes hash a checkpoint together, and a fault of one ends both."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rank_script
from test_distributed import TORCHRUN, start

from overrefusal_po.model.whole import hashes_of
from overrefusal_po.run.interrupts import write_checkpoint_hashes
from overrefusal_po.train.hash_team import shares

# one rank of two: what it read, and what was said, in each case
RANK = """
import json, os
from pathlib import Path
from accelerate import PartialState
from overrefusal_po.model import whole
from overrefusal_po.run.interrupts import drop_unusable, write_checkpoint_hashes
from overrefusal_po.run.unscored import RunFailed
from overrefusal_po.train.hash_team import HashTeam

state = PartialState(cpu=True)
team = HashTeam(state, 60)
read, found, plain, start = [], {}, whole.file_sha256, Path.cwd()


def spy(path):
    read.append(path.name)
    return plain(path)


def case(name, do):
    read.clear()
    said = None
    try:
        team.work(do)
    except RunFailed as error:
        said = str(error)
    found[name] = {"read": sorted(read), "said": said}


def noted(folder):
    return lambda hashing: write_checkpoint_hashes(Path(folder), hashing)


whole.file_sha256 = spy
case("written", noted("run/checkpoint-2"))
case("damaged", lambda hashing: drop_unusable(Path("damaged"), hashing))
case("unreadable", noted("unreadable/checkpoint-2"))
if state.process_index == 1:
    os.chdir("elsewhere")
case("elsewhere", noted("here/checkpoint-2"))
(start / f"rank-{state.process_index}.json").write_text(json.dumps(found))
"""

FILES = {
    "pytorch_model_fsdp_0/__0_0.distcp": b"a" * 3000,
    "pytorch_model_fsdp_0/__1_0.distcp": b"b" * 3000,
    "optimizer_0/__0_0.distcp": b"c" * 6000,
    "optimizer_0/__1_0.distcp": b"d" * 6000,
    "scheduler.pt.json": b"e" * 40,
    "trainer_state.json": b"{}",
}


def checkpoint(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    """A checkpoint as two ranks write it into `folder`."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that root cannot read")
def test_two_processes_hash_a_checkpoint_together(tmp_path: Path) -> None:
    write_rank_script(tmp_path, RANK)
    alone = checkpoint(tmp_path / "alone")
    write_checkpoint_hashes(alone)
    written = checkpoint(tmp_path / "run" / "checkpoint-2")
    for step in (1, 2, 3):
        shutil.copytree(alone, tmp_path / "damaged" / f"checkpoint-{step}")
    torn = tmp_path / "damaged" / "checkpoint-3" / "optimizer_0" / "__1_0.distcp"
    torn.write_bytes(b"d" * 5999 + b"x")
    unreadable = checkpoint(tmp_path / "unreadable" / "checkpoint-2")
    (unreadable / "optimizer_0" / "__1_0.distcp").unlink()
    (unreadable / "optimizer_0" / "__1_0.distcp").symlink_to("/proc/self/mem")
    here = checkpoint(tmp_path / "here" / "checkpoint-2")
    # another machine's disk: a folder of the same name, with files of the same names and sizes
    other = {name: content.upper() for name, content in FILES.items()}
    checkpoint(tmp_path / "elsewhere" / "here" / "checkpoint-2", other)

    done = start([*TORCHRUN, "rank.py"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    expected = (alone / "hashes.json").read_text()
    assert list(json.loads(expected)["sha256"]) == sorted(FILES)

    assert (written / "hashes.json").read_text() == expected
    check_both_read(one["written"], two["written"])
    assert {path.name for path in written.iterdir() if path.is_file()} == {
        *("hashes.json", "scheduler.pt.json", "trainer_state.json")
    }
    # the newest is damaged in what the second rank reads; the next one is whole, and is the last
    # one that is read
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == [
        *("checkpoint-1", "checkpoint-2")
    ]
    assert len(one["damaged"]["read"] + two["damaged"]["read"]) == 2 * len(FILES)
    assert "__1_0.distcp" in two["damaged"]["read"] and one["damaged"]["said"] is None

    said = one["unreadable"]["said"]
    assert said == two["unreadable"]["said"]
    assert said.startswith("unreadable/checkpoint-2/optimizer_0/__1_0.distcp: the disk cannot be")
    assert not (unreadable / "hashes.json").exists()
    # the same team still works, and who sees another folder reads nothing of it
    assert (here / "hashes.json").read_text() == expected
    assert len(one["elsewhere"]["read"]) == len(FILES) and two["elsewhere"]["read"] == []


def check_both_read(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Each file is read once, and each rank reads what it wrote."""
    assert one["said"] is None and two["said"] is None
    assert sorted(one["read"] + two["read"]) == sorted(name.split("/")[-1] for name in FILES)
    assert one["read"].count("__0_0.distcp") == 2 == two["read"].count("__1_0.distcp")


def test_each_rank_takes_its_own_files_and_the_rest_goes_to_who_has_least() -> None:
    sizes = {"global_step4/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": 60}
    sizes |= {"rng_state_0.pth": 1, "model-1.safetensors": 40, "model-2.safetensors": 19}
    everything = [set(sizes), set(sizes)]
    assert shares(sizes, everything) == [
        ["rng_state_0.pth", "model-1.safetensors", "model-2.safetensors"],
        ["global_step4/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"],
    ]
    # one rank wrote all: it does not hash all
    assert shares(
        {f"__0_{i}.distcp": 10 for i in range(4)}, [{f"__0_{i}.distcp" for i in range(4)}] * 2
    ) == [
        ["__0_0.distcp", "__0_1.distcp"],
        ["__0_2.distcp", "__0_3.distcp"],
    ]
    # a rank that does not see its file, and a file that nobody sees
    assert shares({"__1_0.distcp": 5, "lost": 5}, [{"__1_0.distcp"}, set()]) == [
        ["__1_0.distcp", "lost"],
        [],
    ]
    assert shares({}, [set(), set()]) == [[], []]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        hashes_of(tmp_path, ["folder"])
