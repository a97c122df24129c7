import os
from pathlib import Path

import pytest

from cfgen.errors import OutputRefused, UsageError
from cfgen.files.writing import part_of, publish
from cfgen.video import output
from cfgen.video.output import check_output, sidecar_of


def test_names_around_an_output() -> None:
    output = Path("films/the fox.v2.mp4")
    assert part_of(output) == Path("films/the fox.v2.part.mp4")
    assert sidecar_of(output) == Path("films/the fox.v2.mp4.json")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.MP4", "気球 é.mp4", "-o.mp4", "a:b%d'\".mp4"])
def test_good_output_passes_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    check_output(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "clip.mp4"
    output.write_bytes(b"older film")
    check_output(output)
    assert output.read_bytes() == b"older film"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("name", ["clip", "clip.avi", "clip.mp4.gz", ".mp4"])
def test_other_endings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.mp4"):
        check_output(tmp_path / name)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputRefused, match=r"folder .*nowhere does not exist"):
        check_output(tmp_path / "nowhere" / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "film").write_text("")
    with pytest.raises(OutputRefused, match="film is not a folder"):
        check_output(tmp_path / "film" / "clip.mp4")


@pytest.mark.parametrize("taken", ["clip.mp4", "clip.mp4.json"])
def test_name_taken_by_a_folder_is_refused(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).mkdir()
    with pytest.raises(OutputRefused, match="is a folder, not a file"):
        check_output(tmp_path / "clip.mp4")


@pytest.mark.parametrize("stem", ["x" * 247, "気" * 82, "x" * 300])
def test_name_too_long_with_its_temporary_ending_is_refused(stem: str, tmp_path: Path) -> None:
    with pytest.raises(OutputRefused, match="too long"):
        check_output(tmp_path / f"{stem}.mp4")
    assert list(tmp_path.iterdir()) == []


def test_name_with_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputRefused, match="null"):
        check_output(tmp_path / "a\0b.mp4")


def test_folder_that_refuses_writes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(output, "create_exclusive", denied)
    with pytest.raises(OutputRefused, match="Permission denied"):
        check_output(tmp_path / "clip.mp4")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="the superuser may write anywhere"
)
def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputRefused, match="Permission denied"):
            check_output(tmp_path / "clip.mp4")
    finally:
        tmp_path.chmod(0o700)


def test_publish_gives_all_files_their_names_or_none(tmp_path: Path) -> None:
    video, sidecar = tmp_path / "clip.mp4", tmp_path / "clip.mp4.json"
    video.write_text("older")
    part_of(video).write_text("newer")
    with pytest.raises(FileNotFoundError):
        publish(video, sidecar)
    assert video.read_text() == "older"
    part_of(sidecar).write_text("facts")
    publish(video, sidecar)
    assert (video.read_text(), sidecar.read_text()) == ("newer", "facts")
    assert sorted(tmp_path.iterdir()) == [video, sidecar]
