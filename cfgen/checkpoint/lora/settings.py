"""PEFT's settings of a LoRA: which change nothing in the sum, which are applied, and no others.

Whatever is not named here is refused by its name, for a setting that is not known may change the
sum: PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take their start out of the base weights, so that
up @ down is no difference from the published model. A setting that is off (null, false, empty)
does nothing in PEFT and is passed over.
Source: peft 0.21.2 tuners/lora/config.py and layer.py; `tests/checkpoint/test_lora_peft.py`
compares each with PEFT's own sums.
"""

from __future__ import annotations

from collections.abc import Mapping

from cfgen.errors import CheckpointError

PLAIN_LORA = "take a plain LoRA of the generator, or convert this one to it where it was made"

WITHOUT_EFFECT = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "parent_library",
        "peft_version",
        "qalora_group_size",
        "revision",
        "target_modules",
        "task_type",
    )
)
"""Settings about which layers get a LoRA, where the model comes from, or training alone."""

APPLIED = frozenset(("lora_alpha", "lora_bias", "r", "rank_pattern", "use_rslora"))
"""Settings that `lora_alpha` and the shapes of the factors follow."""

OF_ONE_START = {
    "corda_config": "corda",
    "eva_config": "eva",
    "loftq_config": "loftq",
    "lora_ga_config": "lora_ga",
}
"""Settings of a way to start a training, which mean nothing if it started in another way."""

VALUES: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
"""Values besides off with which a setting leaves the sum as it is: those starts keep the base."""

SAVED_WHOLE = {
    "bias": "whole biases",
    "modules_to_save": "whole layers",
}
"""Settings by which PEFT saves tensors that replace the model's own."""


EVA = frozenset(
    ("rho", "tau", "use_label_mask", "label_mask_value", "whiten", "adjust_scaling_factors")
)
"""Settings of EVA's, which choose the directions of a start; its sum is 0, and what it makes of
ranks and alphas stands in `rank_pattern` and `alpha_pattern`."""


def check_settings(settings: Mapping[str, object], where: str) -> None:
    """Refuse settings of PEFT's under which a LoRA is more than one scale times up times down.

    Args:
        settings: PEFT's, by name.
        where: the place that they stand in, for messages.

    Raises:
        CheckpointError: a setting is not known, or has a value that cfgen does not apply.
    """
    for key, value in settings.items():
        if key in WITHOUT_EFFECT or key in APPLIED or _off(value):
            continue
        allowed = VALUES.get(key, ())
        if any(value == known and type(value) is type(known) for known in allowed):
            continue
        if key in OF_ONE_START and settings.get("init_lora_weights") != OF_ONE_START[key]:
            continue
        if key == "eva_config" and isinstance(value, dict) and value.keys() <= EVA:
            continue
        raise CheckpointError(_reason(key, value, where), PLAIN_LORA)


def _off(value: object) -> bool:
    """Whether a setting is off in PEFT's words: null, false, or an empty list, table or text."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _reason(key: str, value: object, where: str) -> str:
    told = str(value)
    told = told if len(told) <= 60 else f"{told[:60]}..."
    if key == "peft_type":
        return f"{where} is about {told}, which cfgen does not apply"
    if key in SAVED_WHOLE:
        return (
            f"{where} sets {key} to {told}: the file holds {SAVED_WHOLE[key]} to put in the place "
            "of the model's, which cfgen does not apply"
        )
    if key == "init_lora_weights":
        return (
            f"{where} sets {key} to {told}: the training began by changing the base weights, so "
            "the LoRA does not fit the published model"
        )
    return f"{where} sets {key} to {told}, which cfgen does not apply"
