"""Jobs for the tests of the store, and time that passes."""

from service.errors import Fault
from service.store import Loss, NewJob

BROKE = Loss(Fault.worker, "device_error", "the GPU broke")
REJECTED = Loss(Fault.job, "invalid_value", "WIDTH is 17")


def new(owner="alice", cost=10.0, prompt="a red circle", **more):
    return NewJob(owner=owner, request={"prompt": prompt, "steps": 20}, cost=cost, **more)


def submit(store, clock, *jobs, **more):
    """Submit one after the other, a second apart."""
    made = []
    for job in jobs or (new(**more),):
        made.append(store.submit(job)[0])
        clock.advance(1)
    return made


def pass_seconds(store, clock, seconds):
    """Let time pass in a service that looks after its jobs, as gateways and workers do every few seconds."""
    for _ in range(seconds // 5):
        clock.advance(5)
        store.sweep()
    clock.advance(seconds % 5)
    store.sweep()


def run(store, lease, status="completed"):
    return store.complete(lease, f"{lease.request_id}.mp4", 100, {"gpu_seconds": lease.job.cost})
