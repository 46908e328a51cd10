"""A gateway and a worker, for as long as standard input is open: `python earlier_release.py STATE RUNS DATABASE_URL`.

Run with the tree of an earlier release as working directory, whose own helpers it uses.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, settings_for, worker

state, runs, database_url = sys.argv[1:]
settings = settings_for(Path(state), run_dir=Path(runs), database_url=database_url, drain_seconds=0)
with gateway(settings) as url, worker(settings, FakeTriton(settings.runs, step_seconds=0.05)):
    print(url, flush=True)
    sys.stdin.read()
