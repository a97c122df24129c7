from __future__ import annotations

from pathlib import Path

import pytest

from cfgen.checkpoint.identify.preset_guess import RECIPES
from cfgen.checkpoint.identify.published import by_repository
from cfgen.config import presets as catalog
from cfgen.config.loader import from_mapping, known_keys, load
from cfgen.config.schema import SlowFastMemory, WindowMemory, to_mapping
from cfgen.config.sources import env_name
from cfgen.config.values import parse_lora
from cfgen.errors import CheckpointError, PresetError
from cfgen.hub import parse_reference

BASE = """\
description: for tests
duration: 3s
model: {path: base, sizes: [160x96, 256x144]}
memory:
  policy: slow_fast
  slow: 9
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A presets folder of our own, holding `mini`."""
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "mini.yaml").write_text(BASE)
    monkeypatch.setattr(catalog, "presets_folder", lambda: presets)
    return presets


def _user_config(tmp_path: Path, text: str) -> dict[str, str]:
    file = tmp_path / "home" / "cfgen" / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return {"XDG_CONFIG_HOME": str(tmp_path / "home")}


def _run_file(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return file


def _messages(**sources: object) -> list[str]:
    with pytest.raises(PresetError) as caught:
        load(**{"environ": {}, **sources})
    return [str(problem) for problem in caught.value.problems]


def test_each_source_wins_over_the_weaker_ones(folder: Path, tmp_path: Path) -> None:
    environ = _user_config(tmp_path, "duration: 4s\n")
    run_file = _run_file(tmp_path, "duration: 5s\n")
    assert load(environ={}).config.duration_s == 3
    assert load(environ=environ).config.duration_s == 4
    assert load(environ=environ, run_file=run_file).config.duration_s == 5
    environ["CFGEN_DURATION"] = "6s"
    assert load(environ=environ, run_file=run_file).config.duration_s == 6
    layered = load(assignments=["duration=7s"], environ=environ, run_file=run_file)
    assert layered.config.duration_s == 7
    flagged = load({"duration": "8s"}, assignments=["duration=7s"], environ=environ)
    assert flagged.config.duration_s == 8


def test_every_value_has_its_origin(folder: Path, tmp_path: Path) -> None:
    resolved = load(
        {"seed": "5"},
        assignments=["memory.tau=0.9"],
        run_file=_run_file(tmp_path, "\n\nprompt: a boat\n"),
        environ={**_user_config(tmp_path, "fps: 24\n"), "CFGEN_RNG": "reference"},
    )
    origins = {key: str(origin) for key, origin in resolved.origins.items()}
    assert origins["seed"] == "flag --seed"
    assert origins["memory.tau"] == "flag --set memory.tau"
    assert origins["rng"] == "environment CFGEN_RNG"
    assert origins["prompt"] == f"run file {tmp_path / 'run.yaml'}:3"
    assert origins["fps"].startswith("user config ")
    assert origins["fps"].endswith("config.yaml:1")
    assert origins["memory.slow"] == "preset mini:6"
    assert origins["memory.min_gap"] == "default"
    assert {key for key, _, _ in resolved.rows()} == set(origins)


def test_a_preset_may_extend_one_other(folder: Path) -> None:
    (folder / "long.yaml").write_text("description: x\nextends: mini\nduration: 60s\n")
    resolved = load({"preset": "long"}, environ={})
    assert resolved.config.duration_s == 60
    assert resolved.config.model.path == "base"
    assert str(resolved.origins["model.path"]) == "preset mini:3"


def test_a_preset_may_not_extend_two_deep(folder: Path) -> None:
    (folder / "long.yaml").write_text("extends: mini\n")
    (folder / "longer.yaml").write_text("extends: long\n")
    (message,) = _messages(flags={"preset": "longer"})
    assert message == (
        "long:1: extends: preset 'long' is extended by another and cannot extend one itself"
    )


def test_a_preset_chosen_in_the_run_file_is_the_base(folder: Path, tmp_path: Path) -> None:
    (folder / "other.yaml").write_text(BASE.replace("3s", "9s"))
    resolved = load(run_file=_run_file(tmp_path, "preset: other\n"), environ={})
    assert resolved.config.preset == "other"
    assert resolved.config.duration_s == 9


def _recipe(model: str) -> tuple[str, str]:
    return "other", f"the header of {model} says so"


def test_a_model_that_is_named_decides_the_preset(folder: Path, tmp_path: Path) -> None:
    (folder / "other.yaml").write_text(BASE.replace("3s", "9s"))
    run_file = _run_file(tmp_path, "model: {path: a.gguf}\n")
    for sources in (
        {"flags": {"model.path": "b.pt"}, "run_file": run_file},
        {"run_file": run_file},
    ):
        resolved = load(**sources, environ={}, recipe=_recipe)
        path = "b.pt" if "flags" in sources else "a.gguf"
        assert (resolved.config.preset, resolved.config.model.path) == ("other", path)
        assert resolved.config.duration_s == 9
        assert str(resolved.origins["preset"]) == f"weights (the header of {path} says so)"


def test_a_preset_that_is_named_wins_over_the_models(folder: Path, tmp_path: Path) -> None:
    (folder / "other.yaml").write_text(BASE.replace("3s", "9s"))
    run_file = _run_file(tmp_path, "preset: mini\n")
    resolved = load({"model.path": "b.pt"}, run_file=run_file, environ={}, recipe=_recipe)
    assert (resolved.config.preset, resolved.config.duration_s) == ("mini", 3)
    assert str(resolved.origins["preset"]).startswith("run file ")


def test_without_a_model_the_preset_is_mini(folder: Path) -> None:
    resolved = load({}, environ={}, recipe=_recipe)
    assert resolved.config.preset == "mini"
    assert str(resolved.origins["preset"]) == "default"


def test_loras_of_flags_come_in_order_and_replace_the_presets(folder: Path) -> None:
    (folder / "mini.yaml").write_text(BASE.replace("base,", "base, loras: [own.pt],"))
    assert load(environ={}).config.model.loras == ("own.pt",)
    for loras in (["b.pt:0.5", "a.pt"], ["a.pt"]):
        config = load({"model.loras": loras}, environ={}).config
        assert config.model.loras == tuple(loras)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.path", " ", "--model: must name a folder"),
        (
            "memory.commit_reads",
            "slow",
            "--commit-reads: must be all, fast or newest:K, got 'slow'",
        ),
        ("placement.offload", "half", "--offload: must be auto, none, blocks or all, got 'half'"),
        ("placement.vram", "much", "--vram: 'much' is not a number of bytes"),
    ],
)
def test_a_wrong_flag_is_named_as_it_was_given(
    folder: Path, key: str, text: str, message: str
) -> None:
    (told,) = _messages(flags={key: text})
    assert told.startswith(message)


