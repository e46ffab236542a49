"""The page in a real browser, where there is one: the script runs, nothing is refused, values appear on hover."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_up_runs import made_up_run

from cwdpo.report import write_report

BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if b), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome found on the path")

HOVER = """
const said = [];
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 40}));
  const tip = document.getElementById("tip");
  said.push(tip.hidden ? "hidden" : tip.innerText.replaceAll("\\n", " "));
  svg.dispatchEvent(new PointerEvent("pointerleave"));
  if (!tip.hidden) said.push("stayed");
}
document.body.dataset.said = said.join("|");
document.body.dataset.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
"""


def dump(page: Path, profile: Path, width: int = 1200) -> tuple[str, str]:
    """Return the DOM after loading, and what the console said."""
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={profile}", f"--window-size={width},1000", "--enable-logging=stderr", "--dump-dom"]
    found = subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    return found.stdout, "\n".join(line for line in found.stderr.splitlines() if "CONSOLE" in line)


@needs_browser
def test_the_script_runs_under_its_own_policy(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / o, o, prompts=6, evil="<script>alert(1)</script>") for o in ("dpo", "cw_dpo")]
    dom, console = dump(write_report(runs, tmp_path / "r.html"), tmp_path / "profile")
    assert console == ""
    assert 'data-ready="yes"' in dom
    charts = re.findall(r'<svg class="chart"[^>]*>', dom)
    assert len(charts) == 45 and all("aria-label=" in c for c in charts)


@needs_browser
@pytest.mark.parametrize("width", [1200, 500])
def test_values_appear_under_the_pointer(width: int, tmp_path: Path) -> None:
    page = write_report([made_up_run(tmp_path / o, o, prompts=6) for o in ("dpo", "cw_dpo")], tmp_path / "r.html")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    page.write_text(text.replace("</body>", f"<script>{HOVER}</script></body>"), encoding="utf-8")
    dom, console = dump(page, tmp_path / "profile", width)
    assert console == ""
    said = re.search(r'data-said="([^"]*)"', dom)
    assert said is not None
    tips = said[1].split("|")
    assert len(tips) == 39 and "hidden" not in tips and "stayed" not in tips
    assert re.fullmatch(r"update \d+ chosen ?−0\.\d+ hard ?−[\d.]+ medium ?−[\d.]+ easy ?−[\d.]+", tips[0]), tips[0]
    assert 'data-wide="0"' in dom  # the page itself never scrolls sideways
