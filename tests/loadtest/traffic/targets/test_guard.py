"""Targets that are not this machine are refused."""

import pytest

from loadtest.__main__ import main
from loadtest.base.inputs import TargetRefused, TargetUnavailable
from loadtest.traffic.targets.guard import refuse_remote


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.8.9.1", "grpc://localhost:1", "http://[::1]:3000"])
def test_loopback_is_allowed(url):
    refuse_remote(url, allow_remote=False)


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1", "grpc://10.0.0.1:8001", "http://0.0.0.0:1", "http://[2001:db8::1]:1"]
)
def test_other_machines_are_refused_unless_allowed(url):
    with pytest.raises(TargetRefused, match="--allow-remote"):
        refuse_remote(url, allow_remote=False)
    refuse_remote(url, allow_remote=True)


def test_an_unknown_host_is_told():
    with pytest.raises(TargetUnavailable, match="no-such-host.invalid"):
        refuse_remote("http://no-such-host.invalid", allow_remote=False)


@pytest.mark.parametrize("option", ["--url=http://192.0.2.1:3000", '--set=metrics.scrape=["http://192.0.2.1/metrics"]'])
def test_the_command_refuses_and_says_how_to_allow(option, capsys, tmp_path):
    assert main(["run", "smoke", option, "--out", str(tmp_path)]) == 2
    assert "192.0.2.1" in (said := capsys.readouterr().err)
    assert "--allow-remote" in said
