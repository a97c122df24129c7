"""Alpha of LoRA layers that do not carry their own: what the file, PEFT or the caller say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from cfgen.checkpoint.formats.base import FETCH_AGAIN, Container, each_once, read_json
from cfgen.checkpoint.lora.settings import check_settings
from cfgen.errors import CheckpointError

HEADER = "lora_adapter_metadata"
"""Where diffusers' files keep PEFT's settings, some under `transformer.`."""

SIDECAR = "adapter_config.json"
"""Where PEFT keeps them: beside its file."""

PEFT_FILE = "adapter_model."
"""How PEFT calls that file, whatever its tensors are named."""

KOHYA_HEADER = "ss_network_alpha"
"""Where kohya's files keep the alpha that a training was started with."""

OTHER_NETWORKS = ("text_encoder.", "text_encoder_2.", "unet.", "transformer_2.")
"""Starts of settings in diffusers' headers that are about another network of a pipeline."""


@dataclass(frozen=True, slots=True)
class Alpha:
    """Alpha of all layers without one of their own.

    Attributes:
        origin: where it was found, in words.
        value: alpha; None for the rank of each layer, which makes the scale 1.
        root: whether it was trained over the square root of the rank.
    """

    origin: str
    value: float | None = None
    root: bool = False

    def scale(self, rank: int) -> float:
        """What up @ down is multiplied by."""
        if self.value is None:
            return 1.0
        return self.value / (math.sqrt(rank) if self.root else rank)


def find_alpha(file: Container, ranks: set[int], *, peft: bool, given: float | None) -> Alpha:
    """Alpha as the file says it, else as its neighbour says it, else as given, else the rank.

    Args:
        file: the LoRA.
        ranks: ranks of its layers without an alpha of their own; settings are looked at even if
            there are none.
        peft: whether PEFT wrote it, so that its settings may lie beside it.
        given: for files that say nothing.

    Raises:
        CheckpointError: what is said cannot be used, or belongs to another LoRA.
    """
    if (found := _settings(file, peft=peft)) is not None:
        settings, where = found
        check_settings(settings, where)
        if ranks:
            return _of_settings(settings, where, ranks)
    if not ranks:
        return Alpha("each layer has its own")
    trained = str(file.metadata.get(KOHYA_HEADER, "None"))
    if trained != "None":
        value = read_number(trained, f"{file.path}: {KOHYA_HEADER}")
        return Alpha(f"alpha {value:g} of {KOHYA_HEADER} in the header", value)
    if given is not None:
        return Alpha(f"alpha {given:g} as given", given)
    return Alpha("no alpha in the file, beside it or given")


def _settings(file: Container, *, peft: bool) -> tuple[dict[str, object], str] | None:
    """PEFT's settings and where they stand: in the header, else beside the file."""
    beside = file.path.with_name(SIDECAR)
    if HEADER in file.metadata:
        return _header(file), f"{file.path}: {HEADER}"
    if beside.is_file() and (peft or file.path.name.startswith(PEFT_FILE)):
        return read_json(beside), str(beside)
    return None


def _header(file: Container) -> dict[str, object]:
    where = f"{file.path}: {HEADER}"
    try:
        found = json.loads(str(file.metadata[HEADER]), object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {error}", FETCH_AGAIN) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} must be a JSON object", FETCH_AGAIN)
    ours = {k: v for k, v in found.items() if not k.startswith(OTHER_NETWORKS)}
    return {key.removeprefix("transformer."): value for key, value in ours.items()}


def _of_settings(settings: Mapping[str, object], where: str, ranks: set[int]) -> Alpha:
    """Alpha as PEFT's settings say it, once they were looked at."""
    if "lora_alpha" not in settings:
        raise CheckpointError(f"{where} does not say lora_alpha", "restore the file")
    rank = settings.get("r")
    if rank is not None and not settings.get("rank_pattern") and ranks - {rank}:
        found = ", ".join(map(str, sorted(ranks)))
        raise CheckpointError(
            f"{where} says rank {rank}, but the LoRA has rank {found}",
            "keep each LoRA in a folder of its own with its settings",
        )
    value = read_number(settings["lora_alpha"], f"{where}: lora_alpha")
    return Alpha(f"alpha {value:g} of {where}", value, bool(settings.get("use_rslora")))


def read_number(value: object, what: str, *, zero: bool = False) -> float:
    """A finite number, other than 0 unless `zero` allows that.

    Raises:
        CheckpointError: it is none; `what` says whose it is.
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or not (found or zero):
        wanted = "a finite number" if zero else "a finite number other than 0"
        raise CheckpointError(f"{what} must be {wanted}, got {value!r}", FETCH_AGAIN)
    return found