def test_choosing_a_policy_starts_from_its_own_defaults(folder: Path) -> None:
    assert load(environ={}).config.memory == SlowFastMemory(slow=9)
    changed = load({"memory.policy": "window"}, assignments=["memory.sink=1"], environ={})
    assert changed.config.memory == WindowMemory(sink=1)


def test_naming_the_same_policy_keeps_the_presets_settings(folder: Path) -> None:
    resolved = load({"memory.policy": "slow_fast"}, environ={})
    assert resolved.config.memory == SlowFastMemory(slow=9)


def test_a_variant_brings_its_defaults_but_yields_to_what_is_set(folder: Path) -> None:
    resolved = load(assignments=["memory.variant=paper", "memory.min_gap=4"], environ={})
    assert resolved.config.memory == SlowFastMemory(
        variant="paper", slow=9, tau=0.95, interval=2, min_gap=4
    )
    assert str(resolved.origins["memory.interval"]) == "default of variant paper"


def test_everything_wrong_is_reported_at_once_with_its_place(folder: Path, tmp_path: Path) -> None:
    run_file = _run_file(tmp_path, "sede: 5\nmemory:\n  tau: high\n  snik: 2\nfps: -1\n")
    messages = _messages(
        flags={"duration": "abc", "size": "100x96"},
        run_file=run_file,
        environ={"CFGEN_PROMT": "x", "CFGEN_FFMPEG": "/usr/bin/ffmpeg"},
    )
    assert sorted(messages) == sorted(
        [
            "CFGEN_PROMT: is not a variable that cfgen knows; did you mean 'CFGEN_PROMPT'?",
            f"{run_file}:1: sede: is not a known key; did you mean 'seed'?",
            f"{run_file}:4: memory.snik: is not a known key; did you mean 'memory.sink'?",
            f"{run_file}:3: memory.tau: must be a number, got 'high'",
            f"{run_file}:5: fps: must be at least 1 and at most 240, got -1.0",
            "--duration: 'abc' is not a duration: write 12.5 (seconds), 30s, 2m30s, 1h5m or 1:05",
            "--size: this model was not trained for 100x96; it knows 160x96, 256x144",
        ]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1\n", ":2: is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("- a\n", ": must hold keys and values, such as `duration: 10s`"),
        ("memory: full\n", ":1: memory: must hold keys of its own, such as 'admission_layers'"),
        ("seed: 1\nseed: 2\n", ":2: seed: is given twice, first at {}:1"),
        ("seed: [1]\n", ":1: seed: must be one value, got a list"),
        ("tau: 0.9\n", ":1: tau: is not a known key; did you mean 'memory.tau'?"),
        ("extends: mini\n", ":1: extends: is not a known key"),
        ("memory: {slow: 4, policy: window}\n", ":1: memory.slow: does not belong to this policy"),
    ],
)
def test_a_wrong_run_file_is_refused_by_line(
    folder: Path, tmp_path: Path, text: str, message: str
) -> None:
    run_file = _run_file(tmp_path, text)
    (told,) = _messages(run_file=run_file)
    assert told.startswith(f"{run_file}{message.format(run_file)}")


