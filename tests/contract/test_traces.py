import subprocess
import sys

import pytest

from contract import traces
from tests.otlp import receiver


@pytest.fixture
def sent():
    """What arrived where spans are sent to."""
    with receiver() as got:
        traces.begin(got.url, "program")
        yield got
        traces.end()


def test_without_an_endpoint_nothing_is_imported_and_nothing_is_traced():
    program = """
import sys
import service.worker.worker, service.worker.triton, stages.denoise_stage, stages.responses, service.api.guard
from contract import traces
traces.begin("", "program")
with traces.span("work") as span:
    span.note({"a": 1})
    assert traces.traceparent() is None is traces.trace_id()
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_spans_lie_below_the_one_around_them_and_below_the_one_they_are_given(sent):
    with traces.span("outer", {"wan.job": "video_1"}) as outer, traces.span("inner") as inner:
        assert traces.traceparent() == inner.traceparent
        traces.note({"wan.steps": 3})
    with traces.span("elsewhere", parent=inner.traceparent):
        assert traces.trace_id() == traces.trace_id(outer.traceparent)
    traces.end()
    spans = sent.of_trace(traces.trace_id(outer.traceparent), "outer", "inner", "elsewhere")
    assert [spans[name].parent for name in ("outer", "inner", "elsewhere")] == [
        "",
        spans["outer"].id,
        spans["inner"].id,
    ]
    assert (spans["outer"].attributes, spans["inner"].attributes) == ({"wan.job": "video_1"}, {"wan.steps": 3})
    assert {span.program for span in spans.values()} == {"program"}


@pytest.mark.parametrize("parent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", 7, ["00"]])
def test_a_parent_that_is_none_begins_a_trace(sent, parent):
    with traces.span("work", parent=parent) as span:
        trace = traces.trace_id()
    traces.end()
    assert sent.of_trace(trace, "work")["work"].parent == ""
    assert span.traceparent


def test_an_error_that_leaves_a_span_is_told_and_the_span_before_is_current_again(sent):
    with traces.span("outer") as outer:
        with pytest.raises(ValueError, match="broke"), traces.span("inner"):
            raise ValueError("it broke")
        assert traces.traceparent() == outer.traceparent
    traces.end()
    spans = sent.of_trace(traces.trace_id(outer.traceparent), "outer", "inner")
    assert (spans["inner"].failed, spans["outer"].failed) == ("ValueError: it broke", "")


def test_the_past_can_be_told(sent):
    with traces.span("work") as work:
        traces.spent("queue", 1000.0, 1007.5, work.traceparent)
    traces.end()
    assert sent.of_trace(traces.trace_id(work.traceparent), "queue")["queue"].seconds == 7.5


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://localhost:4317", "http://", "4318"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint):
    with pytest.raises(ValueError, match="http://localhost:4318"):
        traces.check(endpoint)


def test_an_endpoint_without_the_package_is_refused_by_the_name_of_the_extra(monkeypatch):
    monkeypatch.setattr(traces, "EXPORTER", "opentelemetry.exporter_that_is_not_there.http")
    with pytest.raises(ValueError, match="wan-triton\\[tracing\\]"):
        traces.check("http://localhost:4318")
    assert traces.check("") == ""
