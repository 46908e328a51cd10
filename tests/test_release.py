"""docs/releasing.md: locks that hold what is asked for, bills of materials, and signatures that notice a change."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "k8s/images"
NAMES = ("gateway", "server", "server-cpu")
TEXT = (ROOT / "docs/releasing.md").read_text()


def entries(name: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> version and hashes of a lock."""
    lines = (IMAGES / f"{name}.lock").read_text().replace("\\\n", " ").splitlines()
    found = {}
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)==(\S+)((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
        assert match, f"{name}.lock: {line[:80]}"
        found[match[1]] = match[2], match[3].split()
    return found


def asked_for(name: str) -> dict[str, str]:
    found = {}
    for line in (IMAGES / f"requirements-{name}.txt").read_text().splitlines():
        if line.startswith("-r "):
            found |= asked_for(line.removeprefix("-r requirements-").removesuffix(".txt"))
        elif not line.startswith("#"):
            package, version = line.split("==")
            found[package.split("[")[0].lower()] = version
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_holds_what_is_asked_for_and_a_hash_of_every_file(name):
    locked = entries(name)
    assert {package: locked[package][0] for package in asked_for(name)} == asked_for(name)
    assert all(hashes for _, hashes in locked.values())
    assert "torch" not in locked


@pytest.mark.parametrize("name", NAMES)
def test_an_image_installs_its_lock_and_refuses_what_is_not_in_it(name):
    text = (IMAGES / f"{name}.Dockerfile").read_text()
    copied = "env/python/requirements.txt" if name == "gateway" else f"k8s/images/{name}.lock"
    assert f"COPY {copied} /tmp/requirements.lock" in text
    installs = re.findall(r"^RUN pip install (.*)$", text, re.MULTILINE)
    assert "--require-hashes -r /tmp/requirements.lock" in installs
    assert not [line for line in installs if "-r" in line.split() and "--require-hashes" not in line]


def test_images_agree_on_a_version():
    versions: dict[str, set[str]] = {}
    for name in ("server", "server-cpu"):
        for package, (version, _) in entries(name).items():
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def test_a_bill_of_materials_names_every_package_with_its_hashes(tmp_path):
    tool = Path(sys.executable).with_name("cyclonedx-py")
    if not tool.exists():
        pytest.skip("no cyclonedx-py: pip install 'wan-triton[release]'")
    small = tmp_path / "small.lock"
    small.write_text("".join((IMAGES / "gateway.lock").read_text().partition("\naiohttp==")[0]) + "\n")
    options = ["--output-reproducible", "--no-validate", "--of", "JSON", "-o", "-"]  # validating takes most of its time
    command = [tool, "requirements", "--pyproject", ROOT / "pyproject.toml", *options, small]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    bill = json.loads(done.stdout)
    listed = {part["name"]: part["version"] for part in bill["components"]}
    wanted = {package: version for package, (version, _) in entries("gateway").items() if package in listed}
    assert listed == wanted
    assert len(listed) >= 3
    assert all(part["externalReferences"][0]["hashes"] for part in bill["components"])
    assert bill["metadata"]["component"]["name"] == "wan-triton"


def commands(section: str) -> list[str]:
    text = TEXT.partition(f". {section}\n")[2].partition("\n## ")[0]
    return "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()


def test_signing_and_verifying_as_the_recipe_says(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: apt-get install openssl")
    folder = tmp_path / "build/release"
    folder.mkdir(parents=True)
    (folder / "server.cdx.json").write_text("{}")
    subprocess.run("sha256sum -- * > SHA256SUMS", shell=True, cwd=folder, check=True)

    def done(lines: list[str]) -> int:
        return subprocess.run("\n".join(["set -e", *lines]), shell=True, cwd=tmp_path, capture_output=True).returncode

    assert done(commands("Sign")) == 0
    assert done(commands("Verify")) == 0
    (folder / "server.cdx.json").write_text("{ }")
    assert done(commands("Verify")) != 0
    subprocess.run("sha256sum -- *.json > SHA256SUMS", shell=True, cwd=folder, check=True)
    assert done(commands("Verify")) != 0, "new sums under the old signature"
