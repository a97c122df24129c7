"""The report page: what it says is so, its links lead to files, its commands do what they say."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from typer.testing import Result

from cfgen.config.loader import load
from cfgen.config.schema import digest, to_mapping
from cfgen.files.writing import sha256_of
from cfgen.report.commands import branch_command, render_command, resume_command
from cfgen.report.curves import curve_of, curves_of
from cfgen.report.films import differing_settings
from cfgen.report.page import keep_current, page_text, write_report
from cfgen.report.subjects import films_of, subject_of
from cfgen.runs.folder import RunFolder, RunRecord
from cfgen.runs.journal import ChunkLine, VideoLine
from cfgen.runs.lock import Lock
from cfgen.scoring.record import read_score
from cfgen.video.contact_sheet import sheet_of
from cfgen.video.output import format_of, run_of, sidecar_of, video_of
from tests.cli.conftest import FakeBuild

Run = Callable[..., Result]


def a_run(
    video: Path, *settings: str, chunks: int = 14, finished: bool = True, prompt: str = "a boat"
) -> RunFolder:
    """A run folder as a render leaves it, with a video of five bytes."""
    shots = any(setting.startswith("shots=") for setting in settings)
    flags = {"seed": "3", "output": str(video)} | ({} if shots else {"prompt": prompt})
    config = load(flags, assignments=settings).config
    record = RunRecord(
        output=video.name,
        overwrite=False,
        config=to_mapping(config),
        fingerprint={},
        created="2026-01-02T03:04:05+00:00",
    )
    video.parent.mkdir(parents=True, exist_ok=True)
    folder = RunFolder.create(run_of(video), record)
    for index in range(chunks):
        folder.journal.append(
            ChunkLine(
                index=index,
                frames=12 if index else 9,
                frames_sha256="0" * 64,
                latents_sha256="0" * 64,
                elapsed_s=1.5 * (index + 1),
            )
        )
    if finished:
        if format_of(video).is_folder:
            video.mkdir()
        frame = video / "000001.png" if video.is_dir() else video
        frame.write_bytes(b"video")
        digest_ = sha256_of(video)
        folder.journal.append(
            VideoLine(frames=160, nbytes=5, sha256=digest_, frames_sha256="0" * 64)
        )
        sidecar_of(video).write_text(json.dumps({"facts": {"sha256": digest_}}))
    return folder


def a_batch(*states: str) -> Path:
    """A list that was begun, and its report: each clip in one of these states."""
    rows = []
    for number, state in enumerate(states):
        video = Path(f"clip-{number}.mp4")
        if state in ("done", "started"):
            a_run(video, finished=state == "done", chunks=14 if state == "done" else 5)
        row: dict[str, object] = {"name": video.stem, "seed": number, "output": str(video)}
        rows.append(
            row | {"state": state, "error": "no `ffmpeg` at all" if state == "failed" else ""}
        )
    Path("list.yaml").write_text("version: 1\n")
    Path("list.yaml.report.json").write_text(json.dumps({"version": 1, "done": 0, "clips": rows}))
    return Path("list.yaml")


class Page(HTMLParser):
    """What is on a page: its tags, links and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def links(self) -> list[str]:
        found = [attrs.get("src") or attrs.get("href") for _, attrs in self.tags]
        return [link for link in found if link and not link.startswith(("#", "data:"))]


def page_of(target: str | Path) -> Page:
    subject = subject_of(Path(target))
    return Page(page_text(subject, films_of(subject, subject.page), subject.page))


COMMANDS = {
    "plain": (),
    "quoted": ('prompt=it\'s a "red" kite; $HOME `ls` *',),
    "option": ("prompt=--preset",),
    "memory": ("memory.policy=window", "memory.size=12"),
    "steps": ("schedule.timesteps=[1000, 500]", "schedule.first_timesteps=[1000]"),
    "size": ("size=256x144", "fps=24", "rng=reference"),
    "flags": ("compile=true", "model.quantized=keep"),
    "numbers": ("memory.tau=0.9123456", "schedule.guidance=2.5"),
    "shots": ("shots=8s: a red kite | 6s cut: it's a blue boat",),
    "unchanged frames": ("snapshot.mode=latents", "preview=true", "contact_sheet=false"),
}


