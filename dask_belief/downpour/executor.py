"""The plain executors of Downpour: one flat vector, what has accrued, the local step, and the courier to the shards."""

from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dask_belief.backend import Backend
from dask_belief.cluster.actors import Caller
from dask_belief.cluster.limits import limits
from dask_belief.downpour.config import Downpour
from dask_belief.downpour.courier import Arrived, Carry, Courier
from dask_belief.objective import Objective, penalised_of
from dask_belief.parameter_server.directory import Directory, Renew
from dask_belief.parameter_server.exchange import Exchange, Exchanged, Sent, Traffic
from dask_belief.parameter_server.executor import Ahead, PlainExecutor, bytes_of
from dask_belief.parameter_server.messages import LeaseKey, PushKey, StepKey
from dask_belief.parameter_server.updates import UpdateSpec

Vector = NDArray[np.floating]


@dataclass(frozen=True)
class StepSpec:
    """What every executor of Downpour is made from.

    Attributes
    ----------
    replica
        The name of the replica.
    objective, directory, caller, backend, renew
        See `PlainExecutor`.
    method
        The options of the run: rule, penalty, and how often is fetched.
    """

    replica: str
    objective: Objective
    directory: Directory
    caller: Caller
    backend: Backend
    method: Downpour
    renew: Renew | None = None


def exchange_seconds(method: Downpour) -> float:
    """How long an exchange may take: it may wait for other replicas, and they may stall as long as the run may."""
    return limits().two_calls_seconds + method.stalled_after_seconds


