"""Whatever a file of others says, the answer is one of cfgen's errors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cfgen.checkpoint.identify.preset_guess import _read
from cfgen.checkpoint.networks.tokenizer import open_tokenizer
from cfgen.errors import CheckpointError
from cfgen.model import tokenizer as tokenizers
from cfgen.model.tokenizer import numbers_of


class PanicException(BaseException):
    """As pyo3 raises it: no `Exception`."""


@dataclass
class Fake:
    does: Callable[[], list[int]]

    def get_vocab_size(self) -> int:
        return 8

    def token_to_id(self, token: str) -> int | None:
        return 1

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Fake:
        return self

    @property
    def ids(self) -> list[int]:
        return self.does()


def _panics() -> list[int]:
    raise PanicException("called `Option::unwrap()` on a `None` value")


def _fails() -> list[int]:
    raise IndexError("out of range")


def _hangs() -> list[int]:
    time.sleep(3)
    return []


@pytest.mark.parametrize(
    ("does", "words"),
    [
        (_panics, "fails: called"),
        (_fails, "fails: out of range"),
        (_hangs, "takes longer than"),
        (lambda: [1, 10**9], "gives the number 1000000000"),
        (lambda: [-1], "gives the number -1"),
        (lambda: [8], "the encoder has 8 rows"),
    ],
)
def test_a_tokenizer_that_misbehaves_is_told(
    does: Callable[[], list[int]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "TIME_LIMIT_S", 0.3)
    with pytest.raises(CheckpointError, match=words):
        numbers_of(Fake(does), "a fox", rows=8)


def _tokenizer(**changes: object) -> str:
    words = {"type": "WordLevel", "vocab": {"</s>": 0, "a": 1}, "unk_token": "a"}
    plain = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None}
    return json.dumps({**plain, "post_processor": None, "decoder": None, "model": words, **changes})


def _doubling(times: int) -> dict[str, object]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [step] * times}


def _bomb() -> dict[str, object]:
    pattern = {"Regex": "(a|aa|a*)*(a|aa|a*)*b(?=c)"}
    return {"type": "Replace", "pattern": pattern, "content": ""}


@pytest.mark.parametrize("normalizer", [_doubling(40), _bomb()])
def test_rules_that_never_end_are_given_up(
    normalizer: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or they end in time after all; what matters is that nobody waits."""
    monkeypatch.setattr(tokenizers, "TIME_LIMIT_S", 1.0)
    (tmp_path / "tokenizer.json").write_text(_tokenizer(normalizer=normalizer))
    began = time.monotonic()
    try:
        numbers_of(open_tokenizer(tmp_path / "tokenizer.json"), "a" * 40, rows=8)
    except CheckpointError as error:
        assert "tokenizer" in str(error)  # noqa: PT017 - either way is well
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: " + "{b: " * 3000,
        '"\\ud800": x\n\\ud800',
        "? [a, b]\n: c",
        "? {a: b}\n: c",
        "a: !!python/object:os.system x",
        "a: 2001-99-99",
        "- 1",
        "\x00",
        "&a [*a]",
    ],
)
def test_a_sidecar_of_any_kind_is_read_or_refused(text: str, tmp_path: Path) -> None:
    for name in ("a.yaml", "a.json"):
        (tmp_path / name).write_text(text)
        try:
            found = _read(tmp_path / name)
        except CheckpointError as error:
            assert str(error)  # noqa: PT017 - refusing is well
        else:
            assert isinstance(found, dict)