@pytest.mark.parametrize("settings", COMMANDS.values(), ids=COMMANDS)
def test_the_command_renders_the_same_film(
    cfgen: Run, build: FakeBuild, settings: tuple[str, ...]
) -> None:
    own = any(each.startswith(("prompt=", "shots=")) for each in settings)
    flags = {"seed": "5"} | ({} if own else {"prompt": "a boat", "duration": "4s"})
    config = load(flags, assignments=settings).config
    words = shlex.split(render_command(config, "-again.mp4"))
    assert words[0] == "cfgen"
    result = cfgen(*words[1:])
    assert result.exit_code == 0, result.stderr
    assert digest(build.configs[-1]) == digest(config)
    assert str(build.configs[-1].output) == "-again.mp4"


def test_commands_name_films_as_a_shell_reads_them() -> None:
    before, after = branch_command("my films/a kite.mp4")
    assert shlex.split(f"{before}2s{after}") == [
        *("cfgen", "branch", "my films/a kite.mp4", "--at", "2s"),
        *("-o", "my films/a kite-branch.mp4"),
    ]
    assert shlex.split(resume_command("a kite.mp4")) == ["cfgen", "resume", "a kite.cfgen"]


def test_every_moment_lies_in_the_chunk_that_it_is_picked_for() -> None:
    from cfgen.pipeline.branch import chunk_of
    from cfgen.pipeline.job import RenderJob

    for fps in ("16", "24", "29.97", "23.976"):
        folder = a_run(Path("a.mp4"), f"fps={fps}")
        film = films_of(subject_of(Path("a.mp4")), Path("a.report.html"))[0]
        config = load(
            {"prompt": "a boat", "seed": "3", "fps": fps, "output": str(folder.output)}
        ).config
        plan = RenderJob(config).plan
        assert film.state == "done", film.detail
        found = [chunk_of(f"{at}s", plan, plan) for at in film.picks_s]
        assert found == list(range(plan.chunks))


def test_a_finished_film_is_shown_with_all_that_is_known() -> None:
    a_run(Path("a film.mp4"), "memory.slow=4", prompt="a boat <b>& a kite")
    page = page_of("a film.mp4")
    text = " ".join(page.words)
    assert "a boat <b>& a kite" in text
    assert "memory.slow" in text
    assert "cfgen score 'a film.mp4'" in text
    assert "cfgen resume" not in text
    video = next(attrs for tag, attrs in page.tags if tag == "video")
    assert video["src"] == "a%20film.mp4"
    assert video["aria-label"] == "a boat <b>& a kite"


@pytest.mark.parametrize("name", ["plain", "a b", "100%", "a#b?c=d", "ünï 雪", "-dash", "q\"uo'te"])
def test_links_lead_to_the_files(name: str) -> None:
    video = Path("films") / f"{name}.mp4"
    a_run(video)
    subject = subject_of(Path("films"))
    for page in (subject.page, Path("elsewhere/page.html")):
        page.parent.mkdir(exist_ok=True)
        links = Page(page_text(subject, films_of(subject, page), page)).links
        assert links
        for link in links:
            parts = urlsplit(link)
            assert not parts.scheme
            assert not parts.netloc
            assert (page.parent / unquote(parts.path)).is_file()


def test_nothing_on_the_page_is_fetched_from_a_network() -> None:
    a_run(Path("a.mp4"))
    subject = subject_of(Path("a.mp4"))
    text = page_text(subject, films_of(subject, subject.page), subject.page)
    assert "http://" not in text
    assert "https://" not in text
    assert "//cdn" not in text
    assert "default-src 'none'" in text


def test_a_batch_tells_what_is_done_failed_and_next() -> None:
    target = a_batch("done", "failed", "started", "waiting", "waiting")
    subject = subject_of(target)
    films = films_of(subject, subject.page)
    assert [film.state for film in films] == ["done", "failed", "interrupted", "next", "waiting"]
    with Lock(Path("clip-2.cfgen/lock")):
        assert films_of(subject, subject.page)[2].state == "running"
    words = " ".join(page_of(target).words)
    assert "no " in words
    assert "cfgen resume clip-2.cfgen" in words
    for same in ("list.yaml.report.json", "."):
        assert len(films_of(subject_of(Path(same)), Path("p.html"))) == 5


