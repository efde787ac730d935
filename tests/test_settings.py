"""settings.py: TRL's config objects from mappings, with what hardware decides filled in."""

from pathlib import Path

from overrefusal_po.train.settings import trainer_config


def test_what_hardware_decides_is_filled_in_and_never_overrides_what_is_given(
    tmp_path: Path,
) -> None:
    from trl import DPOConfig

    config = trainer_config(
        DPOConfig, {"output_dir": str(tmp_path), "use_cpu": True, "gradient_checkpointing": True}
    )
    assert (config.use_cpu, config.bf16, config.gradient_checkpointing) == (True, False, True)
