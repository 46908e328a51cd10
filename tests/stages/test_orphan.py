"""A stage ends with the server that started it, whatever it is doing."""

import subprocess
import sys
import time

import psutil

BUSY = "from stages.orphan import end_with_server; end_with_server(); print('up', flush=True)\nwhile True: pass"
PARENT = "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); print(child.pid, flush=True); child.wait()"


def test_a_busy_process_ends_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT, BUSY], stdout=subprocess.PIPE, text=True) as parent:
        lines = sorted(parent.stdout.readline().strip() for _ in range(2))
        child = psutil.Process(int(lines[0]))
        time.sleep(1.5)
        assert child.is_running()
        parent.kill()
        parent.wait()
        child.wait(20)
