import subprocess
import sys

from tests.conftest import PROJECT_ROOT

SKIPPING = """
import pytest

@pytest.mark.skipif(True, reason="Chromium is not installed (apt: chromium)")
def test_a(): ...

def test_b():
    pytest.skip("no promtool installed (Debian: apt-get install prometheus)")

def test_c():
    pytest.skip("no prometheus installed (Debian: apt-get install prometheus)")

def test_d():
    pytest.skip("no GPU")
"""


def test_the_suite_ends_with_the_packages_that_would_enable_what_it_skipped(tmp_path):
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "--rootdir",
        tmp_path,
        "-c",
        "/dev/null",
        tmp_path,
    ]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert "Skipped for want of system packages: prometheus (2), chromium (1)" in done.stdout
    assert "To run them: apt-get install chromium prometheus" in done.stdout
