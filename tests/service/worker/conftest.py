"""Fixtures of the worker's tests: the settings of one machine, and the jobs in its database."""

import pytest

from service.store import JobStore
from tests.service.running import settings_for


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path)


@pytest.fixture
def store(settings):
    opened = JobStore.from_settings(settings)
    yield opened
    opened.close()
