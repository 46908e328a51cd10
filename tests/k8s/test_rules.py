"""Alert and recording rules: promtool finds them correct, and every one is tried with series, firing and quiet."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.rendering import K8S

MONITORING = K8S / "components/monitoring"
CASES = [Path(__file__).with_name(name) for name in ("alerts.test.yaml", "baselines.test.yaml")]
GROUPS = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS = {rule["record"] for rule in RULES if "record" in rule}


@pytest.fixture
def rule_file(tmp_path):
    """The rules as Prometheus reads them: the spec of a PrometheusRule is a rule file."""
    if shutil.which("promtool") is None:
        pytest.skip("no promtool installed (Debian: apt-get install prometheus)")
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": GROUPS}, sort_keys=False))
    return path


def promtool(*arguments) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules(rule_file):
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "--lint-fatal", rule_file)


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.name)
def test_every_rule_does_what_its_cases_say(rule_file, cases):
    shutil.copy(cases, rule_file.parent)
    assert "SUCCESS" in promtool("test", "rules", rule_file.parent / cases.name)


def test_every_rule_has_its_cases():
    cases = [case for path in CASES for case in yaml.safe_load(path.read_text())["tests"]]
    tried = [test for case in cases for test in case.get("alert_rule_test", [])]
    assert {test["alertname"] for test in tried if test["exp_alerts"]} == set(ALERTS), "every alert fires in some case"
    assert {test["alertname"] for test in tried if not test["exp_alerts"]} == set(ALERTS), (
        "every alert is quiet in some case"
    )
    expressions = " ".join(test["expr"] for case in cases for test in case.get("promql_expr_test", []))
    assert set(re.findall(r"wan:[a-z0-9_:]+", expressions)) >= RECORDS, "every recording rule has a value in some case"


def test_every_alert_has_its_place_in_the_runbook():
    text = (MONITORING / "runbook.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"k8s/components/monitoring/runbook.md#{name.lower()}"
        assert {"**Means**", "**Look**", "**Do**"} <= set(re.findall(r"\*\*\w+\*\*", sections[name])), name
