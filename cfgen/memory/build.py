"""Puts a memory together; rendering, training, benches and tests all build theirs here."""

from __future__ import annotations

from collections.abc import Sequence

from cfgen.errors import PresetError, Problem
from cfgen.memory.attention import KVAttention
from cfgen.memory.autograd import AutogradAttention, GraphCache
from cfgen.memory.heads import HeadSplit
from cfgen.memory.page_pool import KVCache
from cfgen.memory.paged import Admit, PagedMemory
from cfgen.memory.paged_attention import PagedAttention
from cfgen.memory.policy import AdmissionRule, Policy, read_tokens
from cfgen.memory.pre_rotated import PreRotatedAttention
from cfgen.memory.protocols import Table
from cfgen.ops.reference import Rope
from cfgen.ops.select import Ops


def build_memory(
    policy: Policy,
    pool: KVCache | GraphCache,
    ops: Ops,
    *,
    latent_frames: int,
    head_dim: int,
    grid: tuple[int, int],
    chunk: int | None = None,
    admit: Admit | None = None,
    heads: HeadSplit | None = None,
) -> PagedMemory:
    """An empty memory of a policy.

    Args:
        policy: What is kept.
        pool: Where pages lie; a `GraphCache` keeps gradients.
        ops: What computes.
        latent_frames: Length of the clip, for a policy that keeps all of it.
        head_dim: Width of an attention head.
        grid: Rows and columns of tokens of a latent frame.
        chunk: Latent frames of the largest chunk; None where chunks may be of any size.
        admit: Another op that decides on key frames than that of `ops`.
        heads: How heads are shared out among processes; the pool holds those of this one.

    Raises:
        PresetError: The policy names a layer that there is not.
    """
    rule = policy.admission
    if rule and (beyond := [layer for layer in rule.layers if layer >= pool.layers]):
        reason = f"the model has layers 0 to {pool.layers - 1}, got {beyond[0]}"
        raise PresetError([Problem(key="memory.admission_layers", reason=reason)])
    tables = [policy.table(latent_frames) for _ in range(pool.layers)]
    slots, tokens = policy.capacity(latent_frames), None
    if chunk is not None:
        slots = policy.readable(latent_frames, chunk)
        tokens = read_tokens(policy, latent_frames, chunk, grid)
    committed = 0 if isinstance(pool, GraphCache) else policy.recaches
    return assemble(
        tables,
        pool,
        ops,
        rope=Rope(head_dim),
        grid=grid,
        slots=slots,
        tokens=tokens,
        pooled=policy.pooled,
        admit=admit,
        rule=rule,
        recaches=max(committed, policy.reencodes),
        shared=isinstance(pool, KVCache) and (pool.is_offloaded or pool.is_quantized),
        heads=heads,
    )


def assemble(
    tables: Sequence[Table],
    pool: KVCache | GraphCache,
    ops: Ops,
    *,
    rope: Rope,
    grid: tuple[int, int],
    slots: int,
    tokens: int | None = None,
    pooled: bool = False,
    admit: Admit | None = None,
    rule: AdmissionRule | None = None,
    shared: bool = False,
    recaches: int = 0,
    heads: HeadSplit | None = None,
) -> PagedMemory:
    """A memory of given tables, one per layer, which reads at most `slots` pages a pass.

    They have `tokens` together; None where each is a whole latent frame. With `shared`, one layer's
    rotated copies serve all layers: what is stored small, or elsewhere, is not to be held a second
    time in full.
    """
    attention = attention_of(
        pool,
        tables,
        ops,
        rope=rope,
        grid=grid,
        slots=slots,
        tokens=tokens,
        pooled=pooled,
        shared=shared,
    )
    tau, layers = rule or AdmissionRule(0.95, ())
    return PagedMemory(
        tables,
        pool,
        attention,
        admit=admit or ops.admit,
        spatial=rope.spatial(grid),
        tau=tau,
        admission_layers=layers,
        recaches=recaches,
        heads=heads,
    )


def attention_of(
    pool: KVCache | GraphCache,
    tables: Sequence[Table],
    ops: Ops,
    *,
    rope: Rope,
    grid: tuple[int, int],
    slots: int,
    tokens: int | None,
    pooled: bool,
    shared: bool,
) -> KVAttention:
    """What reads a pool: in the graph where gradients are kept, page by page where the ops can.

    Else it reads rotated copies. The arguments are those of `assemble`.
    """
    if isinstance(pool, GraphCache):
        return AutogradAttention(pool, ops, rope=rope, grid=grid, pooled=pooled)
    if ops.pages is None:
        return PreRotatedAttention(
            pool,
            ops,
            rope=rope,
            grid=grid,
            slots=slots,
            tokens=tokens,
            pooled=pooled,
            shared=shared,
        )
    return PagedAttention(
        pool,
        ops.pages,
        rope=rope,
        grid=grid,
        slots=slots,
        steps=max(table.steps for table in tables),
        biased=any(table.biased for table in tables),
        pooled=pooled,
    )
