"""Pages in a real browser: no script errors, and every figure is drawn. Skipped where no Chromium is installed."""

import re
import shutil
import subprocess

import pytest
from report_records import full

from metaprune.report.html import write_report

CHROMIUM = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.mark.parametrize("self_contained", [True, False])
@pytest.mark.parametrize("width", [400, 1200])
def test_every_figure_is_drawn(tmp_path, self_contained, width):
    page = write_report(full(), tmp_path / "report.html", self_contained=self_contained)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},1600", "--virtual-time-budget=8000", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    wanted, drawn = (len(re.findall(what, done.stdout)) for what in ("data-figure=", 'class="figure js-plotly-plot"'))
    assert wanted == drawn == 5
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
