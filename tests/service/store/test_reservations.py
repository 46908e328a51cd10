"""A place for files before their job is there."""

from dataclasses import replace

import pytest

from service.errors import NotFound
from service.store.jobs import QUEUED
from tests.service.store import making

MEDIA = {"image": {"key": "k/input-image.png", "sha256": "a" * 64, "type": "image/png"}}


def with_files(**more):
    job = making.new(**more)
    return replace(job, request=job.request | {"media": MEDIA})


def test_a_reservation_is_nobodys_job_and_the_job_takes_its_place(store):
    new = with_files()
    store.reserve(new)
    with pytest.raises(NotFound):
        store.get(new.id)
    assert store.page(None) == ([], False)
    assert not store.anything_waits()
    job, made = store.submit(new)
    assert (job.id, job.status, made) == (new.id, QUEUED, True)
    assert store.lease("w").job.request["media"] == MEDIA


def test_a_reservation_that_no_job_took_is_swept_after_an_hour(store, clock):
    new = with_files()
    store.reserve(new)
    assert store.sweep() == []
    clock.advance(3700)
    assert store.sweep() == [new.id]
    store.forget([new.id])
    assert store.sweep() == []


def test_a_job_that_took_its_reservation_is_not_swept(store, clock):
    new = with_files()
    store.reserve(new)
    store.submit(new)
    clock.advance(3700)
    assert store.sweep() == []


def test_a_repetition_is_told_by_the_digests_of_its_files_not_by_where_they_lie(store):
    first = with_files(idempotency_key="k")
    store.submit(first)
    again = with_files(idempotency_key="k")
    again.request["media"] = {"image": MEDIA["image"] | {"key": "elsewhere/input-image.png"}}
    assert store.submit(again)[1] is False
