"""Command lines hold any file name, and only ffmpeg-python's module builds them."""

from __future__ import annotations

import sys
import types

import pytest

from cfgen.errors import FfmpegMissing
from cfgen.video.ffmpeg_graph import argv_of, graph_module, shielded


@pytest.mark.parametrize("name", ["a b.mp4", "f\udcff.mp4", "\udc80日\udcff", "-x.mp4"])
def test_a_name_comes_out_as_it_went_in(name: str) -> None:
    stream = graph_module().input(shielded(f"file:{name}")).output("pipe:1", format="framecrc")
    assert f"file:{name}" in argv_of(stream, ["ffmpeg"])


@pytest.mark.parametrize("names", [(), ("FFmpeg", "Progress"), ("input", "output")])
def test_another_package_s_module_is_named(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    other = types.ModuleType("ffmpeg")
    other.__file__ = "/site-packages/ffmpeg/__init__.py"
    for name in names:
        setattr(other, name, object())
    monkeypatch.setitem(sys.modules, "ffmpeg", other)
    with pytest.raises(FfmpegMissing, match="is not that of ffmpeg-python.*site-packages") as told:
        graph_module()
    assert "ffmpeg-python" in (told.value.hint or "")


def test_a_missing_module_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ffmpeg", None)
    with pytest.raises(FfmpegMissing, match="cannot be imported"):
        graph_module()
