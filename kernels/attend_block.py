"""What a program of `attend` does at once: turn a tile of queries, and meet a block of keys.

Letters: P tokens of a page, D head dim, which lies padded to WIDTH, a power of two.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# The bodies of kernels are Triton's language, in which a tensor's type is not Python's.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_queries(q, left, stride, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr):
    """A tile of queries in float32; past the last of them it repeats that one.

    Volatile, because Triton would load the tile before the loop over pages, and spill it.
    """
    channel = tl.arange(0, WIDTH)[None]
    at = q + tl.minimum(tl.arange(0, QUERIES), left - 1)[:, None] * stride + channel
    if D == WIDTH:
        x = tl.load(at, volatile=True)
    else:
        x = tl.load(at, mask=channel < D, other=0, volatile=True)
    return x.to(tl.float32)


@triton.jit
def turn_back(x, turn, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr):
    """A tile turned by minus the angles at `turn`: each pair of channels times a matrix of its own.

    A sum over products, because `tl.join` would have Triton take the tile for unpacked 4-bit
    numbers, and load it and the keys in small pieces before sm_90.
    """
    pair = tl.minimum(tl.arange(0, WIDTH // 2), D // 2 - 1)[:, None, None]
    cosine, sine = tl.load(turn + 2 * pair), tl.load(turn + 2 * pair + 1)
    to, of = tl.arange(0, 2)[None, :, None], tl.arange(0, 2)[None, None]
    matrix = tl.where(to == of, cosine, tl.where(to < of, sine, -sine))
    pairs = tl.reshape(x, (QUERIES, WIDTH // 2, 1, 2))
    return tl.reshape(tl.sum(pairs * matrix[None], 3), (QUERIES, WIDTH))


@triton.jit
def with_bias(shift, bias, slot):
    """What is added to the scores of a page: `shift`, and the bias of its slot if there are any."""
    if bias is not None:
        shift += tl.load(bias + slot)
    return shift


@triton.jit
def block(
    q,
    acc,
    top,
    total,
    k,
    v,
    k_stride,
    v_stride,
    start,
    unit,
    shift,
    P: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    """Add a block of keys, from number `start` on, to the softmax so far.

    To the scores of int8 keys, and of others if SHIFTED, `shift` is added.

    The last block of a page begins early enough to end with it, and a page that is smaller than a
    block has its last key repeated: nothing else is read, and what counts already has no weight.
    """
    channel = tl.arange(0, WIDTH)
    begin = tl.minimum(start, P - KEYS) if P > KEYS else 0
    key = begin + tl.arange(0, KEYS)
    token = key if P >= KEYS else tl.minimum(key, P - 1)
    k_at = k + token[None] * k_stride + channel[:, None]
    v_at = v + token[:, None] * v_stride + channel[None]
    if D == WIDTH:
        keys, values = tl.load(k_at), tl.load(v_at)
    else:
        keys = tl.load(k_at, mask=(channel < D)[:, None], other=0)
        values = tl.load(v_at, mask=(channel < D)[None], other=0.0)
    weights, higher = _weigh(q, keys, top, unit, shift, SHIFTED)
    if P < KEYS:
        weights = tl.where((key < P)[None], weights, 0)
    elif P % KEYS and begin < start:
        weights = tl.where((key >= start)[None], weights, 0)
    return _add(weights, values, acc, top, higher, total)


@triton.jit
def sized_page(
    q,
    acc,
    top,
    total,
    k,
    v,
    tokens,
    unit,
    shift,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    SHIFTED: tl.constexpr,
):
    """Add a page of a number of tokens that is known on the device only, as `block` does."""
    channel = tl.arange(0, WIDTH)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        token = tl.minimum(key, tokens - 1)
        k_at = k + token[None] * D + channel[:, None]
        v_at = v + token[:, None] * D + channel[None]
        if D == WIDTH:
            keys, values = tl.load(k_at), tl.load(v_at)
        else:
            keys = tl.load(k_at, mask=(channel < D)[:, None], other=0)
            values = tl.load(v_at, mask=(channel < D)[None], other=0.0)
        weights, higher = _weigh(q, keys, top, unit, shift, SHIFTED)
        weights = tl.where((key < tokens)[None], weights, 0)
        acc, top, total = _add(weights, values, acc, top, higher, total)
    return acc, top, total


@triton.jit
def _weigh(q, keys, top, unit, shift, SHIFTED: tl.constexpr):
    """Weights of a block of keys, and the largest score so far that they are relative to."""
    if q.dtype == tl.int8:
        products = tl.dot(q, keys, out_dtype=tl.int32)
        higher = tl.maximum(top, tl.max(products, 1) * unit + shift)
        weights = tl.exp2(products.to(tl.float32) * unit[:, None] + (shift - higher)[:, None])
    else:
        scores = tl.dot(q, keys, input_precision="ieee")
        if SHIFTED:
            higher = tl.maximum(top, tl.max(scores, 1) + shift)
            weights = tl.exp2(scores + (shift - higher)[:, None])
        else:
            higher = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp2(scores - higher[:, None])
    return weights, higher


@triton.jit
def _add(weights, values, acc, top, higher, total):
    """The softmax so far with a block's values."""
    kept = tl.exp2(top - higher)
    total = total * kept + tl.sum(weights, 1)
    acc = acc * kept[:, None]
    if values.dtype == tl.float8e4nv:  # float16 holds fp8 exactly, and weights better than bfloat16
        acc = tl.dot(weights.to(tl.float16), values.to(tl.float16), acc)
    else:
        acc = tl.dot(weights.to(values.dtype), values, acc, input_precision="ieee")
    return acc, higher, total
