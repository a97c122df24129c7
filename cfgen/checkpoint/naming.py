"""Names of tensors: what tools put before them comes off, diffusers' names become Wan's own.

A network is found by a name that only it has (its anchor); whatever stands before the anchor is
the prefix that wraps it in this file.
Source: diffusers loaders/single_file_utils.py @ 58eb52c, turned around.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cfgen.errors import CheckpointError

RESIDUE = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
"""What FSDP, activation checkpointing and torch.compile leave inside names."""

OTHERS = frozenset(
    (
        "critic",
        "discriminator",
        "fake_score",
        "real_score",
        "teacher",
        "text_encoder",
        "text_encoders",
        "cond_stage_model",
        "conditioner",
        "vae",
        "first_stage_model",
        "generator_optimizer",
        "critic_optimizer",
        "optimizer",
        "scheduler",
        "lr_scheduler",
    )
)
"""First parts of names that say: this belongs to another network, or to a training state."""

TEXT_PARTS = frozenset(("text_encoder", "text_encoders", "cond_stage_model", "conditioner"))
VAE_PARTS = frozenset(("vae", "first_stage_model"))
"""Those under which files that hold a whole model have its text encoder, and its autoencoder."""

EMA, LIVE = "generator_ema", "generator"
"""Two sets of weights that one training state may hold: averaged, and as they stood."""


@dataclass(frozen=True, slots=True)
class NamingScheme:
    """One way to name the tensors of a network.

    Attributes:
        title: whose names these are.
        anchor: a name that every such file has and no other network does.
        native: turns a name (whole, or with more behind it) into the network's own.
    """

    title: str
    anchor: str
    native: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Naming:
    """The tensors of one network in a file.

    Attributes:
        layout: how they are named.
        prefix: what stood before every name, residue left out.
        names: name in the file by native name.
        left_alone: names that belong to other networks or to a training state.
        choices: every prefix under which such a network was found.
    """

    layout: NamingScheme
    prefix: str
    names: Mapping[str, str]
    left_alone: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def native(self, name: str) -> str:
        """The native form of a name that the file mentions, with or without its prefix."""
        return self.layout.native(without_residue(name).removeprefix(self.prefix))

    def is_other(self, name: str) -> bool:
        """Whether a name that the file mentions is one of a network that was left alone."""
        if _parts(self.prefix) & OTHERS:
            return not without_residue(name).startswith(self.prefix)
        parts = _parts(without_residue(name).removeprefix(self.prefix))
        return bool(self.left_alone) and bool(parts & OTHERS)


def without_residue(name: str) -> str:
    """A name without what wrappers leave inside names."""
    return RESIDUE.sub("", name)


def find_network(
    names: Iterable[str],
    layouts: Sequence[NamingScheme],
    path: Path,
    *,
    prefer: str = EMA,
    own: frozenset[str] = frozenset(),
) -> Naming | None:
    """The one network of a kind in a file, None if there is none.

    Args:
        names: names in the file.
        layouts: how such networks are named.
        path: the file, for messages.
        prefer: `generator_ema` or `generator`: which to take where a file holds both.
        own: words of `OTHERS` that name this very kind of network in a file of a whole model.

    Raises:
        CheckpointError: there are several and nothing says which, or two tensors get one name.
    """
    clean = {name: without_residue(name) for name in names}
    flat = next((name for name in clean.values() if name.endswith("flat_param")), None)
    if flat:
        raise CheckpointError(
            f"{path} holds FSDP's flat parameters ({flat}), not a network's own tensors",
            "save it with FSDP's FULL_STATE_DICT",
        )
    for layout in layouts:
        found = sorted(set(_prefixes(clean.values(), layout.anchor)))
        mine = [prefix for prefix in found if not _parts(prefix) & (OTHERS - own)]
        if mine:
            prefix = _choose(mine, path, prefer)
            return _named(clean, layout, prefix, tuple(mine), path)
        if found:
            raise CheckpointError(
                f"{path}: the only network of its kind is under {found[0]!r}, which "
                "names another part",
                "write the part that you mean to a file of its own",
            )
    return None


def _prefixes(names: Iterable[str], anchor: str) -> Iterable[str]:
    for name in names:
        before = name.removesuffix(anchor)
        if len(before) < len(name) and (not before or before[-1] in "./"):
            yield before


def _parts(prefix: str) -> set[str]:
    return set(re.split(r"[./]", prefix))


def _choose(prefixes: Sequence[str], path: Path, prefer: str) -> str:
    if len(prefixes) == 1:
        return prefixes[0]
    wanted = [prefix for prefix in prefixes if prefer in _parts(prefix)]
    tops = {name for p in prefixes for name in _top(p)}
    if len(wanted) == 1 and len(prefixes) == 2 and tops <= {EMA, LIVE}:
        return wanted[0]
    listed = ", ".join(repr(prefix) for prefix in prefixes[:4])
    raise CheckpointError(
        f"{path} holds {len(prefixes)} networks of one kind, under {listed}, and nothing "
        "says which",
        "write the one you mean to a file of its own",
    )


def _top(prefix: str) -> set[str]:
    """Which of the two sets of a training state a prefix is, itself if neither."""
    return (_parts(prefix) & {EMA, LIVE}) or {prefix}


def _named(
    clean: Mapping[str, str],
    layout: NamingScheme,
    prefix: str,
    choices: tuple[str, ...],
    path: Path,
) -> Naming:
    others = [choice for choice in choices if choice != prefix]
    names: dict[str, str] = {}
    left: list[str] = []
    part = _parts(prefix) & OTHERS  # of a whole model, of which the rest is other networks
    for raw, name in clean.items():
        inside = name.startswith(prefix)
        if part and not inside:
            left.append(raw)
            continue
        first = re.split(r"[./]", name.removeprefix(prefix), maxsplit=1)[0]
        beside = any(name.startswith(other) for other in others if not prefix.startswith(other))
        if first in OTHERS or (not inside and (beside or _parts(name) & OTHERS)):
            left.append(raw)
            continue
        native = layout.native(name.removeprefix(prefix))
        if native in names:
            raise CheckpointError(
                f"{path} holds {native} twice, once as {names[native]} and once as {raw}",
                "write the one you mean to a file of its own",
            )
        names[native] = raw
    return Naming(layout, prefix, names, tuple(left), choices)


TOP = {
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    "proj_out.": "head.head.",
    "scale_shift_table": "head.modulation",
}
"""Starts of names outside the blocks: diffusers' to Wan's."""

ATTENTION = {"to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "o."}

BLOCK = {
    "scale_shift_table": "modulation",
    "norm2.": "norm3.",
    "norm3.": "norm2.",
    "ffn.net.0.proj.": "ffn.0.",
    "ffn.net.2.": "ffn.2.",
    **{f"attn1.{theirs}": f"self_attn.{ours}" for theirs, ours in ATTENTION.items()},
    **{f"attn2.{theirs}": f"cross_attn.{ours}" for theirs, ours in ATTENTION.items()},
    "attn1.norm_": "self_attn.norm_",
    "attn2.norm_": "cross_attn.norm_",
}
"""Starts of names inside a block: diffusers' to Wan's; norm2 and norm3 change places."""


def from_diffusers(name: str) -> str:
    """Wan's name of a tensor in diffusers' layout; a name without a rule stays as it is."""
    return _renamed(name, TOP, BLOCK)


def to_diffusers(name: str) -> str:
    """Diffusers' name of one of Wan's tensors; a name without a rule stays as it is."""
    return _renamed(name, _turned(TOP), _turned(BLOCK))


def _turned(rules: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in rules.items()}


def _renamed(name: str, top: Mapping[str, str], block: Mapping[str, str]) -> str:
    within = re.match(r"blocks\.\d+\.", name)
    head = within.group() if within else ""
    rest = name[len(head) :]
    for before, after in (block if within else top).items():
        if rest.startswith(before):
            return head + after + rest[len(before) :]
    return name


def unchanged(name: str) -> str:
    """The name itself: for layouts that are a network's own."""
    return name


