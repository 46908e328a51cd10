"""`table` from the command line: each part is a command of its own, and one that breaks does not stop the others."""

import json

from loadtest.__main__ import main
from loadtest.traffic import table
from loadtest.traffic.options import PROFILES
from loadtest.traffic.profile import load_profile

PROFILE = "name: {name}\nload: {{kind: constant, per_minute: 1200}}\nlimits: {{requests: 10, seconds: 5}}\nslo: {slo}\n"


def test_rows_of_all_parts_come_with_their_commands(standin, tmp_path, monkeypatch, capfd):
    url, parts = standin("--service", 0.01), {}
    for name, slo in (("met", "{error_rate: 0}"), ("missed", "{total: {p99: 0.001}}")):
        (tmp_path / f"{name}.yaml").write_text(PROFILE.format(name=name, slo=slo))
        parts[name] = ("run", str(tmp_path / f"{name}.yaml"), "--quiet", "--set", f"target.url={url}")
    parts["broken"] = ("run", str(tmp_path / "none.yaml"), "--quiet")
    monkeypatch.setattr(table, "PARTS", parts)
    assert main(["table", "met", "missed", "--out", str(tmp_path / "two")]) == 1
    assert main(["table", "met", "broken", "--out", str(tmp_path / "three")]) == 2
    lines = (tmp_path / "two" / "table.md").read_text().splitlines()
    assert len(lines) == 4
    assert "| met (constant, 1200 a minute) |" in lines[2]
    assert "| missed: total p99 | `python -m loadtest run " in lines[3]
    assert "could not be carried out" in (tmp_path / "three" / "table.md").read_text().splitlines()[3]
    assert json.loads((tmp_path / "two" / "met" / "result.json").read_text())["summary"]["outcomes"] == {
        "completed": 10
    }
    assert lines[3] in capfd.readouterr().out


def test_an_unknown_part_is_named_with_the_known_ones(capsys):
    assert main(["table", "stedy"]) == 2
    assert "PART is 'stedy'; allowed: steady, triton-grpc" in capsys.readouterr().err


def test_the_commands_of_the_table_are_valid_and_bounded():
    for part, command in table.PARTS.items():
        words = (*command, "postgresql://wan@127.0.0.1/empty") if part == "postgresql" else command
        given = table.parsed(words)
        run = load_profile(PROFILES / f"{given.profile}.yaml", given.overrides)
        assert run.limits.seconds <= 300, part
