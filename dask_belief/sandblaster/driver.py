"""The driver of a Sandblaster run: what a generation is made of, and what is carried from one to the next.

When a generation of actors is lost, the next begins at the last point that was copied to the driver, with an empty
history.
"""

from __future__ import annotations

import logging

from dask_belief.cluster.actors import ActorAddress
from dask_belief.data.units import UnitPlan, plan_units
from dask_belief.objective import penalised_of
from dask_belief.optim.backtracking import ProjectedSearch
from dask_belief.optim.direction import DirectionRule
from dask_belief.optim.lbfgs import CurvatureMemory
from dask_belief.optim.line_search import StrongWolfe
from dask_belief.optim.stopping import Criteria, Stop, StopReason
from dask_belief.parameter_server.client import Directory
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec
from dask_belief.parameter_server.messages import Drop, FirstHessian
from dask_belief.run import Outcome, Run, Vector
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.sandblaster.coordinator import Coordinator
from dask_belief.sandblaster.full_batch import FullBatch, Penalty
from dask_belief.sandblaster.memory_plan import largest_level, plan_memory
from dask_belief.sandblaster.minimiser import Minimiser
from dask_belief.sandblaster.progress import Progress
from dask_belief.sandblaster.replica import ReplicaSpec, sandblaster_replica
from dask_belief.sandblaster.steps import DIAGONAL, POINT, OrthantWise, Smooth, Steps

logger = logging.getLogger(__name__)

# The relative rounding of a sum of losses. Below it a search trusts slopes instead of values; with 1e-8 for float32 it
# gave up on a softmax regression at a gradient of 1e-6, with 1e-7 it went on to 2e-9.
_NOISE = {"float32": 1e-7, "float64": 1e-15}

_SUMS = "adagrad_sums"

# Points, gradients, direction, and with an L1 penalty pseudo-gradients and the move: all but the history.
_N_VECTORS = 8


class SandblasterDriver:
    """Runs a batch method over the generations of a run.

    Parameters
    ----------
    run
        The run.
    method
        Its options.
    """

    def __init__(self, run: Run, method: Sandblaster) -> None:
        facts = run.facts
        self._run = run
        self._method = method
        self._progress = Progress()
        self._stop: Stop | None = None
        self._plan: UnitPlan = plan_units(
            facts.dataset.n_rows,
            facts.dataset.chunk_rows,
            facts.dataset.row_bytes(facts.dtype),
            facts.objective.n_parameters,
            unit_rows=method.unit_rows,
        )

    def drive(self) -> Outcome:
        """Train to the end.

        Raises
        ------
        NonFiniteError
            When the loss or gradient at the initial parameters is NaN or infinite.
        """
        planned = (float(self._method.max_iter), "iterations")
        return self._run.through_generations(self._deployment_spec(), planned, self._generation, self._lost)

    def kept(self) -> Vector:
        """The best parameters that are on the host."""
        return self._run.best

    def _lost(self) -> str:
        self._progress.go_back()
        return f"back to iteration {self._progress.iteration}, with an empty history"

    def _deployment_spec(self) -> DeploymentSpec:
        facts, method = self._run.facts, self._method
        max_level = largest_level(facts.initial.nbytes)

        def replica_spec(directory: Directory, coordinator: ActorAddress) -> ReplicaSpec:
            return ReplicaSpec(facts.objective, self._plan, directory, coordinator, facts.backend, method.cache_bytes)

        return DeploymentSpec(
            run=facts.name,
            method=method.name,
            n_parameters=facts.objective.n_parameters,
            dtype=facts.dtype,
            penalised=penalised_of(facts.objective),
            n_shards=method.n_shards,
            n_replicas=None,
            updates=None,
            hub=Coordinator,
            hub_arguments=(len(self._plan), max_level, method.backup_after),
            replica=sandblaster_replica,
            replica_spec=replica_spec,
            dataset=facts.dataset,
        )

    def _generation(self, deployment: Deployment) -> Outcome:
        run, method, progress = self._run, self._method, self._progress
        deployment.run(deployment.server.write(POINT, run.best))
        self._write_first_hessian(deployment)
        penalty = Penalty(method.l2, method.l1)
        batch = FullBatch(run, deployment, self._plan, penalty, progress.evaluations, method.max_seconds)
        criteria = Criteria(method.gtol, method.ftol, method.max_iter, method.max_evaluations, method.max_seconds)
        rule = method.direction_rule()
        minimiser = Minimiser(run, deployment, batch, rule, self._steps(rule), criteria, progress)
        if self._stop is None:
            # Otherwise the former generation was lost after the end, and only validation is left.
            deployment.start_replicas()
            self._tell_memory(rule, deployment.n_replicas)
            self._stop = self._minimise(minimiser, deployment)
        is_validated = self._stop.reason is not StopReason.INTERRUPTED
        return Outcome(
            parameters=run.best,
            loss=progress.value,
            stop=self._stop,
            passes=float(progress.evaluations),
            repeatable=run.is_repeatable and method.max_seconds is None,
            validation=minimiser.validate() if is_validated else {},
        )

    def _steps(self, rule: DirectionRule) -> Steps:
        """How searches go: within an orthant where there is an L1 penalty, else along a line."""
        method, noise = self._method, _NOISE[self._run.facts.dtype]
        if method.l1:
            options = ProjectedSearch(method.c1, max_evaluations=method.max_search_evaluations, relative_noise=noise)
            return OrthantWise(options, method.l1)
        c2 = rule.c2 if method.c2 is None else method.c2
        return Smooth(StrongWolfe(method.c1, c2, method.max_search_evaluations, relative_noise=noise))

    def _tell_memory(self, rule: DirectionRule, n_replicas: int) -> None:
        n_pairs = rule.history_size + 1 if isinstance(rule, CurvatureMemory) else 1
        n_vectors = _N_VECTORS + 2 * n_pairs
        plan = plan_memory(self._run.facts.initial.nbytes, n_vectors, len(self._plan), n_replicas)
        logger.info(
            "memory for vectors: %.3g MiB a replica; on all shards %.3g MiB, and at most %.3g MiB of sums under way",
            *(n_bytes / 2**20 for n_bytes in (plan.replica_bytes, plan.vectors_bytes, plan.waiting_bytes)),
        )

    def _write_first_hessian(self, deployment: Deployment) -> None:
        """Make the diagonal from which L-BFGS begins, where Adagrad's sums were handed over."""
        if self._method.first_hessian == "adagrad":
            sums = self._run.facts.adagrad_sums
            assert sums is not None
            deployment.run(deployment.server.write(_SUMS, sums))
            deployment.execute(FirstHessian(DIAGONAL, _SUMS), Drop(_SUMS))

    def _minimise(self, minimiser: Minimiser, deployment: Deployment) -> Stop:
        """Train to the end, and copy the last point to the driver; an interrupt goes back to the last point copied."""
        try:
            stop = minimiser.minimise()
            self._run.keep(deployment, POINT)
            self._progress.keep()
        except KeyboardInterrupt:
            logger.warning("interrupted: the last point that was kept is the result")
            self._progress.go_back()
            stop = Stop(StopReason.INTERRUPTED, {"iteration": float(self._progress.iteration)})
        return stop
