"""settings.py: TRL's config objects from mappings, with what hardware decides filled in."""

from pathlib import Path

import pytest

from overrefusal_po.train.settings import trainer_config


def test_what_hardware_decides_is_filled_in_and_never_overrides_what_is_given(
    tmp_path: Path,
) -> None:
    from trl import DPOConfig

    config = trainer_config(
        DPOConfig, {"output_dir": str(tmp_path), "use_cpu": True, "gradient_checkpointing": True}
    )
    assert (config.use_cpu, config.bf16, config.gradient_checkpointing) == (True, False, True)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("beta", "high", r"args: beta is 'high' \(text\); allowed is a number of at least 0"),
        ("beta", -1, "args: beta is -1"),
        ("learning_rate", "5e-6", "args: learning_rate is '5e-6'"),
        ("per_device_train_batch_size", 0, "a whole number of at least 1"),
        ("optim", "adamm", "args: optim is 'adamm'"),
    ],
)
def test_a_value_that_a_key_cannot_have_is_an_error_before_a_model_is_loaded(
    key: str, value: object, words: str
) -> None:
    """A recipe's values are checked as it is read; those of a mapping in Python were not."""
    from trl import DPOConfig

    with pytest.raises(ValueError, match=words):
        trainer_config(DPOConfig, {"output_dir": "out", key: value})


def test_objects_and_odd_forms_that_trl_takes_stay_as_they_were_given(tmp_path: Path) -> None:
    from transformers.trainer_utils import SaveStrategy
    from trl import DPOConfig

    given = {"output_dir": str(tmp_path), "save_strategy": SaveStrategy.NO, "loss_type": "ipo"}
    config = trainer_config(DPOConfig, {**given, "max_steps": -1, "num_train_epochs": 2})
    assert (config.save_strategy, config.max_steps) == (SaveStrategy.NO, -1)
