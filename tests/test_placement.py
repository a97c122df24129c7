"""The arithmetic of what fits where: the least offloading that suffices, or a refusal in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfgen.errors import BudgetError
from cfgen.pipeline.offload_plan import CUDA_CONTEXT, LEVELS, PROGRAM, MemoryEstimate, choose, table

GB = 10**9
WAN = MemoryEstimate(
    blocks=5 * GB // 2,
    largest=28 * 10**6,
    rest=GB // 5,
    kv=3 * GB,
    context=5 * GB // 2,
    layers=30,
    conditioning=GB // 10,
    forward=GB,
    vae=GB // 4,
    decode=2 * GB,
    text=11 * GB,
    encode=GB // 2,
)
"""About what Wan 1.3B takes at 832x480."""

amounts = st.integers(0, 10**11)


@st.composite
def sizes(draw: st.DrawFn) -> MemoryEstimate:
    """Of models with at least two layers, whose blocks hold at least two matrices."""
    parts = {name: draw(amounts) for name in ("rest", "kv", "conditioning", "forward", "vae")}
    more = {name: draw(amounts) for name in ("decode", "text", "encode", "adapters")}
    largest, layers = draw(amounts), draw(st.integers(2, 40))
    return MemoryEstimate(
        blocks=2 * largest + draw(amounts),
        largest=largest,
        layers=layers,
        context=draw(st.integers(0, parts["kv"])),
        **parts,
        **more,
    )


@given(sizes())
def test_each_level_takes_no_more_of_the_gpu_and_no_less_of_main_memory(
    found: MemoryEstimate,
) -> None:
    vram = [found.vram(level) for level in LEVELS]
    assert vram == sorted(vram, reverse=True)
    ram = [found.ram_beside_gpu(level) for level in LEVELS]
    assert ram == sorted(ram)


@given(sizes(), st.integers(0, 10**12))
def test_what_is_chosen_fits_and_nothing_less_does(found: MemoryEstimate, budget: int) -> None:
    fitting = [level for level in LEVELS if found.vram(level) <= budget]
    if fitting:
        chosen = choose(found, asked="auto", budget=budget)
        assert chosen.offload == fitting[0]
        assert found.vram(chosen.offload) <= budget
    else:
        with pytest.raises(BudgetError):
            choose(found, asked="auto", budget=budget)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_chosen_down_to_its_last_byte(level: str) -> None:
    budget = WAN.vram(level)
    assert choose(WAN, asked="auto", budget=budget).offload == level
    if level == LEVELS[-1]:
        with pytest.raises(BudgetError):
            choose(WAN, asked="auto", budget=budget - 1)
    else:
        after = LEVELS[LEVELS.index(level) + 1]
        assert choose(WAN, asked="auto", budget=budget - 1).offload == after


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_that_is_asked_for_is_taken_whatever_would_fit(level: str) -> None:
    assert choose(WAN, asked=level, budget=1000 * GB).offload == level
    with pytest.raises(BudgetError):
        choose(WAN, asked=level, budget=WAN.vram(level) - 1)


def test_a_choice_is_explained() -> None:
    room = choose(WAN, asked="auto", budget=80 * GB)
    assert room.why == f"everything on the GPU: about {WAN.vram('none') / 1e9:.1f} GB of 80.0 GB"
    less = choose(WAN, asked="auto", budget=WAN.vram("blocks"))
    assert less.why.startswith("the blocks' weights wait in main memory: about ")
    assert less.why.endswith(f"; --offload none would take {WAN.vram('none') / 1e9:.1f} GB")
    least = choose(WAN, asked="all", budget=80 * GB)
    assert least.why.startswith("the blocks' weights and the KV cache wait in main memory: about ")
    assert "would take" not in least.why, "it was asked for"


def test_a_refusal_says_what_each_level_takes() -> None:
    with pytest.raises(BudgetError) as caught:
        choose(WAN, asked="auto", budget=GB)
    takes = ", ".join(f"{level} {WAN.vram(level) / 1e9:.1f} GB" for level in LEVELS)
    assert str(caught.value) == (
        f"this render does not fit in 1.0 GB of GPU memory; with --offload it takes {takes}"
    )
    assert "smaller" in str(caught.value.hint)
    assert caught.value.exit_code == 3


def test_a_refused_level_points_to_the_one_that_fits() -> None:
    with pytest.raises(BudgetError) as caught:
        choose(WAN, asked="none", budget=WAN.vram("all"))
    assert "--offload all" in str(caught.value.hint)
    with pytest.raises(BudgetError) as caught:
        choose(WAN, asked="none", budget=GB)
    assert "--offload" not in str(caught.value.hint)


def test_on_a_cpu_the_encoder_is_gone_before_the_generator_comes() -> None:
    assert WAN.ram_on_cpu == PROGRAM + WAN.text + WAN.encode
    small = replace(WAN, text=GB)
    made = WAN.context + WAN.forward
    held = WAN.blocks + WAN.rest + WAN.vae + WAN.kv + WAN.conditioning
    assert small.ram_on_cpu == PROGRAM + held + made
    assert replace(small, adapters=GB).ram_on_cpu == small.ram_on_cpu + GB
    decoding = replace(small, decode=made + 1)
    assert decoding.ram_on_cpu == small.ram_on_cpu + 1, "made and decoded by turns"


@pytest.mark.parametrize("part", ["rest", "conditioning", "vae", "adapters"])
def test_what_never_waits_counts_at_every_level(part: str) -> None:
    more = replace(WAN, **{part: getattr(WAN, part) + GB})
    for level in LEVELS:
        assert more.vram(level) - WAN.vram(level) >= GB
        assert WAN.vram(level) > CUDA_CONTEXT


def test_the_table_counts_what_is_held_and_what_works_once() -> None:
    counted = replace(WAN, adapters=7, largest=0, context=0, layers=0)  # parts of others, a count
    names = MemoryEstimate.__slots__
    assert sum(table(counted).values()) == sum(getattr(counted, name) for name in names)