def test_an_empty_run_file_changes_nothing(folder: Path, tmp_path: Path) -> None:
    assert load(run_file=_run_file(tmp_path, "# nothing\n"), environ={}) == load(environ={})


def test_a_run_file_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    assert _messages(run_file=tmp_path / "no.yaml") == [
        f"{tmp_path / 'no.yaml'}: there is no such file"
    ]


def test_an_unknown_preset_names_the_nearest_and_all(folder: Path) -> None:
    with pytest.raises(PresetError) as caught:
        load({"preset": "mnii"}, environ={})
    assert str(caught.value) == "--preset: there is no preset 'mnii'; did you mean 'mini'?"
    assert "the presets are mini" in (caught.value.hint or "")


def test_a_preset_without_a_model_is_refused(folder: Path) -> None:
    (folder / "bare.yaml").write_text("description: x\n")
    messages = _messages(flags={"preset": "bare"})
    assert messages == [
        "model.path: is not set by any source",
        "model.sizes: is not set by any source",
    ]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("tau", "--set tau: must be written key=value, such as memory.tau=0.9"),
        ("memory.tua=1", "--set: memory.tua: is not a known key; did you mean 'memory.tau'?"),
        ("memory.tau=9", "--set memory.tau: must be at least -1 and at most 1, got 9.0"),
    ],
)
def test_a_wrong_assignment_is_refused(folder: Path, assignment: str, message: str) -> None:
    assert _messages(assignments=[assignment]) == [message]


def test_every_key_can_be_set_from_the_environment(folder: Path) -> None:
    names = {env_name(key) for key in known_keys()}
    assert len(names) == len(known_keys())
    resolved = load(environ={"CFGEN_MEMORY__SLOW": "7", "CFGEN_SIZE": "256*144"})
    assert resolved.config.memory == SlowFastMemory(slow=7)
    assert resolved.config.size == (256, 144)


def test_text_that_yaml_would_change_stays_as_written(folder: Path, tmp_path: Path) -> None:
    run_file = _run_file(tmp_path, "prompt: yes\nduration: 1:05\nseed: 010\n")
    config = load(run_file=run_file, environ={}).config
    assert (config.prompt, config.duration_s, config.seed) == ("yes", 65, 10)


def test_training_values_are_no_presets(folder: Path) -> None:
    (folder / "train.mini.yaml").write_text("lr: 1\n")
    assert catalog.preset_names() == ("mini",)
    assert catalog.preset_description("mini") == "for tests"


