"""The documents as pages: every link between them and every name of the API leads somewhere."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_pages_are_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    page = (tmp_path / "site/api.html").read_text()
    assert 'id="mcvd.load"' in page
    assert "how many different results for each clip" in page
    for asset in ("src=", "href="):  # what a browser would fetch by itself comes from here
        assert f'<link rel="stylesheet" {asset}"http' not in page
        assert f'<script {asset}"http' not in page
