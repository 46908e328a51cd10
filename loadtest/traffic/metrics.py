"""Metric series of a run's window: from Prometheus, or read from /metrics while the run goes on."""

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import AsyncIterator, Iterable
from urllib.parse import urlsplit

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from loadtest.base.inputs import TargetUnavailable
from loadtest.traffic.profile import Metrics

Series = dict[str, list[list[float]]]  # 'name{label="value"}' -> [[seconds after the start, value], …]
SERIES_LIMIT = 400


@contextlib.asynccontextmanager
async def collect(settings: Metrics, wall_started: float) -> AsyncIterator[Series]:
    """Fill the yielded series during the block (scraping) or at its end (Prometheus)."""
    series: Series = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        if settings.prometheus_url:
            await query(session, settings, wall_started - 1, wall_started, {})  # a wrong address shows before the run
            yield series
            try:
                await query(session, settings, wall_started, time.time(), series)
            except TargetUnavailable as error:  # the run is worth more than its background
                print(f"no metric series: {error}", file=sys.stderr)
            return
        task = asyncio.create_task(_scrape_loop(session, settings, wall_started, series)) if settings.scrape else None
        try:
            yield series
        finally:
            if task:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                await _scrape_all(session, settings, wall_started, series)  # the window's last point


async def query(session: aiohttp.ClientSession, settings: Metrics, start: float, end: float, series: Series) -> None:
    """Read the window from Prometheus' range API (https://prometheus.io/docs/prometheus/latest/querying/api/)."""
    pattern = "|".join(f"{name}.*" for name in settings.names)
    params = {
        "query": f'{{__name__=~"{pattern}",__name__!~".*_(bucket|created)"}}',
        "start": str(start),
        "end": str(end),
        "step": str(max(settings.every_seconds, (end - start) / 5000)),
    }
    url = f"{str(settings.prometheus_url).rstrip('/')}/api/v1/query_range"
    try:
        async with session.post(url, data=params) as answer:
            data = await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise TargetUnavailable(f"metrics.prometheus_url {settings.prometheus_url}: {error}") from error
    if data.get("status") != "success":
        raise TargetUnavailable(f"metrics.prometheus_url {settings.prometheus_url}: {data.get('error')}")
    for found in data["data"]["result"][:SERIES_LIMIT]:
        labels = dict(found["metric"])
        points = [[max(0.0, float(t) - start), float(v)] for t, v in found["values"] if math.isfinite(float(v))]
        series[key(labels.pop("__name__"), labels)] = points


async def _scrape_loop(session: aiohttp.ClientSession, settings: Metrics, started: float, series: Series) -> None:
    while True:
        await _scrape_all(session, settings, started, series)
        await asyncio.sleep(settings.every_seconds)


async def _scrape_all(session: aiohttp.ClientSession, settings: Metrics, started: float, series: Series) -> None:
    for url in settings.scrape:
        # A scrape that fails leaves a gap in the series; it must not end the run.
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with session.get(url) as answer:
                text = await answer.text()
            now = time.time() - started  # one time for all: a histogram's mean needs sum and count of the same moment
            for name, value in samples(text, settings.names, urlsplit(url).netloc):
                if name in series or len(series) < SERIES_LIMIT:
                    series.setdefault(name, []).append([now, value])


def samples(text: str, names: Iterable[str], instance: str) -> Iterable[tuple[str, float]]:
    """The wanted samples of a text exposition, without histogram buckets and creation times."""
    wanted = tuple(names)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            left_out = sample.name.endswith(("_bucket", "_created")) or not math.isfinite(sample.value)
            if sample.name.startswith(wanted) and not left_out:
                yield key(sample.name, {**sample.labels, "instance": instance}), sample.value


def key(name: str, labels: dict[str, str]) -> str:
    """`name{a="1",b="2"}` with the labels in order."""
    inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name