WAN = (
    NamingScheme("Wan's own", "head.modulation", unchanged),
    NamingScheme("diffusers'", "condition_embedder.time_embedder.linear_1.bias", from_diffusers),
)
"""How a Wan generator is named."""


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def first_names(names: Iterable[str]) -> str:
    """The first names of a file, for a message that says what is in it."""
    return f"{', '.join(sorted(names)[:3]) or 'nothing'}, ..."


def looks_like(
    names: Collection[str], table: Iterable[tuple[str, str]], *, whole: bool = True
) -> str | None:
    """What the names in a file look like: the first entry of `table` that fits one of them.

    Args:
        names: names of all tensors of the file.
        table: patterns, and what a file with such a name is.
        whole: whether a pattern fits a whole name but for its prefix, or any part of one.
    """
    for pattern, what in table:
        wanted = re.compile(rf"(^|[./])({pattern})$" if whole else pattern)
        if any(wanted.search(name) for name in names):
            return what
    return None


def holds_no(what: str, path: Path, names: Collection[str], hint: str) -> CheckpointError:
    """The error for a file none of whose tensors is named like those of a network.

    Args:
        what: the network that was looked for.
        path: the file.
        names: names of all its tensors.
        hint: what to do.
    """
    return CheckpointError(
        f"{path} holds no {what}: none of its {len(names)} tensors ({first_names(names)}) is named "
        "as one",
        hint,
    )