def test_a_model_is_looked_for_among_the_presets_and_on_disk(folder: Path, tmp_path: Path) -> None:
    (folder / "base").mkdir()
    (tmp_path / "mine").mkdir()
    assert catalog.locate_model("base") == folder / "base"
    assert catalog.locate_model(str(tmp_path / "mine")) == tmp_path / "mine"
    with pytest.raises(CheckpointError, match="the model 'nowhere' is not on disk"):
        catalog.locate_model("nowhere")


def test_shipped_presets_resolve() -> None:
    names = catalog.preset_names()
    assert {*RECIPES, "context-forcing-paper"} <= set(names)
    for name in names:
        assert load({"preset": name}, environ={}).config.preset == name
        assert catalog.preset_description(name)
        assert len(catalog.preset_file(name).read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    "name", sorted({*RECIPES, "context-forcing-paper"} - {"mini", "mini-base"})
)
def test_presets_of_published_weights_name_every_part_on_the_hub(name: str) -> None:
    config = load({"preset": name}, environ={}).config
    model = config.model
    loras = [parse_lora(text)[0] for text in model.loras]
    for text in (model.path, model.text_encoder, model.tokenizer, model.vae, *loras):
        reference = parse_reference(text or "")
        assert reference is not None
        assert reference.file is not None
        assert reference.pull_command == f"cfgen models pull {text}"
    published = by_repository("/".join(model.path.split("/")[:2]))
    assert published is not None
    assert ("commercial" in model.licence) == published.is_non_commercial
    if isinstance(config.memory, WindowMemory):  # absolute positions end with what was trained
        bounded = {"infinity-rope": "relative", "longlive-infinity": "relative"}
        bounded |= {each: "top" for each in RECIPES if each.startswith("sgf")}
        assert config.memory.positions == bounded.get(name, "absolute")


def test_a_run_from_before_there_were_loras_and_placement_is_read(folder: Path) -> None:
    config = load({"prompt": "a boat", "seed": "1"}, environ={}).config
    mapping = to_mapping(config)
    old = {"path", "sizes", "fps", "chunk_latent_frames", "cpu_frames_per_s"}
    mapping["model"] = {key: value for key, value in mapping["model"].items() if key in old}
    del mapping["placement"]
    assert from_mapping(mapping, label="run.json") == config


def test_guidance_is_refused_where_every_pass_decides() -> None:
    with pytest.raises(PresetError, match=r"schedule\.guidance: must be 1: variant release"):
        load(assignments=["memory.variant=release", "schedule.guidance=2"], environ={})


def test_latents_alone_are_refused_where_they_do_not_give_the_memory_back() -> None:
    with pytest.raises(PresetError, match=r"--snapshot: must be full or off: variant release"):
        load(
            {"snapshot.mode": "latents"},
            assignments=["memory.variant=release", "schedule.guidance=1"],
            environ={},
        )


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of weights, and another one to stand in."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "x.safetensors").touch()
    monkeypatch.chdir(elsewhere)
    return home


def test_a_path_of_weights_in_a_file_starts_from_the_files_folder(weights: Path) -> None:
    run_file = weights / "run.yaml"
    run_file.write_text(
        "model: {path: x.safetensors, loras: ['x.safetensors:0.5', 'x.safetensors']}"
    )
    model = load({}, run_file=run_file, environ={}).config.model
    there = str(weights / "x.safetensors")
    assert model.path == there
    assert model.loras == (f"{there}:0.5", there)


def test_a_path_of_weights_in_a_flag_holds_from_any_folder(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights)
    flags = {"model.vae": "x.safetensors", "model.path": "./x.safetensors"}
    model = load(flags, environ={}).config.model
    assert (model.vae, model.path) == (str(weights / "x.safetensors"),) * 2


def test_what_is_not_on_disk_and_what_is_installed_stay_as_they_are(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights)
    (weights / "mini").mkdir()
    flags = {"model.vae": "owner/name/x.pth", "model.path": "mini", "model.loras": ["owner/l:2"]}
    model = load(flags, environ={}).config.model
    assert (model.vae, model.path, model.loras) == ("owner/name/x.pth", "mini", ("owner/l:2",))


def test_paths_in_a_list_of_one_text_hold_too(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights)
    text = "model.loras=[x.safetensors:0.5, owner/name]"
    model = load({}, assignments=[text], environ={}).config.model
    assert model.loras == (f"{weights / 'x.safetensors'}:0.5", "owner/name")
