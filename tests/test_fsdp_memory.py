"""What two FSDP2 processes really hold of a full DPO, against the estimate of `check --data`."""

import sys
from pathlib import Path

import pytest
from conftest import Style
from test_memory import recipe

from overrefusal_po.train.memory import Batch, config_of, shape_of
from overrefusal_po.train.sharded_memory import Layout, sharded_estimate

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import sharded


@pytest.mark.slow
def test_weights_gradients_and_states_are_as_estimated(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    folder = styles["llama"].folder
    ranks = sharded.measure("fsdp2", str(folder), 2, tmp_path)
    body = recipe(model={"model_name_or_path": str(folder)})
    shape = shape_of(config_of(body.model), body.model)
    layout = Layout(2, "fsdp2")
    found = sharded_estimate(shape, body, Batch(1, 1), layout, "cpu", 1e12)._asdict()
    for rank in ranks:
        for part in ("weights", "gradients", "optimiser"):
            assert rank[part] == pytest.approx(found[part], rel=0.25), part
    assert ranks[0]["losses"] == ranks[1]["losses"]
