"""The driver of a Sandblaster run: what its actors are, and how it goes on when they are lost.

Shards that are lost are made anew, and all shards are filled with the newest saved state: the run goes back to the end
of an iteration, and computes the ones after it again, with the same bits.
"""

from __future__ import annotations

import copy
import logging
import math

from dask_belief.cluster.actors import ActorAddress
from dask_belief.cluster.asking import threads_of_workers
from dask_belief.cluster.limits import limits
from dask_belief.data.units import UnitPlan, plan_units
from dask_belief.errors import ActorLostError, OldDirectoryError
from dask_belief.memory_needs import Needs, task_parameters
from dask_belief.model_parallel.team import n_pieces_of, pieces_of, ranges_of
from dask_belief.objective import penalised_of
from dask_belief.optim.backtracking import ProjectedSearch
from dask_belief.optim.direction import DirectionRule
from dask_belief.optim.line_search import StrongWolfe
from dask_belief.optim.stopping import Criteria, Stop, StopReason
from dask_belief.parameter_server.carrying import Errand
from dask_belief.parameter_server.client import ParameterServer
from dask_belief.parameter_server.deployment import Deployment, DeploymentSpec
from dask_belief.parameter_server.directory import Directory
from dask_belief.parameter_server.messages import Drop, FirstHessian
from dask_belief.parameter_server.shards import ShardsSpec
from dask_belief.recovery import Loss, Source, source_of
from dask_belief.run import Outcome, Run, Vector
from dask_belief.sandblaster.bookmark import Bookmark
from dask_belief.sandblaster.config import Sandblaster
from dask_belief.sandblaster.coordinator import Coordinator
from dask_belief.sandblaster.full_batch import FullBatch, Penalty
from dask_belief.sandblaster.memory_plan import largest_level, sandblaster_needs
from dask_belief.sandblaster.minimiser import Minimiser
from dask_belief.sandblaster.progress import Progress
from dask_belief.sandblaster.replica import ReplicaSpec, sandblaster_piece, sandblaster_replica
from dask_belief.sandblaster.steps import DIAGONAL, POINT, OrthantWise, Smooth, Steps

logger = logging.getLogger(__name__)

# The relative rounding of a sum of losses. Below it a search trusts slopes instead of values; with 1e-8 for float32 it
# gave up on a softmax regression at a gradient of 1e-6, with 1e-7 it went on to 2e-9.
_NOISE = {"float32": 1e-7, "float64": 1e-15}

_SUMS = "adagrad_sums"


