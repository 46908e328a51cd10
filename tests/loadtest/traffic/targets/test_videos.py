"""The sender of `/v1/videos`: what each answer of a service becomes in the record."""

import asyncio
import json

import pytest
from aiohttp import web

from loadtest.base.inputs import TargetUnavailable
from loadtest.traffic.loops import Run, apply_load
from loadtest.traffic.profile import Profile
from loadtest.traffic.session import open_sender
from tests.loadtest.standin import StandIn


def drive(application: web.Application, check: bool = True, **sections):
    """Run a load against an application inside this process; returns the records."""

    async def main():
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sections["target"] = sections.get("target", {}) | {"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}
        defaults = {"load": {"kind": "constant", "per_minute": 6000}, "limits": {"requests": 3, "seconds": 5}}
        profile = Profile(**({"name": "test"} | defaults | sections))
        try:
            async with open_sender(profile.target, 10) as sender:
                if check:
                    await sender.check()
                run = Run.of(profile)
                await apply_load(run, sender)
                return run.records
        finally:
            await runner.cleanup()

    return asyncio.run(main())


@pytest.mark.parametrize("follow", ["events", "polling"])
def test_a_completed_video_has_every_time_in_order_and_every_stage(follow):
    records = drive(StandIn(0.05).application(), target={"follow": follow, "poll_seconds": 0.02})
    assert [record.outcome for record in records] == ["completed"] * 3
    for record in records:
        times = [record.intended, record.sent, record.accepted, record.finished, record.delivered]
        assert times == sorted(times)
        assert set(record.stages) == {"queue", "text_encoder", "denoise", "vae_decoder", "encode"}
        assert record.content_bytes == 2000
        assert record.total >= record.wait + 0.049


def test_the_body_carries_the_shape_and_nothing_else():
    standin = StandIn(0.001)
    mix = [{"name": "a", "width": 64, "height": 32, "num_frames": 17, "steps": 4, "priority": "high"}]
    drive(standin.application(), mix=mix, prompts=["p"], limits={"requests": 1, "seconds": 1})
    body = next(iter(standin.jobs.values())).body
    seed = body.pop("seed")
    assert body == {"prompt": "p", "size": "64x32", "num_frames": 17, "num_inference_steps": 4, "priority": "high"}
    assert 0 <= seed < 2**31


def test_a_full_queue_is_rejected_and_never_a_latency():
    records = drive(StandIn(0.3, capacity=1).application(), limits={"requests": 6, "seconds": 5})
    rejected = [record for record in records if record.outcome == "rejected"]
    assert rejected
    assert all("429" in record.error and record.total == float("inf") for record in rejected)
    assert [record.outcome for record in records].count("completed") == 6 - len(rejected)


def test_what_is_unfinished_at_the_end_is_a_timeout_and_is_cancelled():
    standin = StandIn(30)
    records = drive(standin.application(), limits={"requests": 2, "seconds": 1, "drain_seconds": 0.5})
    assert [record.outcome for record in records] == ["timeout"] * 2
    assert all("unfinished" in record.error and record.total == float("inf") for record in records)
    assert all(job.cancelled for job in standin.jobs.values())


def test_a_request_that_takes_too_long_is_a_timeout():
    records = drive(StandIn(30).application(), limits={"requests": 1, "seconds": 1, "request_seconds": 0.3})
    assert records[0].outcome == "timeout"
    assert "request_seconds is 0.3" in records[0].error


def test_requests_beyond_in_flight_are_dropped_and_counted():
    records = drive(StandIn(0.2).application(), limits={"requests": 5, "seconds": 5, "in_flight": 2})
    assert sorted(record.outcome for record in records) == ["completed"] * 2 + ["dropped"] * 3


def broken(**routes) -> web.Application:
    """A stand-in whose named handlers are replaced."""
    standin = StandIn(0.02)
    for name, handler in routes.items():
        setattr(standin, name, handler)
    return standin.application()


def test_wrong_answers_are_errors_with_their_status():
    async def refuse(request):
        return web.json_response({"error": {"code": "invalid_value", "param": "size"}}, status=422)

    async def redirect(request):
        raise web.HTTPFound("http://example.com/")

    async def page(request):
        return web.Response(text="<html>", content_type="text/html")

    for handler, said in ((refuse, "422"), (redirect, "302"), (page, "JSON")):
        records = drive(broken(create=handler))
        assert {record.outcome for record in records} == {"error"}
        assert said in records[0].error


def test_a_missing_file_is_an_error_though_the_job_completed():
    async def missing(request):
        raise web.HTTPNotFound()

    records = drive(broken(content=missing))
    assert {record.outcome for record in records} == {"error"}
    assert "404" in records[0].error


def test_a_failed_job_tells_its_message():
    async def failed(request):
        body = {"id": "x", "status": "failed", "error": {"code": "oom", "message": "out of memory"}}
        return web.json_response(body)

    async def events(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'event: failed\ndata: {"status": "failed"}\n\n')
        return response

    records = drive(broken(get=failed, events=events))
    assert {(record.outcome, record.error) for record in records} == {("failed", "out of memory")}


def test_the_queue_is_what_we_saw_when_the_service_does_not_tell():
    standin = StandIn(0.2)

    async def get(request):
        job = standin.find(request).view()
        job["stage_durations"] = {"denoise": 0.15, "encode": 0.05}
        return web.json_response(job)

    standin.get = get
    records = drive(standin.application(), limits={"requests": 2, "seconds": 1})
    assert all(set(record.stages) == {"queue", "denoise", "encode"} for record in records)
    assert records[1].stages["queue"] == pytest.approx(0.19, abs=0.1)
    assert records[0].stages["queue"] < 0.1
    assert records[1].wait == pytest.approx(records[1].started - records[1].intended)


def test_an_event_stream_that_breaks_off_is_opened_again():
    calls = []

    async def events(request):
        calls.append(1)
        response = web.StreamResponse()
        await response.prepare(request)
        if len(calls) == 1:
            await response.write(b'retry: 1000\n\n: still here\n\ndata: {"status": "in_progress"}\n\ndata: {"sta')
            request.transport.abort()
            return response
        await response.write(b"data: " + json.dumps({"status": "completed"}).encode() + b"\n\n")
        return response

    target = {"poll_seconds": 0.01}
    records = drive(broken(events=events), target=target, limits={"requests": 1, "seconds": 1})
    assert records[0].outcome == "completed"
    assert len(calls) == 2
    assert records[0].started is not None


def test_videos_are_deleted_when_asked():
    deleted = []

    async def delete(request):
        deleted.append(request.match_info["id"])
        return web.json_response({"deleted": True})

    application = StandIn(0.01).application()
    application.router.add_delete("/v1/videos/{id}", delete)
    records = drive(application, target={"delete": True})
    assert sorted(deleted) == sorted(record.job_id for record in records)


def test_a_service_that_does_not_answer_stops_the_run_before_it_begins(profile):
    async def main():
        async with open_sender(profile(target={"url": "http://127.0.0.1:9"}).target, 1) as sender:
            await sender.check()

    with pytest.raises(TargetUnavailable, match="127.0.0.1:9"):
        asyncio.run(main())
    with pytest.raises(TargetUnavailable, match="404"):
        drive(web.Application())
