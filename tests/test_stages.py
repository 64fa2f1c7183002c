"""Methods in turn, with scripted outcomes: what is handed on, which point is the best, what ends them all."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dask_belief import stages
from dask_belief.checkpoint import Loaded, SavedState
from dask_belief.downpour.config import Downpour
from dask_belief.errors import ArgumentError, NonFiniteError
from dask_belief.monitoring.callbacks import CallbackList
from dask_belief.monitoring.events import DownpourProgressed, Event, IterationEnded, RunStarted, Stopped
from dask_belief.monitoring.history import History
from dask_belief.optim.rules import SGD, Adagrad
from dask_belief.optim.stopping import Stop, StopReason
from dask_belief.run import Facts, Outcome, Run
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.stages import SUMS_BEFORE, Begun, Method, Stages, Trained, check_handover, is_as_good

DOWNPOUR, SANDBLASTER = Downpour(rule=Adagrad(0.1)), Sandblaster()
SUMS = np.array([1.0, 4.0], np.float32)
Script = Callable[[Run], Outcome]


def outcome_of(
    at: float = 1.0, loss: float = 0.5, reason: StopReason = StopReason.EPOCHS_DONE, **changes: Any
) -> Outcome:
    """An outcome at a point of two equal parameters."""
    parts: dict[str, Any] = {"stop": Stop(reason), "passes": 3.0, "repeatable": True, "validation": {}}
    return Outcome(np.full(2, at, np.float32), loss, **parts | changes)


class Play:
    """Stages whose methods do what a script says; what each was given is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *scripts: Outcome | BaseException | Script) -> None:
        self.given: list[tuple[Facts, Method]] = []
        self.history = History()
        self._scripts = iter(scripts)
        monkeypatch.setattr(stages, "_drive", self._drive)

    def _drive(self, run: Run, method: Method) -> Outcome:
        self.given.append((run.facts, method))
        script = next(self._scripts)
        if isinstance(script, BaseException):
            raise script
        return script if isinstance(script, Outcome) else script(run)

    def run(
        self,
        *methods: Method,
        callbacks: tuple[Callable[[Event], Any], ...] = (),
        begun: Begun | None = None,
        **of: Any,
    ) -> Trained:
        nothing: Any = None
        initial = np.zeros(2, np.float32)
        facts = Facts("first", nothing, nothing, nothing, None, initial, seed=0, dtype="float32", backend="numpy", **of)
        return Stages(methods, facts, CallbackList([self.history, *callbacks]), begun).train()


def test_one_method_gives_what_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outcome as it is, its name, and one event at the end."""
    outcome = outcome_of(rule_state={"accumulator": SUMS})
    play = Play(monkeypatch, outcome)
    trained = play.run(DOWNPOUR)
    assert trained.outcome is outcome and trained.name == "Downpour SGD"
    assert play.history.events == (Stopped(outcome.stop, trained.seconds, 3.0),)
    assert play.given[0][0].name == "first"


def test_each_begins_at_the_best_point_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a name of its own; the second one ends higher than it began, so the third begins where the second did."""
    play = Play(monkeypatch, outcome_of(1.0, 0.5), outcome_of(2.0, 0.7), outcome_of(3.0, 0.4))
    trained = play.run(DOWNPOUR, SANDBLASTER, DOWNPOUR)
    assert [facts.initial.tolist() for facts, _ in play.given] == [[0, 0], [1, 1], [1, 1]]
    assert len({facts.name for facts, _ in play.given}) == 3
    assert (trained.outcome.parameters.tolist(), trained.outcome.loss) == ([3, 3], 0.4)
    assert trained.name == "Downpour SGD, then Sandblaster L-BFGS, then Downpour SGD"