class SandblasterDriver:
    """Runs a batch method to its end, whatever is lost on the way.

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
        self._has_begun = False
        self._plan = self._resumed_plan() or plan_units(
            facts.dataset.n_rows,
            facts.dataset.chunk_rows,
            facts.dataset.row_bytes(facts.dtype),
            facts.objective.n_parameters,
            unit_rows=method.unit_rows,
        )
        # Where the run is to go on; None to begin at `run.best`.
        self._bookmark: Bookmark | None = None

    def _resumed_plan(self) -> UnitPlan | None:
        """The units of the run that this one goes on from: others would give other bits."""
        resumed = self._run.facts.resumed
        return None if resumed is None else UnitPlan.from_config(resumed.saved.state["plan"])

    def drive(self) -> Outcome:
        """Train to the end.

        Raises
        ------
        NonFiniteError
            When the loss or gradient at the initial parameters is NaN or infinite.
        """
        planned = (float(self._method.max_iter), "iterations")
        with self._run.on_cluster(self._deployment_spec(), planned) as deployment:
            try:
                return self._drive(deployment)
            except KeyboardInterrupt:
                if not self._has_begun:
                    raise
                return self._outcome(self._interrupted(deployment), {})

    def _drive(self, deployment: Deployment) -> Outcome:
        prepare = self._begin
        while True:
            try:
                prepare(deployment)
                return self._train(deployment)
            except (ActorLostError, OldDirectoryError) as error:
                reason = error
                prepare = self._go_back
            deployment.find_losses(reason)

    def kept(self) -> Vector:
        """The best parameters that are on the host."""
        return self._run.best

    def _deployment_spec(self) -> DeploymentSpec:
        facts, method = self._run.facts, self._method
        max_level = largest_level(task_parameters(facts.objective) * facts.initial.itemsize)
        n_parameters = facts.objective.n_parameters
        n_shards = method.n_shards or min(len(threads_of_workers(facts.client)), n_parameters)
        in_pieces = pieces_of(facts.objective, sandblaster_piece)
        ranges = ranges_of(facts.objective, n_shards)
        memory = self._run.plan_memory(self._needs, ranges, None, n_pieces_of(facts.objective))

        def replica_spec(directory: Directory, coordinator: ActorAddress) -> ReplicaSpec:
            return ReplicaSpec(
                facts.objective,
                self._plan,
                directory,
                coordinator,
                facts.backend,
                method.cache_bytes,
                memory.cache_bytes,
                limits(),
            )

        return DeploymentSpec(
            run=facts.name,
            method=method.name,
            shards=ShardsSpec(
                n_parameters=n_parameters,
                dtype=facts.dtype,
                penalised=penalised_of(facts.objective),
                updates=None,
                ranges=ranges,
            ),
            n_replicas=None,
            hub=Coordinator,
            hub_arguments=(len(self._plan), max_level, method.backup_after),
            hub_state=lambda _: None,
            hub_cost="the evaluation under way is begun again",
            replica=sandblaster_replica,
            replica_spec=replica_spec,
            dataset=facts.dataset,
            in_pieces=in_pieces,
        )

    def _needs(self, n_replicas: int) -> Needs:
        facts = self._run.facts
        return sandblaster_needs(
            self._method, facts.objective, facts.dataset, facts.validation, facts.dtype, self._plan, n_replicas
        )

    # Where the run begins, and where it goes on.

    def _begin(self, deployment: Deployment) -> None:
        """Bring the shards to where the run begins: the initial point, or what it is resumed from."""
        if self._run.vault.newest is not None:
            deployment.fill(self._run.vault.fills(deployment, deployment.directory, ()))
            self._run.vault.go_back(deployment)
            self._take_bookmark()
            self._run.keep(deployment, POINT)
            self._progress.keep()
            return
        self._write_point(deployment, self._run.facts.initial)

    def _write_point(self, deployment: Deployment, point: Vector) -> None:
        deployment.run(deployment.server.write(POINT, point))
        if self._method.first_hessian == "adagrad":
            # The diagonal from which L-BFGS begins, where Adagrad's sums were handed over.
            sums = self._run.facts.adagrad_sums
            assert sums is not None
            deployment.run(deployment.server.write(_SUMS, sums))
            deployment.execute(FirstHessian(DIAGONAL, _SUMS), Drop(_SUMS))

    def _go_back(self, deployment: Deployment) -> None:
        """Make lost shards anew, and bring all shards to the end of an iteration that is saved."""
        run, lost, iteration = self._run, deployment.lost_shards(), self._progress.iteration
        run.note_changes(deployment)
        run.vault.give_up()
        run.vault.look(deployment)
        source = Source.KEPT if self._stop is not None else self._source(deployment, lost)

        def carry(server: ParameterServer) -> list[tuple[str, Errand]]:
            return run.vault.fills(deployment, server.directory, lost) if source is Source.SAVED else []

        deployment.replace(lost, carry, run.vault.keeper_workers())
        names = ", ".join(f"shard {index}" for index in lost) or "a shard"
        if source is Source.SAVED:
            run.vault.go_back(deployment)
            self._take_bookmark()
        else:
            self._begin_at_point(source)
            self._write_point(deployment, run.facts.initial if source is Source.BEGINNING else run.best)
        if self._stop is None:
            again = iteration - self._progress.iteration
            said = f"back to iteration {self._progress.iteration} by {source.value}, {again} are computed again"
            since = run.vault.saved_at if source is Source.SAVED else 0.0 if source is Source.BEGINNING else None
            run.note_rebuild(f"{names} was lost.", said, self._progress.iteration, since_seconds=since)

    def _source(self, deployment: Deployment, lost: list[int]) -> Source:
        vault = self._run.vault
        return source_of(
            Loss(
                has_saved=vault.can_fill(lost),
                n_saved=vault.n_saved,
                can_save=vault.is_able and vault.has_place(deployment),
                has_kept=self._progress.kept_iteration > 0,
            )
        )

    def _take_bookmark(self) -> None:
        """Go on from the newest saved state, which the shards hold."""
        saved, progress = self._run.vault.newest, self._progress
        assert saved is not None
        self._bookmark = mark = Bookmark.from_state(saved.state, self._method.direction_rule)
        progress.iteration, progress.evaluations, progress.value = mark.iteration, mark.evaluations, mark.value

    def _begin_at_point(self, source: Source) -> None:
        """Go on from parameters alone: the initial ones, or those that the driver has a copy of."""
        self._bookmark = None
        progress = self._progress
        if source is Source.BEGINNING:
            progress.iteration, progress.evaluations, progress.value = 0, 0, math.nan
        else:
            self._run.was_set_back = self._stop is None or self._run.was_set_back
            progress.go_back()
            # Iterations of the same numbers make other pairs.
            self._run.vault.part_ways()

    # Training.

    def _train(self, deployment: Deployment) -> Outcome:
        run, method, progress, mark = self._run, self._method, self._progress, self._bookmark
        penalty = Penalty(method.l2, method.l1)
        batch = FullBatch(run, deployment, self._plan, penalty, method.max_seconds, has_value=mark is not None)
        criteria = Criteria(method.gtol, method.ftol, method.max_iter, method.max_evaluations, method.max_seconds)
        rule = method.direction_rule() if mark is None else copy.deepcopy(mark.rule)
        minimiser = Minimiser(
            run, deployment, batch, rule, self._steps(rule), criteria, progress, {"plan": self._plan.to_config()}
        )
        self._has_begun = True
        if self._stop is None:
            # Otherwise shards were lost after the end, and only validation is left.
            deployment.start_replicas()
            self._stop = self._minimise(minimiser, deployment, mark)
        is_validated = self._stop.reason is not StopReason.INTERRUPTED
        return self._outcome(self._stop, minimiser.validate() if is_validated else {})

    def _outcome(self, stop: Stop, validation: dict[str, float]) -> Outcome:
        run, progress = self._run, self._progress
        return Outcome(
            parameters=run.best,
            loss=progress.value,
            stop=stop,
            passes=float(progress.evaluations),
            repeatable=run.is_repeatable and self._method.max_seconds is None,
            validation=validation,
        )

    def _interrupted(self, deployment: Deployment) -> Stop:
        """Go back to the last point that the driver has a copy of, and end at once."""
        logger.warning("interrupted: the last point that was kept is the result")
        deployment.is_urgent = True
        self._progress.go_back()
        return Stop(StopReason.INTERRUPTED, {"iteration": float(self._progress.iteration)})

    def _steps(self, rule: DirectionRule) -> Steps:
        """How searches go: within an orthant where there is an L1 penalty, else along a line."""
        method, noise = self._method, _NOISE[self._run.facts.dtype]
        if method.l1:
            options = ProjectedSearch(method.c1, max_evaluations=method.max_search_evaluations, relative_noise=noise)
            return OrthantWise(options, method.l1)
        c2 = rule.c2 if method.c2 is None else method.c2
        return Smooth(StrongWolfe(method.c1, c2, method.max_search_evaluations, relative_noise=noise))

    def _minimise(self, minimiser: Minimiser, deployment: Deployment, mark: Bookmark | None) -> Stop:
        """Train to the end, and copy the last point to the driver; an interrupt goes back to the last point copied."""
        try:
            stop = minimiser.minimise(mark)
            self._run.keep(deployment, POINT)
            self._progress.keep()
        except KeyboardInterrupt:
            stop = self._interrupted(deployment)
        return stop
