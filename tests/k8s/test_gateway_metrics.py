"""What KEDA reads from the gateway itself, without Prometheus: the real store behind the real /metrics."""

import re
import shutil
import subprocess

import httpx
import pytest

from service.store import NewJob
from service.store.store import JobStore
from tests.k8s.rendering import of_kind
from tests.service import running

TRIGGER = "gateway"


def demand(url: str) -> float:
    """As KEDA takes it: the text must parse as a whole, and the sample of that name and label counts."""
    triggers = {t["name"]: t["metadata"] for t in of_kind("one-gpu", "ScaledObject")[0]["spec"]["triggers"]}
    sample = triggers[TRIGGER]["valueLocation"]
    text = httpx.get(f"{url}/metrics").text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert checked.returncode in (0, 3), checked.stderr  # 3: remarks on style only
    samples = re.findall(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    assert len(samples) == 1
    return float(samples[0])


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool installed (Debian: apt-get install prometheus)"
)
def test_the_gateway_tells_keda_what_its_store_demands(tmp_path):
    settings = running.settings_for(tmp_path, model_name="wan")
    with running.gateway(settings) as url:
        assert demand(url) == 0
        store = JobStore.from_settings(settings)
        store.submit(NewJob(owner="alice", request={"steps": 50}, cost=3722.0))
        assert demand(url) == pytest.approx(1)
        for _ in range(10):
            store.submit(NewJob(owner="alice", request={"steps": 4}, cost=12.0))
        assert demand(url) == pytest.approx(2)
        assert store.lease("w") is not None
        assert demand(url) == pytest.approx(2)
