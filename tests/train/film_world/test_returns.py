"""The return test: its cases, its scores for the truth and for chance, and its plumbing."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cfgen.errors import CheckpointError, PresetError, UsageError
from cfgen.memory.protocols import Pass
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.model.generator import Conditioning, Generator, WanConfig
from cfgen.model.vae import State, TinyAutoencoder
from cfgen.rollout.schedule import FewStepSchedule
from cfgen.train.film_world.return_figures import rows_of, table_of
from cfgen.train.film_world.return_memory import (
    POLICIES,
    SlowFastSizes,
    UnboundedSlowFast,
    may_batch,
    memory_of,
)
from cfgen.train.film_world.return_probe import (
    ProbeSettings,
    asked_of,
    digest_of,
    plan_of,
    probed_model,
    scores,
)
from cfgen.train.film_world.return_run import (
    PIECE,
    Model,
    Player,
    decoded,
    primed_return,
    schedule_of,
    truth_of,
    whole_films,
)
from cfgen.train.film_world.return_test import (
    AWAY_S,
    WAYS,
    Case,
    ReturnScore,
    effective_context,
    figures_of,
    make_case,
    other_world,
    own_return,
    score_return,
)
from cfgen.train.film_world.world import camera_path, render, shot_of

TEXT = (8, 12)
SIZES = SlowFastSizes()


class Pixels:
    """An autoencoder that loses nothing: a latent frame is four frames."""

    reach = 0

    def encode(self, video: Tensor) -> Tensor:
        whole = torch.cat([video[:, :1].expand(-1, 3, -1, -1, -1), video], 1)
        return whole.unflatten(1, (-1, 4)).flatten(2, 3)

    def start(self) -> State:
        return State([None])

    def decode(self, latents: Tensor, state: State) -> Tensor:
        begun, state.caches = state.caches[0] is not None, ["begun"]
        return latents.unflatten(2, (4, 3)).flatten(1, 2)[:, 0 if begun else 3 :]


class Copying(Generator):
    """A generator that knows the latents that it is to make, [1, F, C, h, w]."""

    def __init__(self, latents: Tensor, start: int) -> None:
        super().__init__(GEOMETRY)
        self.latents, self.at, self.sigma = latents, start, 1.0

    def forward(self, x: Tensor, level: object, text: Conditioning, view: object) -> Tensor:
        return x - self.latents[:, 3 * self.at : 3 * self.at + 3]

    def commit(self, x: Tensor, level: object, text: Conditioning, view: object) -> None:
        pass


GEOMETRY = WanConfig(
    dim=16, ffn_dim=16, num_heads=2, num_layers=2, in_dim=4, out_dim=4, text_len=8, text_dim=12
)
ONE_STEP = FewStepSchedule((1.0,), "predicted")


def text(prompts: list[str]) -> Tensor:
    return torch.stack(
        [
            torch.full(TEXT, 1.0 + len(prompt) % 7) if prompt else torch.zeros(TEXT)
            for prompt in prompts
        ]
    )


def picture_of(case: Case, number: int) -> np.ndarray:
    return render(other_world(case.film, number), case.frames.start, case.frames.stop)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("away", AWAY_S)
@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_case_comes_back_to_where_it_was(way: str, away: float, elsewhere: bool) -> None:
    case = make_case(way, away, 3, elsewhere=elsewhere)
    film, end = case.film, case.film.frames
    path, shots = camera_path(film, end), shot_of(film, end)
    left = 12 * (case.left + 1) - 4
    place = film.shots[int(shots[left])].place
    assert place == film.shots[-1].place == int(elsewhere)
    step = 2 if way == "pan" else 0
    assert abs(path[end - 1] - path[left]) <= step
    assert (film.chunks - case.first) in (1, 2, 3)
    gone = (12 * (film.chunks - case.left - 1)) / 16
    assert abs(gone - away - (2.25 if way == "cut" else 0)) <= 1


@pytest.mark.parametrize("way", WAYS)
def test_the_truth_is_found_and_another_place_is_not(way: str) -> None:
    cases = [make_case(way, 8, number) for number in range(4)]
    truth = figures_of([score_return(case, picture_of(case, 0)) for case in cases])
    assert truth["hit_rate"] == truth["win_rate"] == truth["first_places"] == 1.0
    assert truth["above_control"] == 1.0
    chance = figures_of([score_return(case, picture_of(case, 40)) for case in cases])
    assert chance["hit_rate"] <= 0.25
    assert chance["first_places"] <= 0.25
    assert 0.1 < chance["win_rate"] < 0.9


def test_frames_of_another_length_are_refused() -> None:
    case = make_case("cut", 2, 0)
    with pytest.raises(ValueError, match="frames"):
        score_return(case, np.zeros((3, 192, 320, 3), np.uint8))
    with pytest.raises(ValueError, match="way"):
        make_case("jump", 2, 0)


@pytest.mark.parametrize(
    ("above", "longest"),
    [({}, 0.0), ({2: 1.0, 4: 0.8, 8: 0.7, 16: 0.9}, 4.0), ({2: 0.5}, 0.0), ({2: 1, 24: 0.75}, 24)],
)
def test_effective_context_ends_at_the_first_failure(
    above: dict[float, float], longest: float
) -> None:
    assert effective_context(above) == longest


def test_names_decide_before_pixels() -> None:
    def score(named: int, control: int, *, first: bool) -> ReturnScore:
        return ReturnScore(named, 2, control, 2, 20.0, 30.0, 0.5, first)

    assert score(2, 0, first=False).is_above_control
    assert not score(0, 1, first=True).is_above_control
    assert score(1, 1, first=True).is_above_control
    assert not score(0, 0, first=False).is_above_control


@pytest.mark.parametrize("number", [0, 40])
def test_a_generator_that_copies_a_world_scores_as_that_world(number: int) -> None:
    case = make_case("cut", 2, 1)
    vae = Pixels()
    truth = truth_of(case, vae)
    film = other_world(case.film, number)
    video = torch.from_numpy(render(film, 0, film.frames)).permute(0, 3, 1, 2)[None].float() / 255
    generator = Copying(vae.encode(video), case.first)
    player = Player(Model(generator, vae, text, ONE_STEP), "full", [case], truth, SIZES)
    noise = player._noise

    def counted(chunk: int) -> object:
        generator.at = chunk
        return noise(chunk)

    player._noise = counted  # type: ignore[method-assign, assignment]
    (frames,) = primed_return(player)
    score = score_return(case, frames)
    assert (score.hit_rate == 1.0) == (number == 0)
    assert score.is_first == (number == 0)


@pytest.fixture(scope="module")
def tiny() -> Model:
    torch.manual_seed(0)
    generator = Generator(GEOMETRY).eval()
    for parameter in generator.parameters():
        parameter.requires_grad_(False)
    return Model(generator, Pixels(), text, FewStepSchedule((1.0, 0.5), "predicted"), 2.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_plays_a_film(tiny: Model, policy: str) -> None:
    cases = [make_case("cut", 4, number) for number in range(2 if may_batch(policy) else 1)]
    truths = torch.randn(len(cases), 3 * cases[0].film.chunks, 4, 4, 6)
    player = Player(tiny, policy, cases, truths, SIZES)
    player.prime(cases[0].first)
    before = [table.slots() for table in player.run.memory.tables]
    changes = player.influence(cases[0].first)
    assert set(changes) <= set(range(3 * cases[0].first))
    assert all(np.isfinite(list(changes.values())))
    assert max(changes.values()) > 0
    assert len(before[0]) <= 3 * cases[0].film.chunks
    if policy == "window-6-1":
        assert set(changes) == {0, *range(3 * cases[0].first - 2, 3 * cases[0].first)}


@pytest.mark.parametrize("policy", ["far-6", "framepack"])
def test_a_model_with_larger_patches_plays_a_film_that_is_kept_as_fewer_tokens(
    tiny: Model, policy: str
) -> None:
    cases = [make_case("cut", 4, number) for number in range(2)]
    truths = torch.randn(len(cases), 3 * cases[0].film.chunks, 4, 4, 6)
    with pytest.raises(CheckpointError, match="has no patch_embedding_"):
        Player(tiny, policy, cases, truths, SIZES)
    generator = Generator(replace(GEOMETRY, larger_patches=(2, 4))).eval()
    player = Player(replace(tiny, generator=generator), policy, cases, truths, SIZES)
    player.prime(cases[0].first)
    made = player.generate(range(cases[0].first, cases[0].film.chunks))
    assert made.isfinite().all()
    newest = player.run.memory.frames(0)[-1]
    assert newest == 3 * cases[0].film.chunks - 1


def test_layers_decide_together_where_that_is_asked_for(tiny: Model) -> None:
    case = make_case("cut", 4, 0)
    truths = torch.randn(1, 3 * case.film.chunks, 4, 4, 6)
    sizes = SlowFastSizes(tau=1.0, admission_layers=(0,))
    player = Player(tiny, "slow_fast-cfgen", [case], truths, sizes)
    player.prime(case.first)
    held = [player.run.memory.frames(layer) for layer in range(GEOMETRY.num_layers)]
    assert held[0] == held[1]
    assert 9 in held[0]


def test_films_of_a_batch_are_those_played_alone(tiny: Model) -> None:
    cases = [make_case("cut", 2, number) for number in range(2)]
    truths = torch.randn(2, 3 * cases[0].film.chunks, 4, 4, 6)
    together = Player(tiny, "window-12-3", cases, truths, SIZES)
    together.prime(3)
    made = together.generate(range(3, 5))
    for i, case in enumerate(cases):
        alone = Player(tiny, "window-12-3", [case], truths[i : i + 1], SIZES)
        alone.prime(3)
        torch.testing.assert_close(alone.generate(range(3, 5))[0], made[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "frames"),
    [
        (SIZES, {6, 9}),
        (SlowFastSizes(slow=12, admits="chunk"), {6, 7, 8, 9, 10, 11}),
        (SlowFastSizes(slow=5, admits="chunk"), {6, 7, 8}),
    ],
)
def test_the_oracle_admits_the_first_visit(
    tiny: Model, sizes: SlowFastSizes, frames: set[int]
) -> None:
    case = make_case("cut", 4, 0)
    truths = torch.randn(1, 3 * case.film.chunks, 4, 4, 6)
    player = Player(tiny, "slow_fast-oracle", [case], truths, sizes)
    player.prime(case.first)
    held = set(player.run.memory.frames(0))
    newest = range(3 * case.first - sizes.fast, 3 * case.first)
    assert held - set(newest) == {0, 1, 2} | frames


def test_every_fourth_chunk_is_admitted(tiny: Model) -> None:
    case = make_case("cut", 8, 0)
    truths = torch.randn(1, 3 * case.film.chunks, 4, 4, 6)
    player = Player(tiny, "slow_fast-every-4", [case], truths, SIZES)
    player.prime(13)
    held = [frame // 3 for frame in player.run.memory.frames(0) if 3 <= frame < 33]
    assert held
    assert all(chunk % 4 == 0 for chunk in held)


def test_positions_without_bounds_are_the_numbers_of_frames() -> None:
    unbounded, bounded = UnboundedSlowFast(fast=3).table(30), SlowFastMemory(fast=3).table(30)
    for table in (unbounded, bounded):
        for chunk in range(10):
            table.append_chunk(3 * chunk, [3 * chunk + i for i in range(3)], [])
            table.commit(admitted=chunk in (2, 5))
            table.evict(3)
        table.append_chunk(30, [30, 31, 32], [])
    shown = unbounded.visible_slots(Pass(0), admitted=False)
    frames = [0, 1, 2, 6, 15, 30, 31, 32]
    assert [each.position for each in shown] == [each.slot.frame for each in shown] == frames
    assert [each.position for each in bounded.visible_slots(Pass(0), admitted=False)] == [*range(8)]


def test_whole_films_come_from_prompts(tiny: Model) -> None:
    case = make_case("cut", 2, 0, elsewhere=False)
    shape = torch.zeros(1, 3 * case.film.chunks, 4, 4, 6)
    model = Model(tiny.generator, Thumbnails(), text, tiny.schedule)
    (film,) = whole_films(Player(model, "full", [case], shape, SIZES))
    assert film.shape == (case.film.frames, 192, 320, 3)
    own, other = own_return(film[0], film[0], film[-1])
    assert own > other


class Thumbnails:
    """Decodes latents to plain frames; encodes nothing."""

    reach = 0

    def encode(self, video: Tensor) -> Tensor:
        raise AssertionError("nothing is to be encoded")

    def start(self) -> State:
        return State([None])

    def decode(self, latents: Tensor, state: State) -> Tensor:
        begun, state.caches = state.caches[0] is not None, ["begun"]
        frames = latents[:, :, :3].repeat_interleave(4, 1)[:, 0 if begun else 3 :]
        return frames.repeat_interleave(48, 3)[..., :192, :].repeat_interleave(54, 4)[..., :320]


def test_what_cannot_be_played_is_refused(tiny: Model) -> None:
    cut, pan = make_case("cut", 2, 0), make_case("pan", 4, 0)
    truths = torch.zeros(2, 30, 4, 4, 6)
    with pytest.raises(ValueError, match="same shots"):
        Player(tiny, "full", [cut, pan], truths, SIZES)
    with pytest.raises(ValueError, match="by itself"):
        Player(tiny, "slow_fast-cfgen", [cut, make_case("cut", 2, 1)], truths, SIZES)
    with pytest.raises(ValueError, match="policy"):
        memory_of("least recent", cut, tiny.generator, (4, 6), SIZES)
    far = SlowFastSizes(admission_layers=(0, 7))
    with pytest.raises(PresetError, match="admission_layers"):
        memory_of("slow_fast-cfgen", cut, tiny.generator, (4, 6), far)


PROBE = ProbeSettings(
    films=2, ways=("cut",), away=(2.0,), policies=("full", "slow_fast-cfgen"), batch=2
)


def true_frames(_policy: str, cases: list[Case]) -> list[np.ndarray]:
    return [picture_of(case, 0) for case in cases]


def test_a_probe_plays_what_it_may_together() -> None:
    played = [(batch.policy, batch.keys) for batch in plan_of(PROBE, PROBE.policies)]
    assert played == [
        ("full", ["cut/2/full/0", "cut/2/full/1"]),
        ("slow_fast-cfgen", ["cut/2/slow_fast-cfgen/0"]),
        ("slow_fast-cfgen", ["cut/2/slow_fast-cfgen/1"]),
    ]


def test_a_probe_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    assert next(scores(PROBE, true_frames, file)) == (2, 4)
    whole = file.read_text()
    file.write_text(whole + whole[:40])
    assert list(scores(PROBE, true_frames, file)) == [(3, 4), (4, 4)]
    assert list(scores(PROBE, true_frames, file)) == []
    rows = rows_of(asked_of(PROBE, file))
    assert [(row["policy"], row["films"], row["hit_rate"]) for row in rows] == [
        ("full", 2, 1.0),
        ("slow_fast-cfgen", 2, 1.0),
    ]
    assert {row["effective_context_s"] for row in rows} == {2.0}
    assert len(table_of(rows).splitlines()) == 3
    assert len(asked_of(replace(PROBE, films=1), file)) == 2


def test_a_probe_plays_what_is_missing_alone(tmp_path: Path) -> None:
    """Scores of other policies share the file and do not count; more films are played alone."""
    file, played = tmp_path / "scores.jsonl", []

    def made(policy: str, cases: list[Case]) -> list[np.ndarray]:
        played.append((policy, len(cases)))
        return true_frames(policy, cases)

    few = replace(PROBE, films=1, policies=("full",), batch=3)
    assert list(scores(few, made, file)) == [(1, 1)]
    assert list(scores(replace(few, policies=("window-6-1",)), made, file)) == [(1, 1)]
    assert list(scores(replace(few, films=3), made, file)) == [(3, 3)]
    assert played == [("full", 1), ("window-6-1", 1), ("full", 2)]
    assert [line["film"] for line in asked_of(replace(few, films=3), file)] == [0, 1, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 3},
        {"timesteps": (1000.0, 400.0)},
        {"shift": 4.0},
        {"renoise": "fresh"},
        {"guidance": 1.0},
        {"elsewhere": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_change_a_score_have_files_of_their_own(changes: dict[str, object]) -> None:
    settings = replace(PROBE, **changes)  # type: ignore[arg-type]
    assert digest_of(None, settings, SIZES) != digest_of(None, PROBE, SIZES)
    more = replace(settings, films=9, batch=1, ways=WAYS, away=(4.0,), policies=("full",))
    assert digest_of(None, more, SIZES) == digest_of(None, settings, SIZES)
    for sizes in (replace(SIZES, slow=3), replace(SIZES, tau=0.5)):
        assert digest_of(None, PROBE, sizes) != digest_of(None, PROBE, SIZES)


def test_a_probe_renoises_as_it_is_told(tiny: Model, tiny_model: Path) -> None:
    case, made = make_case("cut", 2, 0), {}
    for renoise in ("predicted", "fresh"):
        asked = replace(PROBE, steps=2, guidance=1.0, renoise=renoise)
        probed = probed_model(tiny_model, asked, torch.device("cpu"))
        assert (probed.schedule.renoise, probed.guidance) == (renoise, 1.0)
        model = replace(tiny, schedule=probed.schedule)
        player = Player(model, "full", [case], torch.zeros(1, 30, 4, 4, 6), SIZES)
        made[renoise] = player.generate(range(1))
    assert made["predicted"].shape == made["fresh"].shape
    assert (made["predicted"] - made["fresh"]).abs().max() > 0.01


def test_a_schedule_has_even_steps_or_those_that_are_given() -> None:
    even = schedule_of(4, shift=4, renoise="fresh")
    assert even == FewStepSchedule.from_timesteps([1000, 750, 500, 250], shift=4)
    assert schedule_of(8, (900, 10), shift=1, renoise="predicted").sigmas == (0.9, 0.01)


@pytest.mark.parametrize(
    ("steps", "timesteps", "renoise", "named"),
    [
        (0, (), "fresh", "got 0"),
        (4, (500, 500), "fresh", "got 500, 500"),
        (4, (250, 500), "fresh", "got 250, 500"),
        (4, (1001,), "fresh", "got 1001"),
        (4, (500, 0), "fresh", "got 500, 0"),
        (4, (float("nan"),), "fresh", "got nan"),
        (4, (), "new", "got 'new'"),
    ],
)
def test_a_schedule_that_is_none_is_refused(
    steps: int, timesteps: tuple[float, ...], renoise: str, named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        schedule_of(steps, timesteps, shift=3, renoise=renoise)  # type: ignore[arg-type]


def test_a_film_decoded_in_pieces_is_the_film() -> None:
    torch.manual_seed(0)
    vae = TinyAutoencoder(4, 0, (8, 8, 8, 8)).eval()
    latents = torch.randn(1, 2 * PIECE + 5, 4, 3, 4)
    with torch.no_grad():
        whole = (vae.decode(latents)[0].clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    (pieces,) = decoded(vae, latents)
    assert pieces.shape == whole.shape == (4 * latents.shape[1] - 3, 24, 32, 3)
    assert np.abs(pieces.astype(int) - whole.numpy().astype(int)).max() <= 1
    assert pieces.std() > 1


def line_of(film: int, away: float, *, above: bool) -> dict[str, object]:
    """A score of two landmarks, both found or none."""
    score = ReturnScore(2 * above, 2, 0, 2, 30.0, 20.0, 0.5, above)
    return {"film": film, "way": "cut", "away_s": away, "policy": "full"} | asdict(score)


def test_effective_context_has_an_interval_over_films() -> None:
    def rows(failing: int) -> dict[float, dict[str, object]]:
        """At 2 s all of 16 films are above control, at 4 s all but some, at 8 s none."""
        lines = [line_of(n, 2.0, above=True) for n in range(16)]
        lines += [line_of(n, 4.0, above=n >= failing) for n in range(16)]
        lines += [line_of(n, 8.0, above=False) for n in range(16)]
        return {row["away_s"]: row for row in rows_of(lines)}

    sure, unsure, failed = rows(0), rows(4), rows(12)
    bounds = ("effective_context_s", "effective_context_low_s", "effective_context_high_s")
    assert [sure[2.0][key] for key in bounds] == [4.0, 4.0, 4.0]
    assert [unsure[2.0][key] for key in bounds] == [4.0, 2.0, 4.0]
    assert [failed[2.0][key] for key in bounds] == [2.0, 2.0, 2.0]
    assert (sure[2.0]["hit_low"], sure[2.0]["hit_high"]) == (1.0, 1.0)
    low, high = unsure[4.0]["hit_low"], unsure[4.0]["hit_high"]
    assert 0.5 <= low < unsure[4.0]["hit_rate"] == 0.75 < high <= 1
    assert "4 s (2 to 4)" in table_of(list(unsure.values()))


def test_one_film_has_no_interval_and_an_early_failure_ends_the_context() -> None:
    (row,) = rows_of([line_of(0, 2.0, above=True)])
    assert (row["effective_context_low_s"], row["hit_low"]) == (None, None)
    assert "2 s" in table_of([row])
    lines = [line_of(n, away, above=away > 2) for n in range(4) for away in (2.0, 4.0)]
    assert {row["effective_context_high_s"] for row in rows_of(lines)} == {0.0}


def test_films_whose_longer_times_are_still_to_come_count_where_they_are() -> None:
    lines = [line_of(n, 2.0, above=True) for n in range(6)]
    lines += [line_of(n, 4.0, above=True) for n in range(2)]
    rows = rows_of(lines)
    assert [(row["away_s"], row["films"]) for row in rows] == [(2.0, 6), (4.0, 2)]
    assert {row["effective_context_s"] for row in rows} == {4.0}


def test_a_probe_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        next(scores(replace(PROBE, films=0), true_frames, tmp_path / "scores.jsonl"))
