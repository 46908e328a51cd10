"""Results computed on paper: an exact single-server queue instead of a service, for what judges results."""

import random

from loadtest.traffic.profile import Profile, schedule
from loadtest.traffic.record import Record, Result
from loadtest.traffic.summary import judge, summarise
from tests.loadtest.queue_theory import lindley


def synthetic(profile: Profile, service: float, scatter: float = 0.0, fail_every: int = 0) -> Result:
    """The result that a perfect harness would bring home; service times scatter by the given share (uniform)."""
    rng = random.Random(profile.seed * 7 + 1)
    orders = schedule(profile)
    services = [service * (1 + scatter * rng.uniform(-1, 1)) for _ in orders]
    records = []
    for order, wait, own in zip(orders, lindley([o.at for o in orders], services), services, strict=True):
        start = order.at + wait
        record = Record(order.index, order.shape.name, "", order.at, sent=order.at, accepted=order.at)
        if fail_every and order.index % fail_every == 0:
            record.outcome, record.error = "failed", "out of memory"
        else:
            record.started, record.finished, record.delivered, record.outcome = (
                start,
                start + own,
                start + own,
                "completed",
            )
            record.stages = {"queue": wait, "text_encoder": own * 0.1, "denoise": own * 0.7, "vae_decoder": own * 0.2}
        records.append(record)
    elapsed = max((record.finished or 0.0 for record in records), default=0.0)
    window = {"start": 0.0, "end": elapsed, "started_at": "1970-01-01T00:00:00+00:00"}
    environment = {"cpu": "paper", "cores": 1, "machine": "none"}
    return Result(profile.name, profile.model_dump(mode="json"), environment, window, records,
                  summarise(profile, records, elapsed), judge(profile.slo, records, elapsed))  # fmt: skip
