"""How events reach their listeners."""

from __future__ import annotations

import numpy as np
import pytest

from dask_belief.errors import ArgumentError
from dask_belief.monitoring.callbacks import CallbackList
from dask_belief.monitoring.events import WorkerLost

EVENT = WorkerLost("tcp://127.0.0.1:1")


def test_all_are_called_in_order_also_after_one_asked_to_stop():
    """The second asks to stop, and the third hears the event none the less."""
    heard = []

    def listener(name, answer):
        def hear(event):
            heard.append((name, event))
            return answer

        return hear

    listeners = CallbackList([listener("first", None), listener("second", True), listener("third", None)])
    assert listeners(EVENT) is True
    assert heard == [("first", EVENT), ("second", EVENT), ("third", EVENT)]


@pytest.mark.parametrize("answer", [None, False, 0, 1, "stop", np.ones(3)])
def test_only_true_itself_asks_to_stop(answer):
    """Whatever else a callback happens to return, the run goes on."""
    assert CallbackList([lambda event: answer])(EVENT) is False


def test_without_callbacks_nobody_asks_to_stop():
    """An empty list is the rule."""
    assert CallbackList()(EVENT) is False


def test_what_a_callback_raises_goes_through():
    """A broken callback is not silently dropped."""

    def broken(event):
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        CallbackList([broken])(EVENT)


def test_what_cannot_be_called_is_refused_when_the_list_is_made():
    """The mistake shows before the run, not at its first event."""
    with pytest.raises(ArgumentError, match=r"^callbacks: .*42"):
        CallbackList([42])  # type: ignore[list-item]
