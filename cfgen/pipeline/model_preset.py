"""Which preset a file of weights is rendered with when nobody named one."""

from __future__ import annotations

from cfgen.config.presets import locate_model, preset_names
from cfgen.errors import UsageError


def recipe_of(model: str) -> tuple[str, str]:
    """The preset that a model wants, and what says so.

    A causal generator has the same tensors as the bidirectional one, so nothing in them tells how
    it is to be run.

    Args:
        model: What `model.path` holds.

    Raises:
        CheckpointError: It is nowhere, or no file of weights.
        UsageError: Nothing certain tells.
    """
    if model in preset_names():
        return model, "it is an installed model"
    from cfgen.checkpoint.formats.open import open_container
    from cfgen.checkpoint.identify.digests import digest
    from cfgen.checkpoint.identify.preset_guess import (
        CERTAIN,
        cached_digest,
        guess,
        refuse_unsupported,
    )
    from cfgen.checkpoint.networks.model_files import generator_file

    weights = generator_file(locate_model(model))
    file = open_container(weights)
    found = guess(weights, metadata=file.metadata)
    if found.basis not in CERTAIN:
        digests = [cached_digest(path) or digest(path) for path in file.files]
        found = guess(weights, metadata=file.metadata, digests=digests)
    if found.recipe and found.basis in CERTAIN:
        return found.recipe, found.reason
    refuse_unsupported(weights, metadata=file.metadata)
    if found.basis in CERTAIN and found.published is not None:
        raise UsageError(
            f"{model} is {found.published.what}: {found.published.note or 'no preset is for it'}",
            "name a preset with --preset to run it all the same",
        )
    maybe = f"; {found.reason}, so it may be {found.recipe}" if found.recipe else ""
    raise UsageError(
        f"nothing certain tells how {model} wants to be run{maybe}",
        f"name its preset with --preset (`cfgen presets list`), or write `recipe: NAME` into "
        f"{weights.name}.yaml beside it",
    )
