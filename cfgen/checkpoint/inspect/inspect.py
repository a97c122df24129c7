"""What a file of weights is, in facts: its container, its network, how each layer is stored.

Headers and scales are read, values are not unless they are asked for. A file that cfgen refuses is
described as far as it could be.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cfgen.checkpoint.formats.base import Container, refuse_dcp, size_of
from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.identify.digests import digest
from cfgen.checkpoint.identify.preset_guess import cached_digest, guess
from cfgen.checkpoint.inspect.network_types import (
    KINDS,
    KNOWN_OTHER_FILES,
    NetworkType,
    is_lora,
    without_place,
)
from cfgen.checkpoint.inspect.report import FileFacts, NetworkFacts, Refusal, Report
from cfgen.checkpoint.inspect.storage import (
    FLAWS,
    Stored,
    count_not_finite,
    grouped,
    odd_values,
    stored,
)
from cfgen.checkpoint.lora.apply import SIZES, open_lora
from cfgen.checkpoint.lora.read import Lora
from cfgen.checkpoint.naming import EMA, RESIDUE, Naming, find_network, first_names, looks_like
from cfgen.checkpoint.networks.fill import Shapes, compare, compare_memory, open_generator
from cfgen.checkpoint.networks.model_files import INDEX
from cfgen.checkpoint.networks.network import FOREIGN_HEADERS, UNSUPPORTED_QUANT
from cfgen.errors import CheckpointError
from cfgen.files.reading import WEIGHTS

WANTED = "give a Wan2.1 generator, its UMT5 encoder, its video autoencoder or a LoRA for it"

METADATA_LIMIT = 200
"""Letters of a header's value, at most; longer ones are cut."""


def weights_in(folder: Path) -> list[Path]:
    """Files of weights in a folder and below it; the index of shards stands for them.

    Raises:
        CheckpointError: there are none.
    """
    indices = sorted(folder.rglob(f"*{INDEX}"))
    shards = [re.compile(re.escape(str(i)[: -len(INDEX)]) + r"-\d+-of-\d+\..+") for i in indices]
    there = (path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHTS)
    found = [path for path in there if path.is_file() or path.is_symlink()]  # and no pipe
    alone = [path for path in found if not any(s.fullmatch(str(path)) for s in shards)]
    refuse_dcp(folder)
    if not indices and not alone:
        raise CheckpointError(
            f"{folder} holds no weights: no file in it ends in {', '.join(WEIGHTS)}",
            "check the path of the model",
        )
    return sorted([*indices, *alone])


def inspect(path: Path, *, digests: bool = True, values: bool = False, prefer: str = EMA) -> Report:
    """Look at a file of weights, or at the index of shards.

    Args:
        path: the file.
        digests: whether SHA-256 are worked out, which reads the whole file.
        values: whether all weights are read to see if they are finite.
        prefer: `generator_ema` or `generator`: which to take where a file holds both.

    Raises:
        CheckpointError: there is no such file, or the system refuses to read it.
    """
    size_of(path)
    report = Report(path=path, files=())
    metadata: Mapping[str, object] = {}
    try:
        file = open_container(path)
    except CheckpointError as error:
        files = _files([path], digests=digests)
        report = replace(report, refusal=_refusal(error))
    else:
        files, metadata = _files(file.files, digests=digests), file.metadata
        report = _described(report, file, prefer=prefer, values=values)
    report = replace(report, files=files)
    told = (file.sha256 or cached_digest(file.path) for file in files)
    try:
        found = guess(path, metadata=metadata, digests=[sha256 for sha256 in told if sha256])
    except CheckpointError as error:
        return replace(report, refusal=report.refusal or _refusal(error))
    return replace(report, guess=found)


def _files(paths: Sequence[Path], *, digests: bool) -> tuple[FileFacts, ...]:
    return tuple(
        FileFacts(path=path, nbytes=size_of(path), sha256=digest(path) if digests else None)
        for path in paths
    )


def _described(report: Report, file: Container, *, prefer: str, values: bool) -> Report:
    """All but files and guess."""
    report = replace(
        report,
        container=file.kind,
        entries=len(file.entries),
        kinds=dict(Counter(entry.kind for entry in file.entries.values())),
        metadata={key: _short(value) for key, value in file.metadata.items()},
    )
    try:
        if is_lora(file):
            return _lora(report, file, prefer=prefer, values=values)
        for kind in KINDS:
            naming = find_network(file.entries, kind.layouts, file.path, prefer=prefer)
            if naming is not None:
                return _network(report, file, kind, naming, prefer=prefer, values=values)
        raise _unknown(file)
    except CheckpointError as error:
        return replace(report, refusal=_refusal(error))


