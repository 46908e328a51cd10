"""docs/operations.md names what exists: files, alerts, metrics, settings."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/operations.md").read_text()
RULES = (ROOT / "k8s/components/monitoring/rules.yaml").read_text()


def test_every_path_exists():
    for path in re.findall(r"`((?:k8s|components|base|overlays)/[\w./-]+)`", TEXT):
        assert (ROOT / path).exists() or (ROOT / "k8s" / path).exists(), path
    for link in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link


def test_every_alert_and_series_is_one_of_ours():
    groups = yaml.safe_load(RULES)["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    records = {rule["record"] for rule in rules if "record" in rule}
    assert set(re.findall(r"`(Wan[A-Z]\w+)`", TEXT)) <= alerts
    assert set(re.findall(r"`(wan:[\w:]+)`", TEXT)) <= records
    code = "".join(path.read_text() for room in ("service", "stages") for path in (ROOT / room).rglob("*.py"))
    for series in set(re.findall(r"`(wan_[a-z_]+)`", TEXT)):
        assert series in code, series


def test_every_setting_exists():
    from service.settings import Settings
    from stages.settings import StageSettings

    for name in re.findall(r"`WAN_(\w+)`", TEXT):
        assert name.lower() in Settings.model_fields | StageSettings.model_fields, name
