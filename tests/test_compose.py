"""compose.yaml: valid by the Compose specification, and of parts that exist."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from service.settings import Settings
from stages.settings import StageSettings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
SCHEMA = json.loads(Path(__file__).with_name("compose-spec.json").read_text())  # compose-spec/compose-spec, Apache-2.0


def interpolated(text: str, given: dict[str, str]) -> str:
    """${NAME}, ${NAME:-default} and ${NAME:?message} as Compose reads them; raises KeyError with the message."""

    def value(match: re.Match) -> str:
        name, kind, rest = match.groups()
        if given.get(name):
            return given[name]
        if kind == ":-":
            return rest
        raise KeyError(rest)

    return re.sub(r"(?<!\$)\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)


def test_it_is_valid_by_the_specification():
    named = yaml.safe_load(interpolated(TEXT, {"CHECKPOINT": "/models/x"}))
    jsonschema.validate(named, SCHEMA)


def test_without_a_checkpoint_it_says_what_is_missing():
    with pytest.raises(KeyError, match="the directory of a checkpoint"):
        interpolated(TEXT, {})


def test_what_it_names_exists():
    volumes = {
        v.split(":")[0].strip('"') for s in SERVICES.values() for v in s.get("volumes", ()) if not v.startswith("$")
    }
    assert volumes == set(COMPOSE["volumes"])
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", {})) <= set(SERVICES) - {name}
        for other, wanted in service.get("depends_on", {}).items():
            assert wanted["condition"] != "service_healthy" or "healthcheck" in SERVICES[other], (name, other)
    assert SERVICES["worker"]["network_mode"] == "service:triton"  # which listens on loopback only


def test_every_command_and_setting_exists():
    fields = {f"WAN_{name.upper()}" for settings in (Settings, StageSettings) for name in settings.model_fields}
    for name, service in SERVICES.items():
        settings = {key for key in service.get("environment", {}) if key.startswith("WAN_")}
        assert settings <= fields, name
        command = service.get("command", [])
        words = shlex.split(command[2]) if command[:2] == ["sh", "-c"] else command
        assert words[:2] != ["python3", "-m"] or importlib.util.find_spec(words[2]), words


def test_stages_and_worker_share_what_they_must():
    for name in ("triton", "worker", "gateway"):
        assert any(volume.startswith("data:") for volume in SERVICES[name]["volumes"])
    assert SERVICES["triton"]["environment"]["WAN_RUN_DIR"] == SERVICES["worker"]["environment"]["WAN_RUN_DIR"]
    assert "--target" in SERVICES["export"]["command"][2]
    assert (
        SERVICES["triton"]["volumes"] == SERVICES["export"]["volumes"]
    )  # encoder and decoder are read from the checkpoint


def test_whoever_computes_on_gpus_has_them_and_nobody_else():
    on_gpus = {name for name, service in SERVICES.items() if "deploy" in service}
    assert on_gpus == {"export", "triton"}
