"""How a LoRA and its strength are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfgen.config.values import parse_lora
from cfgen.errors import UsageError


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("film.safetensors", "film.safetensors", 1.0),
        ("film.safetensors:0.8", "film.safetensors", 0.8),
        (" a/b.pt:-1.5 ", "a/b.pt", -1.5),
        (r"C:\loras\film.safetensors", r"C:\loras\film.safetensors", 1.0),
        (r"C:\loras\film.safetensors:0.8", r"C:\loras\film.safetensors", 0.8),
        ("C:/loras/film.safetensors:2", "C:/loras/film.safetensors", 2.0),
        ("owner/name@main/lora.pt:.5", "owner/name@main/lora.pt", 0.5),
        ("a:b/film.safetensors", "a:b/film.safetensors", 1.0),
        ("a:b.safetensors:1", "a:b.safetensors", 1.0),
    ],
)
def test_path_and_strength_are_read(text: str, path: str, strength: float) -> None:
    assert parse_lora(text) == (path, strength)


@pytest.mark.parametrize(
    "text", ["", ":0.8", "a.pt:", "a.pt:much", "a.pt:0", "a.pt:nan", "a.pt:inf", "C:a.pt", "a:1:x"]
)
def test_what_is_no_lora_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="what follows the colon must be a finite number") as error:
        parse_lora(text)
    assert "PATH:0.8" in str(error.value.hint)


@given(st.text(alphabet="abC:\\/.0123456789-+e ", max_size=12))
def test_any_text_is_read_or_refused_but_never_breaks(text: str) -> None:
    try:
        path, strength = parse_lora(text)
    except UsageError:
        return
    assert path
    assert path in text
    assert strength != 0