class PlainStepExecutor(PlainExecutor):
    """Steps of Algorithm 1.1 with one flat vector.

    Parameters
    ----------
    spec
        What it is made from.
    carry
        Makes an exchange; None to make it with the shards straight away.
    """

    is_sparse = False

    def __init__(self, spec: StepSpec, carry: Carry | None = None) -> None:
        super().__init__(spec.objective, spec.directory, spec.caller, spec.backend, spec.renew)
        self._replica = spec.replica
        self._method = spec.method
        self._rule = spec.method.rule
        limit_seconds = exchange_seconds(spec.method)
        # What travels as bfloat16 is held as uint16.
        self._is_narrow = spec.method.wire_dtype is not None
        self._courier = Courier(
            spec.directory,
            carry or self.server.exchange,
            spec.caller,
            spec.backend,
            limit_seconds,
            "uint16" if self._is_narrow else None,
        )
        if self._lends:
            self._used = self._courier.buffer()
            self.parameters = self._used
        else:
            self.parameters = self._new_vector()
        # On a device: what is pushed as bfloat16, before it goes to the host.
        self._bits: Sent | None = None
        self._versions: tuple[int, ...] = (0,) * self.server.n_pieces
        # What has accrued since the last push: None right after it, or what the rounding of the push left out.
        self._accrued: Vector | None = None
        self._spare: list[Vector] = []
        self._penalty = self._penalty_weights(penalised_of(spec.objective), spec.method)
        self._local_state: dict[str, Vector] = {}
        self._n_local = 0
        if self._makes_local_steps:
            self._local_state = self._rule.init(self.parameters)

    @property
    def _makes_local_steps(self) -> bool:
        # A local step that the next fetch overwrites before it is used is not worth making.
        method = self._method
        return method.n_fetch > 1 or method.lag > 1

    @property
    def traffic(self) -> Traffic:
        """What was exchanged so far, and how long was waited for it."""
        return self._courier.traffic

    def holdings(self) -> Mapping[str, int]:
        """As of every executor; beside, what has accrued, and what the local steps need."""
        accrued = bytes_of(self._accrued, self._bits, *self._spare)
        return {**super().holdings(), "accrued": accrued, "rule": bytes_of(self._penalty, *self._local_state.values())}

    # Exchanges.

    def exchange(
        self, at: StepKey, push: PushKey | None, effective_step: float | None, ahead: Ahead
    ) -> concurrent.futures.Future[Exchanged] | None:
        """Begin to push what has accrued, to fetch parameters that take effect at a step, or both in one message."""
        if push is None and effective_step is None:
            return None
        if push is None:
            return self._courier.send(Exchange(self._replica, at), None, effective_step)
        vector = self._outgoing()
        ask = Exchange(self._replica, at, push, vector, self._versions)
        return self._courier.send(ask, vector, effective_step)

    def _outgoing(self) -> Sent:
        """What has accrued, in a buffer that is the courier's from now on."""
        assert self._accrued is not None
        if self._is_narrow:
            return self._taken(self._accrued)
        accrued, self._accrued = self._accrued, None
        if self._lends:
            # The very vector goes out: nothing is copied.
            return accrued
        outgoing = self._backend.to_host(accrued, out=self._courier.buffer())
        self._backend.sync()
        self._spare.append(accrued)
        return outgoing

    def _taken(self, vector: Vector) -> Sent:
        """Take as bfloat16 what a vector holds, into a buffer of the courier's; the rest stays in it."""
        outgoing = self._courier.buffer()
        if self._on_host:
            self._backend.take_bfloat16_(vector, outgoing)
            return outgoing
        if self._bits is None:
            self._bits = self._backend.empty(vector.shape, np.uint16)
        # Half the bytes cross from the device.
        self._backend.take_bfloat16_(vector, self._bits)
        self._backend.to_host(self._bits, out=outgoing)
        self._backend.sync()
        return outgoing

    @property
    def _on_host(self) -> bool:
        return self._backend.name == "numpy"

    @property
    def _lends(self) -> bool:
        """Whether the courier's buffers are computed in: on the host, where what travels is of the run's dtype."""
        return self._on_host and not self._is_narrow

    def _new_gradient(self) -> Vector:
        if self._lends:
            return self._courier.buffer()
        return self._spare.pop() if self._spare else self._new_vector()

    def take_effect(self, step: float) -> None:
        """Use the fetched parameters that take effect at `step` or before, waited for if need be."""
        for arrived in self._courier.arrived(step):
            self._use(arrived)

    def _use(self, arrived: Arrived) -> None:
        """Compute with what was fetched from now on."""
        self._versions = arrived.versions
        if self._lends:
            self._courier.give_back(self._used)
            self.parameters = self._used = arrived.buffer
        else:
            self._bring(arrived.buffer, self.parameters)

    def _bring(self, buffer: Sent, into: Vector) -> None:
        """Copy what arrived to where it is computed with, and give its memory back."""
        brought = self._backend.asarray(buffer)
        if self._is_narrow:
            self._backend.from_bfloat16_(brought, into)
        else:
            self._backend.xp.copyto(into, brought)
        self._backend.sync()
        self._courier.give_back(buffer)

    def applied(self, lease: LeaseKey) -> int:
        """The last mini-batch of a lease that every shard has applied; -1 for none."""
        return self._caller.run(self.server.applied(lease))

    # Steps.

    def accrue(self, n_rows: int) -> None:
        """Add the mean gradient of the last mini-batch, penalty included, to what has accrued; make the local step."""
        gradient = self.take_gradient()
        self._backend.scale_(1.0 / n_rows, gradient)
        self._add_penalty(gradient)
        self._clip(gradient)
        if self._makes_local_steps:
            self._local_step(self.parameters, gradient, self._local_state, self._penalty)
        if self._accrued is None:
            self._accrued, self.gradient = gradient, self._new_gradient()
        else:
            self._backend.add_(gradient, self._accrued)

    def accrued_is_finite(self) -> bool:
        """Whether what has accrued is finite, and not so huge that its square is not."""
        return self._accrued is None or math.isfinite(self._squares(self._accrued))

    def _squares(self, vector: Vector) -> float:
        return self._backend.item(self._backend.xp.dot(vector, vector))

    def _add_penalty(self, gradient: Vector) -> None:
        if self._method.l2 and self._penalty is not None:
            scratch = self._scratch()
            self._backend.xp.multiply(self.parameters, self._penalty, out=scratch)
            self._backend.axpy_(self._method.l2, scratch, gradient)

    def _clip(self, gradient: Vector) -> None:
        """Scale a gradient down to the norm that is allowed."""
        limit = self._method.clip_norm
        if limit is None:
            return
        norm = math.sqrt(self._squares(gradient))
        # One that is not finite is left for `accrued_is_finite` to find.
        if limit < norm < math.inf:
            self._backend.scale_(limit / norm, gradient)

    def _local_step(
        self, values: Vector, gradient: Vector, state: dict[str, Vector], is_penalised: Vector | None
    ) -> None:
        """The local step of Algorithm 1.1, by the run's rule with state of the replica's own.

        The rate is that of the shards' next update: they have had more updates than this replica has made steps.
        """
        rule, local, backend = self._rule, self._n_local, self._backend
        clock = max(self._versions)
        own = rule.rate(local)
        factor = rule.rate(max(clock, local)) / own if own > 0.0 else 1.0
        share = own * factor * self._method.weight_decay
        if share and is_penalised is not None:
            kept = self._scratch()[: len(values)]
            backend.xp.multiply(is_penalised, -share, out=kept)
            kept += 1
            values *= kept
        rule.apply(values, gradient, state, local, rate_factor=factor, backend=backend)
        self._n_local += 1

    def _scratch(self) -> Vector:
        if self._more is None:
            self._more = self._new_vector()
        return self._more

    def _penalty_weights(self, mask: NDArray[np.bool_] | None, method: Downpour) -> Vector | None:
        """One where a penalty and the decay of weights fall, else zero; None where there are neither."""
        if method.l2 == 0.0 and method.weight_decay == 0.0:
            return None
        weights = np.ones(self.parameters.shape, self.server.directory.dtype)
        if mask is not None:
            weights *= mask
        penalty: Vector = self._backend.asarray(weights)
        return penalty


