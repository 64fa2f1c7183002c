"""How the rows are cut into leases; pure."""

from __future__ import annotations

import logging
import math

from dask_belief.data.units import UNIT_BYTES, UnitPlan, plan_units
from dask_belief.downpour.config import Downpour

logger = logging.getLogger(__name__)

# A lease is long enough that asking for it is nothing beside it, and short enough that replicas end together.
_LEASE_BATCHES = 50
_LEASES_AN_EPOCH = 32
_EXCHANGES_A_LEASE = 5
_LEASES_A_REPLICA = 4


def plan_leases(method: Downpour, n_rows: int, chunk_rows: int, row_bytes: int, n_parameters: int) -> UnitPlan:
    """Cut the rows into leases: of about 50 mini-batches, and 32 or more an epoch where there are so many chunks.

    A lease is as long as several exchanges take, and ends where one is due, as far as the chunks allow: at its end what
    has accrued is pushed anyhow.
    """
    batch, lease_rows = method.batch_size, method.lease_rows
    if lease_rows is None:
        period = batch * math.lcm(method.n_fetch, method.n_push)
        lease_rows = max(batch, min(_LEASE_BATCHES * batch, -(-n_rows // _LEASES_AN_EPOCH)))
        lease_rows = max(lease_rows, min(chunk_rows, 4 * lease_rows))
        each = n_rows // (_LEASES_A_REPLICA * (method.n_replicas or 1))
        lease_rows = max(lease_rows, min(_EXCHANGES_A_LEASE * period, each))
        fitting = math.lcm(period, chunk_rows)
        lease_rows = -(-lease_rows // fitting) * fitting if fitting <= lease_rows else lease_rows
        # A replica holds the lease that it trains on and the next.
        most_rows = max(batch, UNIT_BYTES // row_bytes)
        lease_rows = lease_rows if lease_rows <= most_rows else (most_rows // fitting * fitting or most_rows)
    plan = plan_units(n_rows, chunk_rows, row_bytes, n_parameters, unit_rows=min(lease_rows, n_rows))
    if plan.largest_rows < min(batch, n_rows):
        logger.warning(
            "mini-batches of %d rows, not %d: they do not cross the border of a lease, which is made of whole chunks "
            "of %d rows. Write the data in larger chunks, or set lease_rows.",
            *(plan.largest_rows, batch, chunk_rows),
        )
    return plan
