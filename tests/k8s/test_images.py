"""The Dockerfiles: pinned, non-root, cached in the right order, with the versions of pyproject.toml; and what runs in them."""

import importlib.util
import re
import tomllib

import pytest
import yaml

from tests.k8s.rendering import K8S, ROOT, SERVING, containers

IMAGES = K8S / "images"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))


def pins(lines) -> dict[str, str]:
    found = (re.match(r"\s*([\w.-]+)(?:\[[\w,]+\])?==([\w.+]+)", line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


def project_pins() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return pins(project["dependencies"] + optional["triton"] + optional["tracing"])


def instructions(dockerfile) -> list[str]:
    text = dockerfile.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_base_is_pinned_and_user_is_not_root(path):
    lines = instructions(path)
    assert re.match(r"FROM \S+:[\w.-]*\d+\.\d+", lines[0])
    assert not lines[0].endswith(":latest")
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_packages_are_installed_before_the_code_is_copied(path):
    lines = instructions(path)
    last_install = max(n for n, line in enumerate(lines) if line.startswith("RUN pip install"))
    first_code = min(n for n, line in enumerate(lines) if re.match(r"COPY (wan|src)\b", line))
    assert last_install < first_code


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_versions_are_those_of_the_project(path):
    wanted = project_pins()
    for name, version in pins(re.findall(r"pip install ([\w.-]+==[\w.+]+)", path.read_text())).items():
        assert wanted[name] == version


@pytest.mark.parametrize(("name", "common"), [("gateway", 14), ("server", 16)])
def test_requirements_are_those_of_the_project(name, common):
    lines = [
        line for line in (IMAGES / f"requirements-{name}.txt").read_text().splitlines() if not line.startswith("#")
    ]
    found, wanted = pins(lines), project_pins()
    assert len(found) == len(lines), "every package is pinned"
    # A package that another one brings along has no pin of its own in the project.
    assert {each: wanted.get(each, version) for each, version in found.items()} == found
    assert len(set(found) & set(wanted)) >= common


def test_the_bento_has_the_packages_of_the_gateways_lock():
    assert (
        yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["requirements_txt"] == "k8s/images/gateway.lock"
    )


def test_the_context_of_a_build_is_without_what_no_image_copies():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "build", "**/__pycache__"} <= set(ignored)


@pytest.mark.parametrize("name", ["server.Dockerfile", "server-cpu.Dockerfile"])
def test_copied_paths_exist(name):
    for line in instructions(IMAGES / name):
        if line.startswith("COPY"):
            source = line.split()[1]
            assert (ROOT / source).exists() or source == "models/tiny", source


@pytest.mark.parametrize("overlay", SERVING)
def test_every_python_command_of_a_pod_exists(overlay):
    for each in containers(overlay):
        commands = [each.spec.get("command", [])]
        commands += [each.spec[p]["exec"]["command"] for p in ("startupProbe", "readinessProbe", "livenessProbe")
                     if "exec" in each.spec.get(p, {})]  # fmt: skip
        for command in commands:
            if command[:2] == ["python3", "-m"]:
                assert importlib.util.find_spec(command[2]), command
            if command[:2] == ["bentoml", "serve"]:
                assert re.search(r"^class WanService", (ROOT / "service/service.py").read_text(), re.MULTILINE)
