"""One gateway and one worker around a stand-in for Triton, shared by the tests of the API."""

import httpx
import pytest

from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, settings_for, worker


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    settings = settings_for(tmp_path_factory.mktemp("site"), max_body_bytes=50_000)
    with gateway(settings) as url, worker(settings, FakeTriton(settings.runs, step_seconds=0.01)):
        yield url


@pytest.fixture
def client(site):
    with httpx.Client(base_url=site, timeout=30) as opened:
        yield opened
