"""Fixtures of the load-test tests: the stand-in service as a process of its own, and profiles that aim at it."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.traffic.profile import Profile

HERE = Path(__file__).parent


@pytest.fixture
def undisturbed():
    """Put this process and those it starts before others, where that is permitted: milliseconds are measured."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    yield
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, usual)


@pytest.fixture
def standin():
    """Start the stand-in with the given options; returns its URL. It ends with the test."""
    started = []

    def start(*options: object) -> str:
        command = [sys.executable, str(HERE / "standin.py"), *map(str, options)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return f"http://127.0.0.1:{process.stdout.readline().strip()}"

    yield start
    for process in started:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


@pytest.fixture
def profile():
    """A profile with a Poisson load at 60 a minute unless told otherwise."""

    def make(**sections) -> Profile:
        return Profile(**({"name": "test", "load": {"kind": "poisson", "per_minute": 60}} | sections))

    return make
