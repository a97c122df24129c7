"""An ffmpeg that is sure to have x264, for the tests of the writer."""

from __future__ import annotations

import pytest

from cfgen.video.ffmpeg import Ffmpeg, find_ffmpeg


@pytest.fixture(scope="session")
def ffmpeg() -> Ffmpeg:
    import imageio_ffmpeg

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFGEN_FFMPEG", imageio_ffmpeg.get_ffmpeg_exe())
        return find_ffmpeg()
