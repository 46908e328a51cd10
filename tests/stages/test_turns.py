import json
import threading

import pytest

from stages.artifacts import Artifacts
from stages.turns import in_turn


@pytest.mark.parametrize(("target", "together"), [("workstation", 1), ("cpu", 2), ("gpu", 2)])
def test_stages_of_a_workstation_compute_one_after_another(target, together, tmp_path):
    """Two stages that would wait for each other, and who fails lets the next one in."""
    manifest = {"target": target}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    inside, most, meet = [], [], threading.Barrier(2)

    def handle(stage):
        inside.append(stage)
        most.append(len(inside))
        try:
            meet.wait(0.2)
        finally:
            inside.remove(stage)

    def run(stage):
        artifacts = Artifacts(manifest, tmp_path / stage / "1", "cpu")
        try:
            in_turn(artifacts, handle)(stage)
        except threading.BrokenBarrierError:
            meet.reset()

    threads = [threading.Thread(target=run, args=(stage,)) for stage in ("denoise", "vae_decoder")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert max(most) == together
    assert len(most) == 2
