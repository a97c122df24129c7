"""The report page in headless Chromium: narrow and wide, light and dark, without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import PIL.Image
import pytest

from cfgen.report.page import write_report
from cfgen.report.subjects import subject_of
from tests.cli.test_report import SCORE, a_batch, a_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
WIDTHS = (390, 1280)
HEIGHT = 1600
GROUND = {"light": (0xF4, 0xF4, 0xF1), "dark": (0x12, 0x12, 0x14)}
LOOK = """
const facts = [];
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("body *:not(.skip)")].filter((each) =>
    !each.closest(".scroll table") && each.getBoundingClientRect().right > root.clientWidth + 1);
  const code = page.querySelector(".branch code"), before = code.textContent;
  const range = page.querySelector(".pick input");
  range.value = 1;
  range.dispatchEvent(new Event("input"));
  const prompt = page.querySelector(".branch input");
  prompt.value = "it's red";
  prompt.dispatchEvent(new Event("input"));
  const small = [...page.querySelectorAll("button, .prompt input")].filter((each) =>
    each.getBoundingClientRect().height < 40);
  const unnamed = [...page.querySelectorAll("button, input, a, img, svg, video, progress")].filter(
    (each) => !(each.textContent.trim() || each.getAttribute("aria-label") || each.alt ||
      each.labels?.length));
  facts.push({
    width: root.clientWidth, over: root.scrollWidth - root.clientWidth,
    wide: wide.map((each) => each.outerHTML.slice(0, 80)), before, after: code.textContent,
    told: range.getAttribute("aria-valuetext"), small: small.length,
    unnamed: unnamed.map((each) => each.outerHTML.slice(0, 80)),
    languages: page.documentElement.lang, titles: page.title,
  });
}
const out = document.createElement("pre");
out.id = "facts";
out.textContent = JSON.stringify(facts);
document.body.append(out);
"""


def show(page: Path, picture: Path, *, dark: bool) -> list[dict[str, object]]:
    """What Chromium makes of a page in both widths, side by side; a picture of it."""
    frames = "".join(
        f"<iframe src='{page.absolute().as_uri()}' "
        f"style='border:0;width:{width}px;height:{HEIGHT}px'></iframe>"
        for width in WIDTHS
    )
    wrap = picture.with_suffix(".html")
    body = "margin:0;display:flex;align-items:start"
    wrap.write_text(
        f"<!doctype html><body style='{body}'>{frames}"
        f"<script>onload = () => setTimeout(() => {{{LOOK}}}, 300)</script>"
    )
    argv = [
        *(str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *(f"--user-data-dir={picture.parent / 'profile'}", "--virtual-time-budget=4000"),
        *(f"--window-size={sum(WIDTHS)},{HEIGHT}", f"--screenshot={picture}", "--dump-dom"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        wrap.as_uri(),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert '<pre id="facts">' in done.stdout, done.stderr[-2000:]
    text = done.stdout.split('<pre id="facts">')[1].split("</pre>")[0]
    for sign, word in (("<", "&lt;"), (">", "&gt;"), ("&", "&amp;")):
        text = text.replace(word, sign)
    found: list[dict[str, object]] = json.loads(text)
    return found


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_whole_in_every_width_and_light(scheme: str, tmp_path: Path) -> None:
    target = a_batch("done", "failed", "started", "next")
    folder = a_run(Path("clip-0.mp4"), prompt=f"a boat {'far ' * 30}" + "x" * 120)
    sha256 = json.loads(Path("clip-0.mp4.json").read_text())["facts"]["sha256"]
    score = SCORE | {"provenance": {"sha256": sha256}}
    (folder.path / "score.json").write_text(json.dumps(score))
    subject = subject_of(target)
    write_report(subject, subject.page)
    picture = tmp_path / f"{scheme}.png"
    found = show(subject.page, picture, dark=scheme == "dark")
    assert [facts["width"] for facts in found] == list(WIDTHS)
    for facts in found:
        assert facts["over"] == 0, facts["wide"]
        assert facts["unnamed"] == []
        assert facts["small"] == 0
        assert facts["after"] == (
            "cfgen branch clip-0.mp4 --at 0.594s --prompt 'it'\\''s red' -o clip-0-branch.mp4"
        )
        assert facts["told"] == "0.56 s, chunk 2 of 14"
    with PIL.Image.open(picture) as image:
        shown = image.convert("RGB")
        assert shown.size == (sum(WIDTHS), HEIGHT)
        for left in (0, WIDTHS[0]):
            assert shown.getpixel((left + 4, 4)) == GROUND[scheme]
        assert len(shown.getcolors(1 << 24) or []) > 50  # it is drawn, not blank
