"""One trace from the HTTP request to the stored video, and its id wherever somebody may look for it."""

import json
import logging

import httpx
import pytest

from contract import traces
from service.errors import GenerationFailed
from service.logs import JsonFormatter
from tests.otlp import receiver
from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, settings_for, until, wait_for, worker

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = CALLER.split("-")[1]
BODY = {"prompt": "a boat", "size": "32x32", "num_frames": 5, "steps": 3}


@pytest.fixture
def traced(tmp_path, monkeypatch):
    """(client, triton, receiver) of a gateway and a worker that trace."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with receiver() as got:
        settings = settings_for(tmp_path, otlp_endpoint=got.url)
        triton = FakeTriton(settings.runs)
        with gateway(settings) as url, worker(settings, triton), httpx.Client(base_url=url, timeout=10) as client:
            yield client, triton, got
        traces.end()


def test_a_video_is_one_trace_which_continues_the_callers(traced):
    client, _, got = traced
    made = client.post("/v1/videos", json=BODY, headers={"traceparent": CALLER}).json()
    assert wait_for(client, made["id"])["trace_id"] == made["trace_id"] == TRACE
    names = ("POST /v1/videos", "queue", "attempt", "triton", "encode", "store")
    spans = got.of_trace(TRACE, *names)
    request, attempt = spans["POST /v1/videos"], spans["attempt"]
    parents = [CALLER.split("-")[2], request.id, request.id, attempt.id, attempt.id, attempt.id]
    assert [spans[name].parent for name in names] == parents
    assert request.attributes["wan.job"] == attempt.attributes["wan.job"] == made["id"]
    assert request.attributes["http.response.status_code"] == 200
    assert attempt.attributes["wan.status"] == "completed"


def test_events_and_errors_name_the_trace(traced):
    client, _, _ = traced
    made = client.post("/v1/videos", json=BODY, headers={"traceparent": CALLER}).json()
    events = client.get(f"/v1/videos/{made['id']}/events").text
    data = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")]
    assert {event["trace_id"] for event in data} == {TRACE}
    refused = client.post("/v1/videos", json=BODY | {"steps": 0}, headers={"traceparent": CALLER})
    assert (refused.status_code, refused.json()["error"]["trace_id"]) == (400, TRACE)
    unknown = client.get("/v1/nothing", headers={"traceparent": CALLER}).json()
    assert unknown["error"]["trace_id"] == TRACE


def test_every_attempt_is_a_span_of_the_same_trace(traced):
    client, triton, got = traced
    triton.break_at["a boat"] = 2
    triton.break_with = GenerationFailed("the stub died")
    made = client.post("/v1/videos", json=BODY).json()
    wait_for(client, made["id"])
    attempts = []

    def both_arrived():
        attempts[:] = [span for span in got.spans if span.name == "attempt"]
        return len(attempts) == 2

    until(both_arrived)
    assert [span.attributes["wan.attempt"] for span in attempts] == [1, 2]
    assert {span.trace for span in attempts} == {made["trace_id"]}


def test_a_log_line_names_the_trace_that_it_was_written_in(traced):
    record = logging.LogRecord("service", logging.INFO, "", 0, "text", None, None)
    with traces.span("work"):
        assert json.loads(JsonFormatter().format(record))["trace_id"] == traces.trace_id()
    assert "trace_id" not in json.loads(JsonFormatter().format(record))


def test_without_an_endpoint_answers_name_no_trace(tmp_path):
    with gateway(settings_for(tmp_path)) as url, httpx.Client(base_url=url, timeout=10) as client:
        assert client.post("/v1/videos", json=BODY, headers={"traceparent": CALLER}).json()["trace_id"] is None
        assert "trace_id" not in client.get("/v1/nothing").json()["error"]