def _network(
    report: Report, file: Container, kind: NetworkType, naming: Naming, *, prefer: str, values: bool
) -> Report:
    """What can be said of a network that was found by its names."""
    facts = _named(kind, naming)
    try:
        network = kind.open(file.path, prefer)
    except CheckpointError as error:
        shapes = {name: file.entries[raw].shape for name, raw in naming.names.items()}
        with contextlib.suppress(CheckpointError):
            facts = replace(facts, sizes=kind.wanted(file.path, shapes).sizes)
        return replace(report, network=facts, refusal=_refusal(error))
    tensors, problem = stored(network)
    facts = replace(
        facts,
        left_alone=_owners(network.naming.left_alone),
        numbers=sum(tensor.numbers for tensor in tensors),
        tensors=tuple(tensors),
        groups=tuple(grouped(tensors)),
        extras=tuple(network.extras),
        second_set=len(network.memory.layers) if network.memory else 0,
    )
    warnings: tuple[str, ...] = ()
    try:
        wanted = kind.wanted(file.path, network.shapes)
        facts = _compared(replace(facts, sizes=wanted.sizes), wanted.shapes, network.shapes)
        compare(wanted.shapes, network.shapes, file.path)
        compare_memory(wanted.shapes, network)
        warnings = wanted.warnings
        problem = problem or wanted.problem
    except CheckpointError as error:
        problem = error
    return replace(
        report,
        network=facts,
        refusal=_refusal(problem) if problem else None,
        warnings=(
            *warnings,
            *_odd_scales(facts),
            *(odd_values(network) if values and not problem else ()),
        ),
    )


def _named(kind: NetworkType, naming: Naming) -> NetworkFacts:
    residue = {found for raw in naming.names.values() for found in RESIDUE.findall(raw)}
    return NetworkFacts(
        kind=kind.word,
        title=kind.title,
        names=naming.layout.title,
        prefix=naming.prefix,
        residue=tuple(sorted(residue)),
        choices=naming.choices if len(naming.choices) > 1 else (),
        left_alone=_owners(naming.left_alone),
    )


def _compared(facts: NetworkFacts, wanted: Shapes, found: Shapes) -> NetworkFacts:
    return replace(
        facts,
        missing=tuple(name for name in wanted if name not in found),
        unused=tuple(name for name in found if name not in wanted),
        reshaped=tuple(
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        ),
    )


def _odd_scales(facts: NetworkFacts) -> Iterator[str]:
    for flaw, words in FLAWS.items():
        odd = [t for t in facts.tensors if t.scales and flaw in t.scales.flaws]
        if odd:
            count = sum(t.scales.flaws[flaw] for t in odd if t.scales)
            yield f"{len(odd)} layers have scales {words}: {count} in all, first in {odd[0].name}"


def _lora(report: Report, file: Container, *, prefer: str, values: bool) -> Report:
    lora = open_lora(file.path, prefer=prefer)
    raws = [raw for change in lora.changes.values() for raw in change.parts.values()]
    tensors = [
        Stored(
            name=raw,
            layout="plain",
            format=file.entries[raw].kind,
            shape=file.entries[raw].shape,
            nbytes=file.entries[raw].nbytes,
            quantized=False,
        )
        for raw in raws
    ]
    facts = NetworkFacts(
        kind="lora",
        title="LoRA for a generator",
        names=lora.kind,
        prefix=" ".join(filter(None, lora.prefixes)),
        left_alone=_owners(lora.left_alone),
        sizes=_lora_sizes(lora),
        numbers=sum(tensor.numbers for tensor in tensors),
        tensors=tuple(tensors),
        groups=tuple(grouped(tensors)),
        unused=tuple(without_place(lora)),
    )
    reason = ""
    if facts.unused:
        reason = f"{file.path} changes layers that no text-to-video generator of Wan has"
    elif values and (odd := [raw for raw in raws if count_not_finite(file.read(raw))]):
        reason = f"{file.path}: {odd[0]} holds numbers that are not finite"
    hint = "take a LoRA that was trained on the model that you render with"
    refusal = Refusal(message=reason, hint=hint) if reason else None
    return replace(report, network=facts, refusal=refusal)


def _lora_sizes(lora: Lora) -> dict[str, object]:
    changes = lora.changes.items()
    queries = (c for key, c in changes if key.endswith(("self_attn_q", "attn1_to_q")) and c.rank)
    widths = {lora.file.entries[change.parts["down"]].shape[1] for change in queries}
    return {
        "layers": len(lora.changes),
        "ranks": sorted({change.rank for _, change in changes if change.rank}),
        "scales": sorted({change.scale for _, change in changes if change.rank}),
        "alpha": sorted({change.origin for _, change in changes if change.rank}),
        "dim": sorted(widths),
        "made_for": sorted({f"Wan {SIZES[width]}" for width in widths if width in SIZES}),
    }


def _owners(names: Sequence[str]) -> dict[str, int]:
    return dict(Counter(re.split(r"[./]", name)[0] for name in names))


def _unknown(file: Container) -> CheckpointError:
    """The error for a file with no network of a known kind."""
    foreign = tuple(f".{part}" for part in UNSUPPORTED_QUANT if part != "scale")
    if file.metadata.get("checkpoint_format") in FOREIGN_HEADERS or any(
        name.endswith(foreign) for name in file.entries
    ):
        try:
            open_generator(file.path)
        except CheckpointError as error:
            return error
    seems = looks_like(file.entries, KNOWN_OTHER_FILES, whole=False)
    looks = f"it looks like {seems}" if seems else f"its tensors are {first_names(file.entries)}"
    return CheckpointError(f"{file.path} holds no network that cfgen knows; {looks}", WANTED)


def _short(value: object) -> str:
    text = f"{len(value)} values" if isinstance(value, list) else str(value)
    return text if len(text) <= METADATA_LIMIT else f"{text[:METADATA_LIMIT]}..."


def _refusal(error: CheckpointError) -> Refusal:
    return Refusal(message=str(error), hint=error.hint)