def test_a_batch_that_ran_elsewhere_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("lists")
    a_run(folder / "night" / "a.mp4")
    rows = [{"name": "a", "output": "lists/night/a.mp4", "state": "done"}]
    (folder / "l.txt.report.json").write_text(json.dumps({"clips": rows}))
    monkeypatch.chdir(folder)
    assert films_of(subject_of(Path("l.txt")), Path("p.html"))[0].state == "done"


SHOWN = {
    "a.mp4": ("video", "a.mp4"),
    "a.mkv": ("video", "a.mkv"),
    "a.webm": ("video", "a.webm"),
    "a.mov": ("video", "a.mov"),
    "a.gif": ("img", "a.gif"),
    "a.png": ("img", "a.png/000001.png"),
    "prores.mov": ("a", "prores.mov"),
    "ffv1.mkv": ("a", "ffv1.mkv"),
}


ENCODERS = {"prores": "prores_ks", "ffv1": "ffv1"}


@pytest.mark.parametrize("with_run", [True, False], ids=["run", "sidecar"])
@pytest.mark.parametrize(("name", "shown"), SHOWN.items(), ids=SHOWN)
def test_each_format_is_shown_as_browsers_can(
    cfgen: Run, name: str, shown: tuple[str, str], with_run: bool
) -> None:
    video = Path(name)
    codec = video.stem if len(video.stem) > 1 else None
    folder = a_run(video, *([f"encode.codec={codec}"] if codec else []))
    if not with_run:
        facts = {"sha256": sha256_of(video), "encoder": ENCODERS.get(video.stem)}
        sidecar_of(video).write_text(json.dumps({"facts": facts}))
        shutil.rmtree(folder.path)
    page = page_of(name)
    opens = [(t, a.get("src") or a.get("href")) for t, a in page.tags if t in ("video", "img", "a")]
    assert shown in opens
    assert ("video" in [tag for tag, _ in opens]) == (shown[0] == "video")
    words = " ".join(page.words)
    assert ("No browser plays" in words) == (shown[0] == "a")
    assert ("a picture a frame" in words) == (name == "a.png")
    assert cfgen("report", name).exit_code == 0


def test_films_of_one_name_and_several_formats_stand_apart() -> None:
    names = ["a.gif", "a.mov", "a.mp4", "a.png"]
    folders = [a_run(Path(name)).path for name in names]
    assert len(set(folders)) == len({sheet_of(Path(name)) for name in names}) == len(names)
    films = films_of(subject_of(Path()), Path("p.html"))
    assert sorted(film.name for film in films) == ["a", "a.gif", "a.mov", "a.png"]
    pages = {subject_of(Path(name)).page for name in names}
    assert len(pages) == len(names)
    for folder, name in zip(folders, names, strict=True):
        assert video_of(folder) == Path(name)


def test_a_film_without_a_run_folder_is_told_by_its_sidecar() -> None:
    Path("a.mp4").write_bytes(b"video")
    facts = {"width": 160, "height": 96, "fps": 16.0, "duration_s": 5.0}
    sidecar = {"metadata": {"prompt": "a boat", "seed": "9"}, "facts": facts}
    sidecar_of(Path("a.mp4")).write_text(json.dumps(sidecar))
    film = films_of(subject_of(Path("a.mp4")), Path("p.html"))[0]
    assert (film.prompt, film.seed, film.size, film.seconds) == ("a boat", 9, (160, 96), 5.0)
    assert (film.again, film.resume, film.branch) == ("", "", None)


def test_a_damaged_run_says_so_and_spares_the_others() -> None:
    a_run(Path("a.mp4"))
    bad = a_run(Path("b.mp4"))
    (bad.path / "run.json").write_text("{}")
    assert [film.state for film in films_of(subject_of(Path()), Path("p.html"))] == [
        "done",
        "damaged",
    ]
    assert "damaged" in " ".join(page_of(".").words)


@pytest.mark.parametrize("target", ["nowhere", "notes.txt", "empty", "bad.report.json"])
def test_what_is_no_render_is_refused_in_a_sentence(cfgen: Run, target: str) -> None:
    Path("notes.txt").write_text("mine")
    Path("empty").mkdir()
    Path("bad.report.json").write_text("[]")
    result = cfgen("report", target)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) <= 2


