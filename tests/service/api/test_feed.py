"""Followers of jobs share one reader, miss nothing, and are bounded in number."""

import asyncio
from collections import Counter

import pytest

from service.api import feed as feeds
from service.api.answers import Video
from service.api.feed import Feed, News
from service.errors import NotFound, RateLimited, Unavailable


class Jobs:
    """What the store knows, and how often it was asked."""

    def __init__(self, *ids):
        self.steps, self.changed = dict.fromkeys(ids, 0), dict.fromkeys(ids, 0.0)
        self.reads: Counter[str] = Counter()

    def step(self, job_id):
        self.steps[job_id] += 1
        self.changed[job_id] += 1.0

    def changes_of(self, ids):
        return {job_id: self.changed[job_id] for job_id in ids if job_id in self.changed}

    def read(self, job_id):
        self.reads[job_id] += 1
        if job_id not in self.steps:
            raise NotFound("no such video")
        video = Video.model_construct(id=job_id, status="in_progress", step=self.steps[job_id])
        return News(video, self.changed[job_id])


def run(scenario, jobs, limit=10_000):
    async def main():
        feed = Feed(limit)
        rounds = asyncio.create_task(feed.run(jobs.changes_of, jobs.read))
        try:
            async with asyncio.timeout(30):
                await scenario(feed)
        finally:
            rounds.cancel()

    asyncio.run(main())


async def next_steps(followers):
    return [news.video.step for news in await asyncio.gather(*(follower.next(10) for follower in followers))]


def test_a_thousand_followers_of_a_job_cost_one_read_a_change():
    jobs = Jobs("a")

    async def scenario(feed):
        first = jobs.read("a")
        contexts = [feed.following(first, "me") for _ in range(1000)]
        followers = [context.__enter__() for context in contexts]
        for step in (1, 2, 3):
            jobs.step("a")
            feed.wake()
            assert await next_steps(followers) == [step] * 1000
        for context in contexts:
            context.__exit__(None, None, None)

    run(scenario, jobs)
    assert jobs.reads["a"] <= 5  # the first one and one for each change


def test_only_changed_jobs_are_read():
    jobs = Jobs("a", "b")

    async def scenario(feed):
        with feed.following(jobs.read("a"), "me") as a, feed.following(jobs.read("b"), "me") as b:
            jobs.step("b")
            feed.wake()
            assert await next_steps([b]) == [1]
            assert await a.next(0.1) is None

    run(scenario, jobs)
    assert jobs.reads == {"a": 1, "b": 2}


def test_a_change_between_reading_and_following_is_told():
    jobs = Jobs("a")

    async def scenario(feed):
        first = jobs.read("a")
        jobs.step("a")
        with feed.following(first, "me") as late:
            assert await next_steps([late]) == [1]
            with feed.following(first, "me") as later:  # the feed knows more than it does
                assert await next_steps([later]) == [1]

    run(scenario, jobs)


def test_a_deleted_job_ends_its_followers_and_the_end_of_the_gateway_all():
    jobs = Jobs("a", "b")

    async def scenario(feed):
        with feed.following(jobs.read("a"), "me") as a, feed.following(jobs.read("b"), "me") as b:
            del jobs.steps["a"], jobs.changed["a"]
            feed.wake()
            assert await a.next(10) is None
            assert (a.ended, b.ended) == (True, False)
            feed.close()
            assert b.ended

    run(scenario, jobs)


def test_places_in_the_queue_are_read_in_turn(monkeypatch):
    monkeypatch.setattr(feeds, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(feeds, "WAITING_AT_ONCE", 2)
    ids = [f"job{n}" for n in range(6)]
    jobs = Jobs(*ids)

    def waiting(job_id):
        jobs.reads[job_id] += 1
        return News(Video.model_construct(id=job_id, status="queued", queue_position=jobs.reads[job_id]), 0.0)

    jobs.read = waiting

    async def scenario(feed):
        contexts = [feed.following(jobs.read(job_id), "me") for job_id in ids]
        followers = [context.__enter__() for context in contexts]
        assert all([await follower.next(10) for follower in followers])
        for context in contexts:
            context.__exit__(None, None, None)

    run(scenario, jobs)
    assert max(jobs.reads.values()) - min(jobs.reads.values()) <= 1


def test_streams_are_bounded_for_one_caller_and_for_all():
    jobs = Jobs("a")

    async def scenario(feed):
        first = jobs.read("a")
        with feed.following(first, "me"), feed.following(first, "me"):
            with pytest.raises(RateLimited):
                feed.check_room("me", 0.5)
            feed.check_room("you", 0.5)
            with feed.following(first, "you"), feed.following(first, "you"), pytest.raises(Unavailable):
                feed.check_room("they", 0.5)
        feed.check_room("me", 0.5)

    run(scenario, jobs, limit=4)
