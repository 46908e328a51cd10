import subprocess
import sys
import time

import psutil
import pytest

from loadtest.base.processes import frozen


def stopped(part: psutil.Process) -> bool:
    """What a signal does shows a moment later."""
    time.sleep(0.2)
    return part.status() == psutil.STATUS_STOPPED


SLEEPING = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_those_that_are_left_go_on_when_one_has_ended():
    started = [subprocess.Popen(SLEEPING) for _ in range(3)]
    parts = [psutil.Process(process.pid) for process in started]
    try:
        with frozen(parts):
            assert all(stopped(part) for part in parts)
            started[0].kill()
            started[0].wait()
        assert not any(stopped(part) for part in parts[1:])
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_they_go_on_after_an_error_as_well():
    with subprocess.Popen(SLEEPING) as process:
        part = psutil.Process(process.pid)
        with pytest.raises(ValueError, match="meanwhile"), frozen([part]):
            raise ValueError("something else broke meanwhile")
        assert not stopped(part)
        process.kill()
