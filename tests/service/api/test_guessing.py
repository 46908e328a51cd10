"""Guessing API keys is slowed down by address, without locking out the keys that are in use there."""

import pytest

from service.api import guessing
from service.api.guessing import Guessing
from service.errors import RateLimited


def use_up(limiter, address, failures=5):
    for _ in range(failures):
        limiter.check(address, None)
        limiter.failed(address)


def test_an_address_that_guesses_is_refused_and_allowed_again_later(clock):
    limiter = Guessing(5, clock)
    use_up(limiter, "1.2.3.4")
    with pytest.raises(RateLimited) as refused:
        limiter.check("1.2.3.4", None)
    assert refused.value.retry_after == 12
    with pytest.raises(RateLimited):
        limiter.check("1.2.3.4", "alice")  # a guess that hits must not be told apart
    limiter.check("1.2.3.5", None)
    clock.advance(12)
    limiter.check("1.2.3.4", None)


def test_a_key_that_was_valid_from_there_before_stays_so(clock):
    limiter = Guessing(5, clock)
    limiter.check("1.2.3.4", "alice")
    use_up(limiter, "1.2.3.4")
    limiter.check("1.2.3.4", "alice")


def test_a_network_of_ipv6_is_one_address(clock):
    limiter = Guessing(5, clock)
    for host in range(5):
        use_up(limiter, f"2001:db8::{host:x}", 1)
    with pytest.raises(RateLimited):
        limiter.check("2001:db8::ffff", None)
    limiter.check("2001:db8:0:1::1", None)


def test_memory_is_bounded(clock, monkeypatch):
    monkeypatch.setattr(guessing, "MAX_ADDRESSES", 100)
    limiter = Guessing(5, clock)
    for number in range(1000):
        address = f"10.0.{number // 256}.{number % 256}"
        limiter.check(address, "alice")
        limiter.failed(address)
    assert len(limiter) == 100
