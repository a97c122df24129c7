"""Lists of prompts in the forms that other projects have them; nothing else is taken for words."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from cfgen.config.batch_list import NAME_NBYTES, Clip, read_list
from cfgen.errors import PresetError
from cfgen.pipeline.naming import slug

LONG = [
    "A stylish woman walks down a Tokyo street filled with warm glowing neon and animated city "
    "signage. She wears a black leather jacket, a long red dress, and black boots.",
    "A stylish woman walks down a Tokyo street filled with warm glowing neon and animated city "
    "signage. She wears a white coat.",
    'Close-up: "Big Sur’s garay point" — the camera, slowly; then 3/4 view!',
    "The Glenfinnan Viaduct is a historic railway bridge in Scotland, UK, that crosses over it",
    "日本の静かな村に雪が降る。" * 12,
    "Жёлтый воздушный змей летит над зелёными холмами в ясный день у самого синего моря",
    "e" * 400,
    "a person is  eating\twatermelon",
    "con",
    "…!?",
    "50% of a wine-glass & a ‘cup’ <on> the table / shelf \\ floor * ? | :",
    "a zoom-in -- and out, 1.5x, [wide shot] of the kite",
]


def read(text: str, label: str = "queue.txt") -> list[Clip]:
    return read_list(text, label=label, folder=Path("v"), environ={}, slug=slug)


def refused(text: str, label: str = "queue.txt") -> str:
    with pytest.raises(PresetError) as caught:
        read(text, label)
    return str(caught.value)


def as_csv(rows: list[list[str]], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


PROMPTS = [*LONG, *LONG[:2], *(f"{LONG[0]} {n}" for n in range(120)), *LONG[:1] * 30]
FORMS = {
    "moviegen.txt": "\n".join(PROMPTS),
    "moviegen-crlf.txt": "\r\n".join(PROMPTS) + "\r\n",
    "moviegen.csv": as_csv(
        [
            ["prompt", "concept", "motion_level"],
            *([p, "scene,camera motion", "low"] for p in PROMPTS),
        ]
    ),
    "semicolons.csv": as_csv(
        [["id", "Prompt"], *([str(n), p] for n, p in enumerate(PROMPTS))], ";"
    ),
    "tabs.tsv": as_csv([["prompt"], *([p] for p in PROMPTS)], "\t"),
    "vbench.json": json.dumps(
        [
            {"prompt_en": p, "dimension": ["color"], "auxiliary_info": {"color": {"is": "red"}}}
            for p in PROMPTS
        ],
        indent=2,
    ),
    "texts.json": json.dumps(PROMPTS, ensure_ascii=False),
    "longlive.jsonl": "\n".join(json.dumps({"prompts_list": [p]}) for p in PROMPTS),
    "objects.jsonl": "\n".join(json.dumps({"prompt": p, "id": 3}) for p in PROMPTS),
    "numbered.txt": "\n".join(f"{n}. {p}" for n, p in enumerate(PROMPTS, start=1)),
    "bullets.txt": "\n".join(f"- {p}" for p in PROMPTS),
    "quoted.txt": "\n".join('"' + p.replace('"', '""') + '"' for p in PROMPTS),
}


@pytest.mark.parametrize("label", FORMS)
def test_every_known_form_is_read_to_the_same_prompts(label: str) -> None:
    clips = read(FORMS[label], label)
    assert [" ".join(clip.config.prompt.split()) for clip in clips] == [
        " ".join(p.split()) for p in PROMPTS
    ]
    names = [clip.name for clip in clips]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(len(name.encode()) <= NAME_NBYTES for name in names)
    assert names[0] == (
        "a-stylish-woman-walks-down-a-tokyo-street-filled-with-warm-glowing-neon-and-animated-city"
        "-signage"
    ), "cut between two words"


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ('--prompt "a red kite" --seed 5', ("a red kite", 5)),
        ("--prompt a red kite --seed=5 --width 320 --height 192", ("a red kite", 5)),
        ("a red kite --d 5", ("a red kite", 5)),
        ('{"prompt": "a red kite", "seed": 5, "memory": {"policy": "window"}}', ("a red kite", 5)),
        ('[{"prompt": "a red kite", "seed": 5, "name": "k"}]', ("a red kite", 5)),
        ('prompt,seed\n"a red\nkite",5\n', ("a red kite", 5)),
        ("a\u2028red\u0085kite --d 5", ("a red kite", 5)),
        ('{"prompt": "a red\u2028kite", "seed": 18446744073709551615}', ("a red kite", 2**64 - 1)),
    ],
)
def test_values_beside_a_prompt_are_read(line: str, values: tuple[str, int]) -> None:
    (clip,) = read(line)
    assert (" ".join(clip.config.prompt.split()), clip.config.seed) == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{a red kite}", "queue.txt:1: has braces"),
        ("a {red|blue} kite", "has braces"),
        ("a kite\n{a: b", "queue.txt:2: has braces"),
        ('{"prompt": "a kite"', "is not a line of JSON"),
        ('["a kite",', "is not a line of JSON"),
        ('[{"prompt": "a", "steps": 30}]', "steps: is not a known key"),
        ('[{"prompt": "a", "prompt_en": "b"}]', "must have one `prompt`"),
        ('[{"text": "a"}]', "is not a known key"),
        ("[3]", "a clip is a text or a mapping"),
        ("prompt,steps\na,3", "steps: is not a known key"),
        ("prompt,seed\na", "queue.txt:2: has 1 columns, and the header 2"),
        ("prompt,prompt\na,b", "has two columns 'prompt'"),
        ('prompt,seed\n"a"b,3', "is not CSV"),
        ("--seed 3", "must have one `prompt`"),
        ("--prompt 'a", "is no line of options"),
        ("--prompt a --steps 3", "steps: is not a known key"),
        ("cfgen render 'a kite'", "is a command"),
        ("prompt: a red kite", "prompt: is not a key of a list"),
        ("[prompt]\nwidth = 3", "is TOML"),
        ("a kite --ar 16:9", "no counterpart"),
    ],
)
def test_what_is_no_prompt_is_never_rendered_as_words(text: str, says: str) -> None:
    assert says in refused(text)


def test_a_csv_file_has_a_header() -> None:
    assert "a column `prompt`" in refused("a kite\na boat", "queue.csv")


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("../a.mp4", "must stay in the folder"),
        ("a:b.mp4", "must hold no /"),
        ("CON.mp4", "is no file name on every system"),
        ("x" * 101 + ".mp4", "must be at most 100 bytes long"),
        ("a.part.mp4", "is no file name on every system"),
    ],
)
def test_each_refusal_of_an_output_says_its_own_reason(output: str, says: str) -> None:
    said = refused(f"version: 1\nclips:\n- {{prompt: x, output: '{output}'}}", "list.yaml")
    assert says in said


def test_anchors_merges_and_extensions_are_yaml_s() -> None:
    first, second, third = read(
        """\