def test_a_last_method_that_ends_higher_gives_the_point_where_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """With that point's loss and validation, and with the last method's own reason to stop and rule."""
    first = outcome_of(1.0, 0.5, StopReason.GRADIENT_SMALL, validation={"loss": 0.6})
    last = outcome_of(2.0, math.nan, StopReason.NOT_FINITE, rule_state={"velocity": SUMS})
    outcome = Play(monkeypatch, first, last).run(SANDBLASTER, DOWNPOUR).outcome
    assert (outcome.parameters.tolist(), outcome.loss, outcome.validation) == ([1, 1], 0.5, {"loss": 0.6})
    assert outcome.stop.reason is StopReason.NOT_FINITE
    assert list(outcome.rule_state) == ["velocity"]


def test_a_rules_state_is_that_of_a_last_downpour(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a Sandblaster there is none."""
    play = Play(monkeypatch, outcome_of(rule_state={"accumulator": SUMS}), outcome_of(loss=0.1))
    assert play.run(DOWNPOUR, SANDBLASTER).outcome.rule_state == {}


@pytest.mark.parametrize("which", [(True, True), (True, False), (False, True)])
def test_a_run_is_repeatable_when_all_of_it_is(monkeypatch: pytest.MonkeyPatch, which: tuple[bool, bool]) -> None:
    """One method that is not is enough."""
    play = Play(monkeypatch, *(outcome_of(repeatable=each) for each in which))
    assert play.run(DOWNPOUR, SANDBLASTER).outcome.repeatable is all(which)


def test_what_is_told_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds and passes of the second method's events begin where those of the first ended; its counts begin anew."""

    def downpour(run: Run) -> Outcome:
        run.emit(RunStarted("Downpour", 10, 2, 1, seconds=run.seconds))
        run.emit(DownpourProgressed(steps=8, epochs=2.5, rows=25, loss=0.6, seconds=run.seconds))
        return outcome_of(passes=2.5)

    def sandblaster(run: Run) -> Outcome:
        run.emit(RunStarted("Sandblaster", 10, 2, 1))
        run.emit(IterationEnded(1, 2, 0.4, 0.1, 1.0, seconds=run.seconds, passes=2.0))
        return outcome_of(loss=0.4, passes=2.0)

    play = Play(monkeypatch, downpour, sandblaster, downpour)
    trained = play.run(DOWNPOUR, SANDBLASTER, DOWNPOUR)
    assert play.history["passes"] == [2.5, 2.5, 4.5, 4.5, 7.0, 7.0]
    assert play.history["epochs"] == [2.5, 2.5] and play.history["iteration"] == [1]
    assert trained.outcome.passes == 7.0
    seconds = play.history["seconds"]
    assert seconds == sorted(seconds)
    ends = [event.seconds for event in play.history if isinstance(event, Stopped)]
    starts = [event.seconds for event in play.history if isinstance(event, RunStarted)]
    assert starts[1] == ends[0] > 0 and ends[-1] == trained.seconds


# What ends all.


@pytest.mark.parametrize("reason", list(StopReason))
def test_only_a_callback_or_the_user_ends_all(monkeypatch: pytest.MonkeyPatch, reason: StopReason) -> None:
    """Any other reason to stop is one of the method alone."""
    play = Play(monkeypatch, outcome_of(reason=reason), outcome_of(loss=0.4))
    trained = play.run(DOWNPOUR, SANDBLASTER)
    ends_all = reason in (StopReason.CALLBACK, StopReason.INTERRUPTED)
    assert len(play.given) == (1 if ends_all else 2)
    assert trained.name == ("Downpour SGD" if ends_all else "Downpour SGD, then Sandblaster L-BFGS")
    assert trained.outcome.stop.reason is (reason if ends_all else StopReason.EPOCHS_DONE)


@pytest.mark.parametrize("kind", [DownpourProgressed, Stopped])
def test_a_callback_that_asks_as_a_method_ends_is_heard(monkeypatch: pytest.MonkeyPatch, kind: type[Event]) -> None:
    """The method's own end came first, so its event tells that; the run ended because of the callback."""

    def downpour(run: Run) -> Outcome:
        run.emit(DownpourProgressed(steps=8, epochs=3.0, rows=30, loss=0.6, seconds=run.seconds))
        return outcome_of()

    play = Play(monkeypatch, downpour)
    trained = play.run(DOWNPOUR, SANDBLASTER, callbacks=(lambda event: isinstance(event, kind),))
    assert trained.outcome.stop == Stop(StopReason.CALLBACK, {"passes": 3.0})
    assert play.history["stop"] == ["epochs_done"]
    assert trained.outcome.parameters.tolist() == [1, 1]


def test_a_callback_that_asks_at_the_end_of_the_last_method_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was left to run."""
    trained = Play(monkeypatch, outcome_of()).run(DOWNPOUR, callbacks=(lambda event: True,))
    assert trained.outcome.stop.reason is StopReason.EPOCHS_DONE


# Errors.


def kept_of(play: Play, kind: type[BaseException], *methods: Method, **options: Any) -> Any:
    with pytest.raises(kind) as caught:
        play.run(*methods, **options)
    return getattr(caught.value, "kept_parameters", None)


def with_point(error: Any, at: float) -> Any:
    """An error with the point that a method had kept."""
    error.kept_parameters = np.full(2, at, np.float32)
    return error


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), ArgumentError("unit_rows: no")])
def test_an_error_without_a_point_carries_that_of_the_method_before(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Such as one that comes up before the second method has begun; in the first there is none to carry."""
    assert kept_of(Play(monkeypatch, outcome_of(), error), type(error), DOWNPOUR, SANDBLASTER).tolist() == [1, 1]
    if not isinstance(error, ArgumentError):
        error.__dict__.pop("kept_parameters")
        assert kept_of(Play(monkeypatch, error), type(error), DOWNPOUR, SANDBLASTER) is None


def test_an_error_keeps_the_point_of_the_method_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has come further; but where it diverged, what it had kept is on the way there."""
    play = Play(monkeypatch, outcome_of(), with_point(RuntimeError("broken"), 2.0))
    assert kept_of(play, RuntimeError, SANDBLASTER, DOWNPOUR).tolist() == [2, 2]
    play = Play(monkeypatch, outcome_of(), with_point(NonFiniteError("far out"), 1e30))
    assert kept_of(play, NonFiniteError, SANDBLASTER, DOWNPOUR).tolist() == [1, 1]


def test_a_callback_that_fails_at_the_end_of_a_method_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method's point is in the error."""

    def fail(event: Event) -> None:
        raise KeyError("lost")

    assert kept_of(Play(monkeypatch, outcome_of(4.0)), KeyError, DOWNPOUR, callbacks=(fail,)).tolist() == [4, 4]


# Adagrad's sums.


@pytest.mark.parametrize(
    ("method", "taken"),
    [
        (Sandblaster(), "adagrad"),
        (Sandblaster(first_hessian="adagrad"), "adagrad"),
        (Sandblaster(l1=0.1), "adagrad"),
        (Sandblaster(first_hessian="scaled"), "scaled"),
        (Sandblaster(direction="conjugate_gradient"), None),
        (Downpour(), None),
    ],
    ids=["open", "asked for", "with l1", "scaled", "another direction", "Downpour"],
)
def test_sums_are_handed_over_where_they_are_of_use(monkeypatch: pytest.MonkeyPatch, method, taken) -> None:
    """L-BFGS takes them unless it says otherwise; what it is given as `first_hessian` is then plain."""
    play = Play(monkeypatch, outcome_of(rule_state={"accumulator": SUMS}), outcome_of())
    play.run(DOWNPOUR, method)
    facts, given = play.given[1]
    assert (facts.adagrad_sums is SUMS) == (taken == "adagrad")
    assert getattr(given, "first_hessian", None) == taken


@pytest.mark.parametrize("before", [Downpour(rule=SGD(0.1)), Sandblaster()], ids=["another rule", "another method"])
def test_without_sums_l_bfgs_begins_scaled(monkeypatch: pytest.MonkeyPatch, before: Method) -> None:
    """After whatever is no Downpour by Adagrad, though its state may have the same name."""
    play = Play(monkeypatch, outcome_of(rule_state={"accumulator": SUMS}), outcome_of())
    play.run(before, SANDBLASTER)
    facts, given = play.given[1]
    assert facts.adagrad_sums is None and isinstance(given, Sandblaster) and given.first_hessian == "scaled"


def test_a_first_method_that_leaves_it_open_begins_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the run begins with."""
    play = Play(monkeypatch, outcome_of())
    play.run(SANDBLASTER)
    assert play.given[0][1] == Sandblaster(first_hessian="scaled")


def test_sums_of_a_downpour_that_diverged_are_missed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next method goes on without them, and the log says so."""
    play = Play(monkeypatch, outcome_of(reason=StopReason.NOT_FINITE), outcome_of())
    with caplog.at_level(logging.WARNING, "dask_belief"):
        play.run(DOWNPOUR, Sandblaster(first_hessian="adagrad"))
    assert play.given[1][1] == Sandblaster(first_hessian="scaled")
    assert "Adagrad's sums" in caplog.text


@pytest.mark.parametrize("before", [Downpour(rule=SGD(0.1)), Sandblaster()], ids=["another rule", "another method"])
def test_sums_that_no_method_before_has_are_refused(before: Method) -> None:
    """Where they are asked for by name; the first method is another's matter."""
    asks = Sandblaster(first_hessian="adagrad")
    with pytest.raises(ArgumentError, match=r"^first_hessian: .*Adagrad"):
        check_handover([DOWNPOUR, before, asks])
    check_handover([asks, DOWNPOUR, asks, before, SANDBLASTER])


# Which point is the better one.


@pytest.mark.parametrize(
    ("now", "then", "expected"),
    [(0.4, 0.5, True), (0.5, 0.5, True), (0.6, 0.5, False), (math.nan, 0.5, False), (0.5, math.nan, True)],
)
def test_points_are_compared_by_the_objective(now: float, then: float, expected: bool) -> None:
    """No higher is as good; a number is better than none."""
    for methods in ((DOWNPOUR, SANDBLASTER), (SANDBLASTER, DOWNPOUR)):
        assert is_as_good(outcome_of(loss=then), outcome_of(loss=now), *methods) is expected


def test_downpour_goes_by_the_validation_set_where_there_is_one() -> None:
    """The lower validation loss is better, though the training loss is higher; Sandblaster goes by the objective."""
    fitted = outcome_of(loss=0.1, validation={"loss": 0.9})
    general = outcome_of(loss=0.3, validation={"loss": 0.5})
    assert is_as_good(fitted, general, SANDBLASTER, DOWNPOUR)
    assert not is_as_good(general, fitted, DOWNPOUR, DOWNPOUR)
    assert is_as_good(general, fitted, DOWNPOUR, SANDBLASTER)
    # A validation that found no number is worse than one that did.
    assert not is_as_good(fitted, outcome_of(loss=0.0), SANDBLASTER, DOWNPOUR)
    assert is_as_good(outcome_of(loss=0.0), fitted, SANDBLASTER, DOWNPOUR)


@pytest.mark.parametrize("method", [Sandblaster(l2=0.1), Sandblaster(l1=0.1), Downpour(l2=0.1)], ids=repr)
def test_objectives_with_other_penalties_are_not_compared(method: Method) -> None:
    """The point of the later method counts; with the same penalty on both sides it must be as good."""
    low, high = outcome_of(loss=0.1, validation={"loss": 0.1}), outcome_of(loss=0.9, validation={"loss": 0.9})
    assert is_as_good(low, high, DOWNPOUR, method)
    assert not is_as_good(low, high, method, method)


# Runs that are resumed.


@pytest.mark.parametrize(
    "begun",
    [
        Begun(),
        Begun(1, outcome_of(validation={"loss": 0.25, "accuracy": 0.5}, rule_state={"b": SUMS, "a": SUMS + 1}), 1.5),
        Begun(2, outcome_of(loss=math.inf, reason=StopReason.NOT_FINITE, validation={"loss": math.nan}), 0.1 + 0.2),
    ],
    ids=["nothing", "with-a-rule", "not-finite"],
)
def test_what_methods_have_given_comes_back(begun: Begun) -> None:
    """From strict JSON and named vectors, bit for bit."""
    config, vectors = json.loads(json.dumps(begun.to_config(), allow_nan=False)), begun.vectors()
    again = Begun.from_config(config, vectors.__getitem__)
    assert json.dumps(again.to_config()) == json.dumps(begun.to_config())
    assert sorted(again.vectors()) == sorted(vectors)
    assert all((again.vectors()[name] == vector).all() for name, vector in vectors.items())
    for name in config:
        with pytest.raises(KeyError):
            Begun.from_config({key: value for key, value in config.items() if key != name}, vectors.__getitem__)


def test_methods_that_were_through_are_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins as it was told to, under the run's name; seconds, passes and the best point run on."""
    begun = Begun(1, outcome_of(1.0, 0.5, passes=4.0, repeatable=False, rule_state={"accumulator": SUMS}), 10.0)
    resumed = Loaded(SavedState(1, {}, {}), {}, (), 1, "")
    play = Play(monkeypatch, outcome_of(2.0, 0.25, passes=2.0), outcome_of(3.0, 0.75, passes=1.0))
    given = {"resumed": resumed, "seconds_before": 5.0, "adagrad_sums": SUMS}
    trained = play.run(DOWNPOUR, SANDBLASTER, SANDBLASTER, begun=begun, **given)
    [(second, by), (third, _)] = play.given
    assert (second.name, second.resumed, second.initial.tolist()) == ("first", resumed, [0, 0])
    assert isinstance(by, Sandblaster) and by.first_hessian == "adagrad"
    assert third.name != "first" and third.resumed is None and third.seconds_before == 0.0
    assert third.initial.tolist() == [2, 2] and third.adagrad_sums is None
    outcome = trained.outcome
    assert (outcome.parameters.tolist(), outcome.loss, outcome.passes, outcome.repeatable) == ([2, 2], 0.25, 7.0, False)
    assert trained.name == "Downpour SGD, then Sandblaster L-BFGS, then Sandblaster L-BFGS"
    ends = [event.seconds for event in play.history if isinstance(event, Stopped)]
    assert 15.0 <= ends[0] <= ends[1] == trained.seconds < 25.0


def test_each_method_is_saved_with_what_those_before_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Description and vectors of each stage are all that is needed to begin at it."""
    first = outcome_of(1.0, 0.5, rule_state={"accumulator": SUMS})
    play = Play(monkeypatch, first, outcome_of(2.0, 0.7), outcome_of(3.0, 0.4))
    play.run(DOWNPOUR, SANDBLASTER, DOWNPOUR, description={"seed": 3})
    stages_of = [facts for facts, _ in play.given]
    assert [facts.description["seed"] for facts in stages_of] == [3, 3, 3]
    assert dict(stages_of[0].carried) == {}
    assert sorted(stages_of[1].carried) == ["before", "before:accumulator", SUMS_BEFORE]
    # After the second, which ended higher, the point is still that of the first; and a batch method has no rule.
    assert sorted(stages_of[2].carried) == ["before"] and stages_of[2].carried["before"].tolist() == [1, 1]
    for number, facts in enumerate(stages_of):
        begun = Begun.from_config(facts.description["begun"], facts.carried.__getitem__)
        assert begun.n_run == number
        assert (begun.outcome is None) == (number == 0)
    again = Begun.from_config(stages_of[1].description["begun"], stages_of[1].carried.__getitem__)
    assert again.outcome is not None and again.outcome.loss == 0.5
    assert again.outcome.rule_state["accumulator"] is SUMS


def test_an_error_in_a_method_that_was_resumed_carries_the_point_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the methods that were through when the run was broken off."""
    play = Play(monkeypatch, RuntimeError("planted"))
    with pytest.raises(RuntimeError) as caught:
        play.run(DOWNPOUR, SANDBLASTER, begun=Begun(1, outcome_of(7.0), 1.0))
    assert caught.value.kept_parameters.tolist() == [7, 7]
