"""The declaration is the only place that says what a parameter is: few files may name one at all."""

import re
import subprocess
from pathlib import Path

import pytest

from contract import PARAMETERS
from contract.__main__ import table

ROOT = Path(__file__).resolve().parents[2]
CODE = ("*.py", "*.js", "*.pbtxt", "*.html")
# Words that mean other things too, or what every part of the project has to do with.
COMMON = {"prompt", "negative_prompt", "width", "height", "num_frames", "steps", "seed", "fps", "cache", "sampler"} | {
    "strength",
    "lora",
}


def files_naming(word: str) -> list[str]:
    found = subprocess.run(
        ["git", "grep", "-lwi", word, "--", *CODE, ":!tests", ":!loadtest", ":!tiny"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return found.stdout.split()


@pytest.mark.parametrize("name", sorted({p.name for p in PARAMETERS} - COMMON))
def test_a_parameter_is_named_where_it_is_declared_and_where_it_acts(name):
    """Measurements may ask for a value; else there is the declaration, the official values and the code it changes."""
    found = files_naming(name)
    assert "contract/parameters.py" in found
    assert len(found) <= 5, found


def test_no_code_writes_a_stride_of_the_vae_or_the_patch():
    literal = re.compile(r"- 1\) // 4|// (8|16)\b|% 16\b|\* 16\b")
    rooms = ("wan", "contract", "stages", "service", "export", "loadtest", "model_repository")
    files = [file for room in rooms for file in (ROOT / room).rglob("*.py")]
    lines = [(f.name, line.strip()) for f in files for line in f.read_text().splitlines()]
    found = [(name, line) for name, line in lines if literal.search(line.split("#")[0])]
    assert not found


def test_the_document_shows_the_declaration():
    assert table() in (ROOT / "docs" / "parameters.md").read_text()
