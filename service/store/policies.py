"""Which waiting job of an owner goes first: its `turn`, given once when it is submitted; the smallest goes next.

Priorities (levels) stand above and fair shares between owners beside this; both are the same for all policies.
"""

from collections.abc import Callable

Policy = Callable[[float, float, float | None, float], float]  # now, cost in GPU-seconds, deadline, ageing -> turn
NO_DEADLINE = 3600.0  # a job without a deadline counts as due so many seconds after it came


def fifo(now: float, cost: float, deadline: float | None, ageing: float) -> float:
    """First come, first served."""
    return now


def shortest(now: float, cost: float, deadline: float | None, ageing: float) -> float:
    """The shortest first; `ageing` seconds of waiting make up for one GPU-second, so that long ones are not passed for ever."""
    return now + ageing * cost


def earliest_deadline(now: float, cost: float, deadline: float | None, ageing: float) -> float:
    """What is due first; by the moment at which it has to be begun."""
    return (deadline if deadline is not None else now + NO_DEADLINE) - cost


POLICIES: dict[str, Policy] = {"fifo": fifo, "shortest": shortest, "earliest_deadline": earliest_deadline}