def test_settings_that_differ_are_told_and_no_others() -> None:
    a_run(Path("a.mp4"))
    a_run(Path("b.mp4"), "memory.slow=4")
    films = films_of(subject_of(Path()), Path("p.html"))
    assert differing_settings(films) == [("memory.slow", ["12", "4"])]


SCORE = {
    "schema": "cfgen.score/1",
    "film": "a.mp4",
    "summary": {
        "motion": 3.2,
        "flicker": 0.98,
        "seam_ratio": None,
        "drift": {"brightness": {"ratio": 0.9, "late_ratio": None, "ends": 1.0}},
    },
    "curves": {"brightness": [100.0, None, 90.0, 80.0], "motion": [None, None], "detail": [1.0]},
    "table": [{"from_s": 0.0, "to_s": 10.0, "brightness": 90.0, "cuts": 0, "motion": None}],
    "alarms": ["it turns <dark>"],
}


def test_a_score_is_shown_if_it_is_of_this_film() -> None:
    folder = a_run(Path("a.mp4"))
    found = SCORE | {"provenance": {"sha256": sha256_of(folder.output)}}
    (folder.path / "score.json").write_text(json.dumps(found))
    page = page_of("a.mp4")
    words = " ".join(page.words)
    assert "it turns <dark>" in words
    assert "x0.90" in words
    assert "cfgen score" not in words
    assert sum(tag == "path" for tag, _ in page.tags) == 1
    (folder.path / "score.json").write_text(json.dumps(found | {"schema": "cfgen.score/2"}))
    assert read_score(folder.output) is None
    found["provenance"] = {"sha256": "of another"}
    (folder.path / "score.json").write_text(json.dumps(found))
    assert read_score(folder.output) is None


def test_curves_have_gaps_where_nothing_can_be_told() -> None:
    curve = curve_of("motion", [0, 1, 2, 3], [1.0, None, 3.0, 2.0], 4)
    assert curve is not None
    assert curve.path.count("M") == 2
    assert curve_of("motion", [0, 1], [1.0, None], 4) is None
    assert curves_of({"curves": 3, "summary": None}, 4) == []
    assert curves_of({}, 4) == []


def test_a_page_is_written_again_and_takes_nobody_elses_place(cfgen: Run) -> None:
    a_run(Path("a.mp4"))
    first = cfgen("report", "a.mp4", "--json")
    data = json.loads(first.stdout.splitlines()[-1])["data"]
    assert data["films"] == 1
    assert Path("a.report.html").stat().st_size == data["nbytes"] < 60_000
    assert cfgen("report", "a.mp4").exit_code == 0
    Path("mine.html").write_text("<!doctype html>mine")
    assert cfgen("report", "a.mp4", "-o", "mine.html").exit_code == 3
    assert Path("mine.html").read_text() == "<!doctype html>mine"
    assert cfgen("report", "a.mp4", "-o", "mine.html", "-y").exit_code == 0
    assert cfgen("report", "a.mp4", "-o", "none/page.html").exit_code == 1


def test_a_page_that_is_kept_current_follows_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    target = a_batch("done", "started", "waiting")
    states: list[int] = []

    def later(seconds: float) -> None:
        facts = json.loads(Path("list.yaml.report.json").read_text())
        rows = facts["clips"]
        if len(states) == 1 and rows[2]["state"] == "waiting":
            rows[2]["state"] = "failed"
            Path("list.yaml.report.json").write_text(json.dumps(facts))

    monkeypatch.setattr("cfgen.report.page.time.sleep", later)
    page = Path("list.yaml.report.html")
    for written in keep_current(subject_of(target), page):
        states.append(written.open)
        refreshed = "data-refresh" in page.read_text()
        assert refreshed == (len(states) == 1)
    assert states == [2, 1]


def test_a_name_that_is_no_text_can_be_reported(tmp_path: Path) -> None:
    try:
        a_run(Path("a\udcff.mp4"))
    except OSError:
        pytest.skip("this file system takes no such names")
    subject = subject_of(Path())
    assert write_report(subject, subject.page).films == 1


def test_a_contact_sheet_that_is_somebody_elses_is_not_shown() -> None:
    a_run(Path("a.mp4"))
    sheet_of(Path("a.mp4")).write_bytes(b"mine")
    assert not [tag for tag, _ in page_of("a.mp4").tags if tag == "img"]
