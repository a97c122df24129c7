"""Numbers as people and other tools write them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from cfgen.config.loader import load
from cfgen.config.values import parse_bytes
from cfgen.errors import PresetError
from cfgen.units import ntsc, parse_rate


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("30000/1001", Fraction(30000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("119.88", Fraction(120000, 1001)),
        ("24", Fraction(24)),
        ("25.0", Fraction(25)),
        ("12.5", Fraction(25, 2)),
        ("29.5", Fraction(59, 2)),
        ("60/2", Fraction(30)),
    ],
)
def test_a_rate_is_exact(text: str, exact: Fraction) -> None:
    rate = parse_rate(text)
    assert rate == float(exact)
    assert (ntsc(rate) or Fraction(rate).limit_denominator(1001)) == exact
    assert load({"fps": text}, environ={}).config.fps == rate


@pytest.mark.parametrize("text", ["30000/0", "a", "1/2/3", "", "/3", "1e3", "-3", "241", "0.5"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(PresetError):
        load({"fps": text or "x"}, environ={})


@pytest.mark.parametrize("seed", [0, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_seed_has_64_bits(seed: int) -> None:
    import torch

    assert load({"seed": str(seed)}, environ={}).config.seed == seed
    torch.Generator().manual_seed(seed)


def test_minus_one_means_that_one_is_chosen() -> None:
    assert load({"seed": "-1"}, environ={}).config.seed is None
    for wrong in (str(2**64), "-2", "1.5", "x"):
        with pytest.raises(PresetError):
            load({"seed": wrong}, environ={})


@pytest.mark.parametrize("text", ["12", "1", "999", "12.5"])
def test_bytes_without_a_unit_are_asked_back(text: str) -> None:
    with pytest.raises(ValueError, match=rf"{text}G\?"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "nbytes"), [("0", 0), ("12G", 12e9), ("12b", 12), ("1000", 1000), ("2 GB", 2e9)]
)
def test_bytes_with_a_unit_are_read(text: str, nbytes: float) -> None:
    assert parse_bytes(text) == nbytes
