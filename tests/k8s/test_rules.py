"""Alert and recording rules: promtool finds them correct, and every one is tried with series, firing and quiet."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.rendering import K8S, of_kind

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


@pytest.mark.parametrize("overlay", ["one-gpu", "spot"])
def test_the_query_of_the_autoscaler_counts_a_database_once_and_no_other_namespace(rule_file, overlay):
    """Two gateways show the same job table, a second deployment another one, one of the gateways is gone for a while."""
    triggers = {t["name"]: t["metadata"] for t in of_kind(overlay, "ScaledObject")[0]["spec"]["triggers"]}
    series = {
        'wan_demand_slots{namespace="wan",model="wan",pod="a"}': "3.5x10",
        'wan_demand_slots{namespace="wan",model="wan",pod="b"}': "3.5x5 stale",
        'wan_demand_slots{namespace="wan",model="wan-14b",pod="a"}': "50x10",
        'wan_demand_slots{namespace="another",model="wan",pod="c"}': "70x10",
        'wan_workers{namespace="wan",model="wan",pod="a",state="busy"}': "2x10",
        'wan_workers{namespace="wan",model="wan",pod="b",state="busy"}': "2x10",
        'wan_workers{namespace="wan",model="wan",pod="a",state="draining"}': "9x10",
        'wan_workers{namespace="wan",model="wan-14b",pod="a",state="busy"}': "20x10",
        'wan_workers{namespace="another",model="wan",pod="c",state="busy"}': "40x10",
    }
    expected = {"demand": 3.5, "busy": 2}
    cases = [
        {"expr": triggers[name]["query"], "eval_time": time, "exp_samples": [{"labels": "{}", "value": value}]}
        for name, value in expected.items()
        for time in ("4m", "9m")
    ]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": cases,
    }
    path = rule_file.with_name("queries.test.yaml")
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}))
    assert "SUCCESS" in promtool("test", "rules", path)


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
        assert rule["annotations"]["runbook_url"].endswith(f"/components/monitoring/runbook.md#{name.lower()}")
        assert {"**Means**", "**Look**", "**Do**"} <= set(re.findall(r"\*\*\w+\*\*", sections[name])), name
