"""A small version of `python -m loadtest fairness`."""

import json
from pathlib import Path

from loadtest.drills.fairness import drive

CARD = {"width": 16, "height": 16, "num_frames": 1, "steps": 2}


def test_many_clients_get_every_job_once_in_order_and_fair_shares(tmp_path: Path):
    card = tmp_path / "wan.json"
    card.write_text(json.dumps({"defaults": CARD}))
    report = drive(card, clients=20, jobs=100)
    assert report.met, report
    assert report.completed == 100
