"""Where a model may be written, what must lie beside it, and that half of one never does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from cfgen.checkpoint.convert.convert import plan_convert
from cfgen.checkpoint.convert.input import open_source
from cfgen.checkpoint.convert.output import check
from cfgen.checkpoint.networks.fill import load_generator
from cfgen.errors import BudgetError, OutputRefused, UsageError
from tests.checkpoint import tiny

TinyFile = Callable[[str], tiny.Tiny]


def written(path: Path, target: Path) -> None:
    source = open_source(path)
    rewrite = plan_convert(source)
    check(source, target, nbytes=rewrite.nbytes, overwrite=False)
    rewrite.write(target)


def test_config_lies_beside_a_model_that_is_told_by_it_alone(
    state: dict[str, Tensor], folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = folder(state) / "diffusion_pytorch_model.safetensors"
    new = tmp_path / "new"
    new.mkdir()
    written(source, new / "model.safetensors")
    assert (new / "config.json").read_bytes() == source.with_name("config.json").read_bytes()
    assert load_generator(new / "model.safetensors").geometry == load_generator(source).geometry
    written(source, new / "again.safetensors")  # it lies there already, and is the same
    assert sorted(p.name for p in new.iterdir()) == [
        "again.safetensors",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "content", ['{"dim": 12, "num_heads": 3}', '{"d_model": 4, "num_heads": 2}', "nonsense"]
)
def test_config_of_another_model_is_never_replaced(
    content: str, state: dict[str, Tensor], folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = folder(state) / "diffusion_pytorch_model.safetensors"
    new = tmp_path / "new"
    new.mkdir()
    (new / "config.json").write_text(content)
    with pytest.raises(OutputRefused, match=r"config\.json is not that of"):
        written(source, new / "model.safetensors")
    assert (new / "config.json").read_text() == content
    assert len(list(new.iterdir())) == 1


def test_no_config_is_written_where_none_is_needed(tiny_file: TinyFile, tmp_path: Path) -> None:
    written(tiny_file("native_bf16").path, tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_interrupted_file_leaves_nothing(
    state: dict[str, Tensor], folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = open_source(folder(state) / "diffusion_pytorch_model.safetensors")
    new = tmp_path / "new"
    new.mkdir()

    def interrupt(step: object) -> None:
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(step)

    steps: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        plan_convert(source).write(new / "model.safetensors", interrupt)
    assert len(steps) == 5
    assert not list(new.iterdir())


def test_places_that_cannot_be_written_are_refused_before_work(
    tiny_file: TinyFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(tiny_file("native_bf16").path)

    def refused(target: Path, reason: str, error: type[Exception] = OutputRefused) -> None:
        with pytest.raises(error, match=reason):
            check(source, target, nbytes=10_000, overwrite=False)

    there = tmp_path / "there.safetensors"
    there.write_bytes(b"old")
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    link = tmp_path / "link.safetensors"
    link.symlink_to(source.path)
    refused(tmp_path / "model.pt", "must end in .safetensors", UsageError)
    refused(tmp_path / "no" / "x.safetensors", "does not exist")
    refused(folder, "is a folder")
    refused(there, "exists already")
    check(source, there, nbytes=10_000, overwrite=True)
    with pytest.raises(OutputRefused, match="is the source itself"):
        check(source, link, nbytes=10_000, overwrite=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 9_999}))
    refused(tmp_path / "new.safetensors", "needs 10,000 bytes, and 9,999 are free", BudgetError)
    assert there.read_bytes() == b"old"
