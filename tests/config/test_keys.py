from __future__ import annotations

from pathlib import Path

import pytest

from cfgen.config.keys import FLAGS, keys
from cfgen.config.loader import known_keys, load
from cfgen.config.sources import unknown_key

PAGE = Path(__file__).parent.parent.parent / "presets" / "README.md"
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->\n"


def _table() -> str:
    lines = ["| key | flag | what it is |", "|---|---|---|"]
    for key in keys().values():
        facts = [f"values: {', '.join(key.values)}"] if key.values else []
        facts += [f"default: {key.default}"] if key.default else []
        facts += [f"only: {', '.join(key.policies)}"] if key.policies else []
        about = f"{key.about} ({'; '.join(facts)})" if facts else key.about
        flag = f"`{key.flag}`" if key.flag else ""
        lines.append(f"| `{key.name}` | {flag} | {about.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def test_the_page_of_presets_lists_every_key(request: pytest.FixtureRequest) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    if request.config.getoption("--update-golden"):
        PAGE.write_text(before + BEGIN + _table() + END + after, encoding="utf-8")
        return
    assert text == before + BEGIN + _table() + END + after, "see --update-golden"


def test_every_key_says_what_it_is_and_every_flag_has_a_key() -> None:
    assert set(keys()) == known_keys()
    assert not [key.name for key in keys().values() if not key.about]
    assert set(FLAGS) <= set(keys())


@pytest.mark.parametrize(
    ("key", "policies", "default"),
    [
        ("memory.kv_cache", (), "auto"),
        ("memory.tau", ("slow_fast",), "0.95"),
        ("memory.sink", ("window", "slow_fast", "recency", "relax", "compressed"), ""),
        ("memory.reach", ("recency",), "4"),
        ("memory.trained", ("window", "recency"), "21"),
        ("duration", (), "10"),
        ("schedule.timesteps", (), "[1000, 750, 500, 250]"),
        ("compile", (), "false"),
        ("model.path", (), ""),
    ],
)
def test_a_key_knows_its_policies_and_its_default(
    key: str, policies: tuple[str, ...], default: str
) -> None:
    assert (keys()[key].policies, keys()[key].default) == (policies, default)


def test_a_default_is_read_back_as_the_value_that_stands_without_it() -> None:
    plain = load({}, environ={}).config
    given = {key.name: key.default for key in keys().values() if key.default}
    own = {name: text for name, text in given.items() if "." not in name}
    own["transition"] = plain.transition  # which every preset may say
    assert load(own, environ={}).config == plain
    assert "did you mean 'memory.tau'" in unknown_key("memory.tua", keys())
