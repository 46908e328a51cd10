"""A real Prometheus that scrapes what the PodMonitors scrape, with the labels that they give."""

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """`targets`: PodMonitor name -> {pod: [host:port, …]}. `query` gives the samples of an instant query."""

    def __init__(self, folder: Path, targets: dict[str, dict[str, list[str]]], rules: Path | None = None):
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.skip("no prometheus installed (Debian: apt-get install prometheus)")
        jobs = []
        for monitor, pods in targets.items():
            configs = [{"targets": t, "labels": {"namespace": "wan", "pod": pod}} for pod, t in pods.items()]
            jobs.append(
                {
                    "job_name": f"wan/{monitor}",
                    "scrape_interval": "1s",
                    "scrape_timeout": "1s",
                    "static_configs": configs,
                }
            )
        config = {
            "global": {"evaluation_interval": "1s"},
            "scrape_configs": jobs,
            "rule_files": [str(rules)] if rules else [],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                   f"--web.listen-address={self.url.removeprefix('http://')}", "--log.level=error"]  # fmt: skip
        self._log = (folder / "prometheus.log").open("w")
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 60
        while not self._ready():
            ended = self.process.poll() is not None or time.monotonic() > deadline
            assert not ended, (folder / "prometheus.log").read_text()
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/-/ready", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def query(self, expression: str) -> list[tuple[dict, float]]:
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            data = json.load(answer)["data"]
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(sample["metric"], float(sample["value"][1])) for sample in data["result"]]

    def value(self, expression: str) -> float | None:
        """The one sample of a query, as KEDA takes it; None when there is none, an error when there are several."""
        samples = self.query(expression)
        assert len(samples) <= 1, f"{expression} gives {len(samples)} samples, KEDA accepts one"
        return samples[0][1] if samples else None

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self._log.close()
