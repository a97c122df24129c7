"""Frames embedded as transformers does it, and what is said of films by that."""

from __future__ import annotations

import json
import math
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen import score
from cfgen.errors import InputRefused
from cfgen.metrics.consistency import frame_consistency
from cfgen.metrics.identity import WINDOWS, identity, moments_of
from cfgen.scoring.api import with_identities
from cfgen.scoring.embedder import Embedder, Preprocessing
from cfgen.scoring.record import score_record
from tests.scoring.conftest import pan, write_film


def _pixels(frame: NDArray[np.uint8], folder: Path, *, shortest: int) -> NDArray[np.float32]:
    """What transformers makes of a frame with Pillow."""
    from PIL import Image

    height, width = frame.shape[:2]
    size = (width * shortest // min(height, width), height * shortest // min(height, width))
    picture = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
    found = np.asarray(picture).astype(np.float32) / 255
    top, left = (size[1] - 28) // 2, (size[0] - 28) // 2
    found = found[top : top + 28, left : left + 28]
    return ((found - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)


def test_dinov2_embeds_its_first_token(dinov2: Path) -> None:
    import torch
    from transformers import Dinov2Model

    frames = pan(19)
    ours = np.concatenate(list(Embedder(dinov2).frames(frames)))
    network = Dinov2Model.from_pretrained(dinov2).eval()
    pixels = np.stack([_pixels(frame, dinov2, shortest=32) for frame in frames])
    with torch.inference_mode():
        truth = network(torch.from_numpy(pixels).float()).last_hidden_state[:, 0]
    np.testing.assert_allclose(ours, truth.numpy(), atol=1e-5)
    assert Embedder(dinov2).text("a kite") is None


def test_clip_embeds_frames_and_text_into_one_space(clip: Path, tmp_path: Path) -> None:
    embedder = Embedder(clip)
    (frames,) = embedder.frames(pan(3))
    text = embedder.text("a kite bat")
    assert text is not None
    assert frames.shape == (3, 6)
    assert text.shape == (6,)
    film = write_film(tmp_path / "a.mkv", pan(100), prompt="a kite bat")
    found = score(film, embedder=embedder).embedding
    assert found is not None
    assert found.to_text_by_mark is not None
    unit = [f / np.linalg.norm(f) for f in np.concatenate(list(embedder.frames(pan(100))))]
    direction = text / np.linalg.norm(text)
    truth = np.mean([float(unit[n] @ direction) for n in range(76, 85)])
    assert found.to_text_by_mark[10] == pytest.approx(truth, abs=1e-5)


def test_clip_without_a_tokenizer_embeds_frames_alone(clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path / "clip")
    (tmp_path / "clip" / "vocab.json").unlink()
    film = write_film(tmp_path / "a.mkv", pan(8), prompt="a kite")
    found = score(film, embedder=str(tmp_path / "clip")).embedding
    assert found is not None
    assert found.to_text_by_mark is None


def test_damaged_tokenizer_is_refused(clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path / "clip")
    (tmp_path / "clip" / "merges.txt").write_text("#version: 0.2\nk z\n")
    with pytest.raises(InputRefused, match="tokenizer"):
        Embedder(tmp_path / "clip").text("a kite")


def test_loading_draws_nothing(clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Embedder(clip).text("a kite")
    assert capfd.readouterr() == ("", "")


def test_still_film_is_all_alike_and_says_so_beside_its_motion(
    dinov2: Path, tmp_path: Path
) -> None:
    film = write_film(tmp_path / "still.mkv", pan(1) * 100)
    told: Any = score_record(score(film, embedder=Embedder(dinov2)))["embedding"]
    assert told["motion"] == 0
    for value in (told["in_clip"], told["clip_to_clip"], told["to_first_by_mark"]["10"]):
        assert value == pytest.approx(1)
    assert told["by_lag"]["50"] == pytest.approx(1)
    assert told["to_first_by_second"] == pytest.approx([1] * 13)
    assert len(told["sha256"]) == 64


def test_clips_are_those_of_vbench(dinov2: Path, tmp_path: Path) -> None:
    embedder = Embedder(dinov2)
    film = write_film(tmp_path / "a.mkv", pan(40))
    found = score(film, embedder=embedder).embedding
    assert found is not None
    raw = np.concatenate(list(embedder.frames(pan(40)))).astype(float)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert found.clip_to_clip == pytest.approx(frame_consistency(unit[[0, 16, 24]]))
    clips = [frame_consistency(unit[n : n + 16]) for n in (0, 16, 24)]
    assert found.in_clip == pytest.approx(np.mean([clip for clip in clips if clip is not None]))


def test_after_a_cut_frames_are_compared_with_the_first_of_their_scene(
    dinov2: Path, tmp_path: Path
) -> None:
    one, two = (np.full((32, 48, 3), level, np.uint8) for level in (20, 220))
    film = write_film(tmp_path / "cut.mkv", [one] * 50 + [two] * 50)
    found = score(film, embedder=Embedder(dinov2))
    assert found.score.cuts == (50,)
    assert found.embedding is not None
    assert found.embedding.to_first_by_mark == {10: pytest.approx(1)}


def test_identity_is_that_of_loops() -> None:
    rng = np.random.default_rng(7)
    films = [rng.normal(size=(480, 5)) + rng.normal(size=5) * 3 for _ in range(3)]
    units = [film / np.linalg.norm(film, axis=1, keepdims=True) for film in films]
    moments = [moments_of(unit, Fraction(10)) for unit in units]
    assert moments[0] is not None
    found = identity(moments[0], [each for each in moments[1:] if each is not None])

    def mean(unit: NDArray[np.float64], times: list[float]) -> NDArray[np.float64]:
        total = sum(unit[math.floor(second * 10 + 1e-9)] for second in times)
        return np.asarray(total / np.linalg.norm(total))

    openings = [mean(unit, [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]) for unit in units]
    for name, (begins, ends) in WINDOWS.items():
        stop = min(ends, 47.6)
        window = mean(units[0], [begins + (stop - begins) * n / 5 for n in range(6)])
        theirs = sum(float(window @ opening) for opening in openings[1:]) / 2
        assert found[name] == pytest.approx(float(window @ openings[0]) - theirs)
    assert found["retention"] == pytest.approx(found["late"] / found["early"])


@pytest.mark.parametrize(("seconds", "windows"), [(2, None), (4, set()), (7, {"early"})])
def test_windows_that_a_film_reaches(seconds: int, windows: set[str] | None) -> None:
    found = moments_of(np.ones((seconds * 8, 1)), Fraction(8))
    assert (None if found is None else set(found.windows)) == windows


def test_films_of_one_prompt_have_an_identity(dinov2: Path, tmp_path: Path) -> None:
    embedder = Embedder(dinov2)
    keys = [("a kite", 1), ("a kite", 2), ("a boat", 1)]
    films = [
        score(
            write_film(tmp_path / f"{n}.mkv", pan(20, 60 * n), rate="4", prompt=prompt, seed=seed),
            embedder=embedder,
        )
        for n, (prompt, seed) in enumerate(keys)
    ]
    told = [film.embedding.identity for film in with_identities(films) if film.embedding]
    assert [set(each) for each in told] == [{"early"}, {"early"}, set()]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "cannot read"),
        ("config.json", "[]", "is no mapping"),
        ("config.json", "{", "cannot read"),
        ("config.json", '{"model_type": "bert"}', "'bert'"),
        ("model.safetensors", None, "holds no model.safetensors"),
        ("model.safetensors", "damaged", "cannot be loaded"),
        ("preprocessor_config.json", None, "cannot read"),
        ("preprocessor_config.json", "{}", "does not say"),
    ],
)
def test_folders_without_an_embedder_are_refused(
    dinov2: Path, tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(dinov2, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(InputRefused, match=words):
        Embedder(folder)


def test_weights_that_lack_tensors_are_refused(dinov2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(dinov2, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(dict(list(tensors.items())[2:]), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputRefused, match="lacks 2 tensors"):
        Embedder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"height": 28}},
        {"size": {"shortest_edge": 0}},
        {"crop_size": 1 << 20},
        {"image_mean": [1, 2]},
        {"resample": "bicubic"},
        {"image_std": None},
    ],
)
def test_odd_preprocessing_is_refused(
    dinov2: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    facts = json.loads((dinov2 / "preprocessor_config.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps(facts | changes))
    with pytest.raises(InputRefused, match="does not say"):
        Preprocessing.of(tmp_path / "p.json")