version: 1
x-base: &base {duration: 3s, memory: {policy: window}}
x-more: &more {duration: 4s, seed: 9}
defaults: {<<: *base, seed: 7}
clips:
  - &kite {<<: [*more, *base], name: kite, prompt: a kite}
  - {<<: *kite, name: again, duration: 5s}
  - a boat
""",
        "list.yaml",
    )
    assert (first.config.duration_s, first.config.seed) == (4, 9)
    assert (second.config.prompt, second.config.duration_s) == ("a kite", 5)
    assert (third.config.duration_s, third.config.memory.policy) == (3, "window")


@pytest.mark.parametrize("text", ["<<: 3", "<<: [a]", "a: &a {<<: *a}", "x: &x [*x]"])
def test_odd_merges_are_refused(text: str) -> None:
    assert refused(f"version: 1\nclips: [a]\n{text}", "list.yaml")


@pytest.mark.parametrize(
    ("seed", "wanted"), [("0", 0), (str(2**63), 2**63), (str(2**64 - 1), 2**64 - 1)]
)
def test_seeds_reach_as_far_as_other_tools_go(seed: str, wanted: int) -> None:
    (clip,) = read(f"version: 1\nclips:\n- {{prompt: a, seed: {seed}}}", "list.yaml")
    assert clip.config.seed == wanted
    (clip,) = read(f"a kite --d {seed}")
    assert clip.config.seed == wanted
    refused(f"version: 1\nclips:\n- {{prompt: a, seed: {2**64}}}", "list.yaml")


def test_a_seed_of_minus_one_is_chosen_and_stays_so() -> None:
    text = "version: 1\ndefaults: {seed: -1}\nclips:\n- {prompt: a, seed: -1}\n- b"
    seeds = [clip.config.seed for clip in read(text, "list.yaml")]
    plain = [clip.config.seed for clip in read("version: 1\nclips: [a, b]", "list.yaml")]
    assert seeds == plain
