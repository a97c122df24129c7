"""The plot of hit rates: a curve for each label and way, the same bytes for the same rows."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from cfgen.train.film_world.return_plot import plot_hits


def rows() -> list[dict[str, object]]:
    made = [
        {"label": label, "way": way, "away_s": away, "hit_rate": rate, "control_rate": 0.1}
        for label, rate in (("window & 12", 0.2), ("_own $x$", 0.9))
        for way in ("cut", "pan")
        for away in (2.0, 8.0)
    ]
    return [row | {"hit_low": 0.1, "hit_high": 1.0} for row in made[:-1]] + [
        made[-1] | {"hit_low": None, "hit_high": None}
    ]


def test_every_label_and_way_is_drawn(tmp_path: Path) -> None:
    plot_hits(rows(), tmp_path / "hits.svg")
    root = ElementTree.fromstring((tmp_path / "hits.svg").read_bytes())
    assert root.tag.endswith("svg")
    texts = ["".join(each.itertext()).strip() for each in root.iter() if each.tag.endswith("text")]
    wanted = {"window & 12", "_own $x$", "back by a cut", "back by a pan", "seconds away"}
    assert wanted <= set(texts)
    assert texts.count("control: another place") == 1
    first = (tmp_path / "hits.svg").read_bytes()
    plot_hits(rows(), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == first
