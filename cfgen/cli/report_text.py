"""The facts on a file of weights in words, for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cfgen.cli.columns import LABEL, WIDTH, labelled
from cfgen.plain_text import aligned, padded, widths_of
from cfgen.units import bytes_words, count

if TYPE_CHECKING:
    from cfgen.checkpoint.identify.preset_guess import Guess
    from cfgen.checkpoint.inspect.report import NetworkFacts, Report
    from cfgen.checkpoint.inspect.storage import Group, Scales, Stored

_LICENCES = ("general.license", "modelspec.license")
"""Where headers keep a licence."""

_NAMED = 5
"""Most tensors that one line names."""


def lines_on(report: Report, *, layers: bool) -> Iterator[str]:
    """Lines on one file of weights; `layers` lists each of its tensors."""
    yield _line("file", str(report.path))
    yield from _container(report)
    if report.network:
        yield from _network(report.network, refused=report.refusal is not None)
    yield from _origin(report)
    for warning in report.warnings:
        yield from labelled("warning", warning)
    if report.refusal:
        yield from labelled("refused", report.refusal.message)
        if report.refusal.hint:
            yield from labelled("", f"-> {report.refusal.hint}")
    if layers and report.network:
        yield ""
        yield from _tensors(report.network.tensors)


def _container(report: Report) -> Iterator[str]:
    nbytes = bytes_words(sum(file.nbytes for file in report.files))
    if report.container:
        kinds = ", ".join(f"{n} {kind}" for kind, n in report.kinds.items())
        text = f"{report.container}, {nbytes}, {count(report.entries, 'tensor')}: {kinds}"
    else:
        text = nbytes
    yield from labelled("kind", text)
    for i, file in enumerate(report.files):
        if file.sha256:
            yield _line("" if i else "sha256", file.sha256)
            if len(report.files) > 1:
                yield _line("", f"  {file.path.name}")


def _network(facts: NetworkFacts, *, refused: bool) -> Iterator[str]:
    numbers = f", {_millions(facts.numbers)} numbers" if facts.numbers else ""
    yield from labelled("network", f"{facts.title}{numbers}")
    before = f'under "{facts.prefix}"' if facts.prefix else "without a prefix"
    residue = f"; wrappers left {', '.join(facts.residue)} in them" if facts.residue else ""
    yield from labelled("names", f"{facts.names}, {before}{residue}")
    if facts.choices:
        listed = ", ".join(f'"{choice}"' for choice in facts.choices)
        yield from labelled(
            "sets",
            f'{listed}: "{facts.prefix}" is taken unless model.prefer says otherwise',
        )
    if facts.second_set:
        yield from labelled(
            "second set", f"{facts.second_set} tensors (memory_*), which write the memory"
        )
    if facts.left_alone:
        owners = ", ".join(f"{owner} ({n})" for owner, n in facts.left_alone.items())
        yield from labelled("beside", f"tensors of other owners, left alone: {owners}")
    if facts.sizes:
        yield from labelled("sizes", _sizes(facts))
        if "tokenizer" in facts.sizes:
            yield _line("tokenizer", str(facts.sizes["tokenizer"]))
    if facts.groups:
        yield from _weights(facts.groups)
        yield from _scales(facts.groups)
    yield from _wanted(facts, refused=refused)


def _sizes(facts: NetworkFacts) -> str:
    sizes = {name: value for name, value in facts.sizes.items() if name != "tokenizer"}
    if facts.kind == "lora":
        return _lora_sizes(sizes)
    if facts.kind != "generator":
        return ", ".join(f"{name} {_plain(v)}" for name, v in sizes.items())
    patch = "x".join(map(str, sizes["patch_size"]))  # type: ignore[call-overload]
    return (
        f"dim {sizes['dim']}, ffn {sizes['ffn_dim']}, {sizes['num_heads']} heads of "
        f"{sizes['head_dim']}, {sizes['num_layers']} layers, latents {sizes['in_dim']} in and "
        f"{sizes['out_dim']} out, text {sizes['text_len']} x {sizes['text_dim']}, patches {patch}"
    )


def _lora_sizes(sizes: Mapping[str, object]) -> str:
    """Layers, rank, scale and the model that a LoRA is for."""
    layers, ranks, scales, alpha, dim, made_for = map(_plain, sizes.values())
    known = f", {made_for}" if made_for else ""
    return f"{layers} layers of rank {ranks}, scale {scales} ({alpha}), for dim {dim}{known}"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _weights(groups: Sequence[Group]) -> Iterator[str]:
    rows = [("format", "layout", "tensors", "numbers", "size", "bits")]
    rows += [
        (
            group.format,
            group.layout,
            str(group.tensors),
            _millions(group.numbers),
            bytes_words(group.nbytes),
            f"{group.bits:.2f}",
        )
        for group in groups
    ]
    yield from _table("weights", rows, left=2)
    full, rotated = sum(g.full_precision for g in groups), sum(g.rotated for g in groups)
    if full:
        yield _line("", f"{count(full, 'tensor')} to be multiplied in high precision")
    if rotated:
        yield _line("", f"{count(rotated, 'tensor')} rotated by a Hadamard matrix")


def _scales(groups: Sequence[Group]) -> Iterator[str]:
    rows = [("of", "count", "least", "median", "greatest")]
    rows += [
        (g.format, str(g.scales.count), *_spread(g.scales)) for g in groups if g.scales is not None
    ]
    if len(rows) > 1:
        yield from _table("scales", rows, left=1)


def _spread(scales: Scales) -> tuple[str, str, str]:
    least, median, greatest = (
        "-" if number is None else f"{number:.2e}"
        for number in (scales.least, scales.median, scales.greatest)
    )
    return least, median, greatest


def _wanted(facts: NetworkFacts, *, refused: bool) -> Iterator[str]:
    problems = {
        "missing": facts.missing,
        "unused": facts.unused,
        "misshapen": facts.reshaped,
    }
    for label, names in problems.items():
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            yield from labelled(label, f"{len(names)}: {', '.join(names[:_NAMED])}{more}")
    if not refused and not any(problems.values()):
        yield _line("tensors", "all that it needs are there, and none is left over")


def _origin(report: Report) -> Iterator[str]:
    """Which preset it wants, and its licence."""
    guess = report.guess
    if guess is None:
        return
    wants = report.network is None or report.network.kind in ("generator", "lora")
    if wants and not (report.refusal and guess.basis == "nothing"):
        yield from labelled("recipe", _recipe(guess))
    published = guess.published
    if published and published.note:
        yield from labelled("note", published.note)
    if published and published.unsupported:
        yield from labelled("note", f"cfgen cannot run it: {published.unsupported}")
    told = next((report.metadata[key] for key in _LICENCES if key in report.metadata), None)
    if told:
        yield from labelled("licence", f"{told}, says its header")
    elif published:
        yield from labelled("licence", _licence(guess))


def _recipe(guess: Guess) -> str:
    if guess.recipe:
        others = f"; also for it: {', '.join(guess.others)}" if guess.others else ""
        return f"{guess.recipe}, a guess: {guess.reason}{others}"
    if guess.published:
        return f"no preset is made for it, a guess: {guess.reason}"
    return f"{guess.reason}; choose one with --preset"


def _licence(guess: Guess) -> str:
    published = guess.published
    assert published is not None
    if not published.licence:
        return f"{published.repo} names none"
    use = ": no commercial use" if published.is_non_commercial else ""
    sure = guess.basis in ("sha256", "repository")
    condition = "" if sure else f", if it is {published.what}"
    return f"{published.licence}{use} ({published.repo}{condition})"


def _tensors(tensors: Sequence[Stored]) -> Iterator[str]:
    rows = [("format", "shape", "bits", "scale", "name")]
    rows += [
        (
            tensor.format,
            "x".join(map(str, tensor.shape)) or "one number",
            f"{8 * tensor.nbytes / max(1, tensor.numbers):.2f}",
            _spread(tensor.scales)[1] if tensor.scales else "",
            tensor.name,
        )
        for tensor in tensors
    ]
    widths = widths_of(rows)
    long = sum(widths) + 2 * (len(widths) - 1) > WIDTH
    for row in rows:
        facts = "  ".join(
            padded(cell, width) for cell, width in zip(row[:-1], widths[:-1], strict=True)
        )
        if long:
            yield row[-1]
            yield f"  {facts}".rstrip()
        else:
            yield f"{facts}  {row[-1]}"


def _table(label: str, rows: Sequence[tuple[str, ...]], *, left: int) -> Iterator[str]:
    """Columns, the first `left` of them flush left."""
    for number, line in enumerate(aligned(rows, right=range(left, len(rows[0])))):
        yield _line("" if number else label, line)


def _line(label: str, text: str) -> str:
    return f"{label:{LABEL}}{text}"


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1_000_000 else f"{number:,}".replace(",", " ")
