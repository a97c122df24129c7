"""Alpha of LoRA layers that do not carry their own: what the file, PEFT or the caller say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from cfgen.checkpoint.container import FETCH_AGAIN, Container, read_json
from cfgen.errors import CheckpointError

HEADER = "lora_adapter_metadata"
"""Where diffusers' files keep PEFT's settings, some under `transformer.`."""

SIDECAR = "adapter_config.json"
"""Where PEFT keeps them: beside its file."""

KOHYA_HEADER = "ss_network_alpha"
"""Where kohya's files keep the alpha that a training was started with."""

OTHER_SUMS = ("use_dora", "use_qalora", "alpha_pattern")
"""Settings of PEFT's under which a LoRA is more than one scale times up times down."""

PLAIN_LORA = "take a plain LoRA of the generator, or convert this one to it where it was made"


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
        ranks: ranks of its layers without an alpha of their own.
        peft: whether PEFT wrote it, so that its settings may lie beside it.
        given: for files that say nothing.

    Raises:
        CheckpointError: what is said cannot be used, or belongs to another LoRA.
    """
    beside = file.path.with_name(SIDECAR)
    if HEADER in file.metadata:
        return _of_settings(_header(file), f"{file.path}: {HEADER}", ranks)
    if peft and beside.is_file():
        return _of_settings(read_json(beside), str(beside), ranks)
    trained = str(file.metadata.get(KOHYA_HEADER, "None"))
    if trained != "None":
        value = read_number(trained, f"{file.path}: {KOHYA_HEADER}")
        return Alpha(f"alpha {value:g} of {KOHYA_HEADER} in the header", value)
    if given is not None:
        return Alpha(f"alpha {given:g} as given", given)
    return Alpha("no alpha in the file, beside it or given")


def _header(file: Container) -> dict[str, object]:
    where = f"{file.path}: {HEADER}"
    try:
        found = json.loads(str(file.metadata[HEADER]))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {error}", FETCH_AGAIN) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} must be a JSON object", FETCH_AGAIN)
    return {key.removeprefix("transformer."): value for key, value in found.items()}


def _of_settings(settings: Mapping[str, object], where: str, ranks: set[int]) -> Alpha:
    """What PEFT's settings say; those that change the sum in another way are refused."""
    for key in OTHER_SUMS:
        if settings.get(key):
            raise CheckpointError(f"{where} sets {key}, which cfgen does not apply", PLAIN_LORA)
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{where} is about {kind}, which cfgen does not apply", PLAIN_LORA)
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


def read_number(value: object, what: str) -> float:
    """A finite number other than 0.

    Raises:
        CheckpointError: it is none; `what` says whose it is.
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or not found:
        raise CheckpointError(
            f"{what} must be a finite number other than 0, got {value!r}", FETCH_AGAIN
        )
    return found