class ElasticStepExecutor(PlainStepExecutor):
    """Steps of a replica's own, tied to the shards' parameters by a spring; see `ElasticAveraging`."""

    def __init__(self, spec: StepSpec, carry: Carry | None = None) -> None:
        super().__init__(spec, carry)
        self._is_begun = False

    @property
    def _makes_local_steps(self) -> bool:
        return True

    def exchange(
        self, at: StepKey, push: PushKey | None, effective_step: float | None, ahead: Ahead
    ) -> concurrent.futures.Future[Exchanged] | None:
        """Begin to send the replica's parameters, and to bring what theirs were moved by; at first, to fetch them."""
        if push is None:
            return None if self._is_begun else super().exchange(at, push, effective_step, ahead)
        own = self._own()
        ask = Exchange(self._replica, at, push, own, self._versions, is_elastic=True)
        return self._courier.send(ask, own, effective_step)

    def _own(self) -> Sent:
        """The replica's parameters, in a buffer that is the courier's from now on."""
        if not self._is_narrow:
            own = self._backend.to_host(self.parameters, out=self._courier.buffer())
            self._backend.sync()
            return own
        # What rounding leaves out is sent with the next: on the average over exchanges they are the replica's own.
        if self._accrued is None:
            self._accrued = self._backend.zeros(self.parameters.shape, self.parameters.dtype)
        self._backend.add_(self.parameters, self._accrued)
        return self._taken(self._accrued)

    def accrue(self, n_rows: int) -> None:
        """Step by the mean gradient of the last mini-batch, penalty included; nothing accrues."""
        gradient = self.take_gradient()
        self._backend.scale_(1.0 / n_rows, gradient)
        self._add_penalty(gradient)
        self._clip(gradient)
        self._local_step(self.parameters, gradient, self._local_state, self._penalty)

    def accrued_is_finite(self) -> bool:
        """Whether the replica's parameters are finite, and not so huge that their square is not."""
        return math.isfinite(self._squares(self.parameters))

    def _use(self, arrived: Arrived) -> None:
        if not self._is_begun:
            self._is_begun = True
            super()._use(arrived)
            return
        self._versions = arrived.versions
        moved = self._backend.asarray(arrived.buffer)
        if self._is_narrow:
            bits, moved = moved, self._scratch()
            self._backend.from_bfloat16_(bits, moved)
        self._backend.axpy_(-1.0, moved, self.parameters)
        self._backend.sync()
        self._courier.give_back(arrived.buffer)


def update_spec(method: Downpour, is_recorded: bool) -> UpdateSpec:
    """How the shards of a run apply pushes."""
    return UpdateSpec(
        method.rule, method.n_replicas, method.weight_decay, method.staleness, is_recorded, method.wire_dtype
    )
