"""The paper's Algorithm 1.1 in a few lines, in one process: what a run with one replica must give."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

import dask_belief as db
from dask_belief.data.batches import MiniBatches
from dask_belief.data.dataset import Dataset
from dask_belief.downpour.lease_plan import plan_leases
from dask_belief.seeds import stream


def leases(network: db.Network, dataset: Dataset, method: db.Downpour, seed: int) -> Iterator[MiniBatches]:
    """The mini-batches of a run with one replica, lease by lease."""
    rows_of_data = dataset.n_rows, dataset.chunk_rows, dataset.row_bytes("float32")
    plan = plan_leases(method, *rows_of_data, network.n_parameters)
    for epoch in range(method.epochs):
        for lease in stream(seed, "leases", epoch).permutation(len(plan)):
            unit = plan[int(lease)]
            inputs, targets = dataset.read(unit.start, unit.stop)
            yield MiniBatches(inputs, targets, method.batch_size, stream(seed, "rows", epoch, int(lease)))


def rounded(values: np.ndarray) -> np.ndarray:
    """Round finite numbers to the eight binary digits of bfloat16, ties to even."""
    _, exponents = np.frexp(values.astype(np.float64))
    unit = np.ldexp(1.0, np.maximum(exponents, -125) - 8)
    return (np.rint(values / unit) * unit).astype(values.dtype)


def by_the_paper(
    network: db.Network, dataset: Dataset, method: db.Downpour, seed: int, dtype: str, is_sparse: bool = False
) -> np.ndarray:
    """Algorithm 1.1 on whole vectors: one replica, one shard, with penalty, decay and clipping as they are defined.

    Sparse exchanges differ in that no fetch outlives its lease: the first of each lease is waited for.
    """
    rule, mask = method.rule, network.penalised.astype(dtype)
    server = network.initial_parameters(seed).astype(dtype)
    own, n_updates, n_steps, n_local = server.copy(), 0, 0, 0
    server_state, own_state = rule.init(server), rule.init(own)
    accrued, is_push_due = np.zeros_like(server), False
    under_way: list[tuple[int, np.ndarray]] = []
    last_fetch, is_narrow = None, method.wire_dtype is not None
    for batches in leases(network, dataset, method, seed):
        for step, inputs, targets in itertools.chain(batches, [(len(batches), None, None)]):
            if is_push_due:
                server *= 1 - rule.rate(n_updates) * method.weight_decay * mask
                sent = rounded(accrued) if is_narrow else accrued
                rule.apply(server, sent, server_state, n_updates)
                n_updates += 1
                accrued, is_push_due = accrued - sent, False
            is_border = step == 0 if is_sparse else inputs is None
            if (
                (step % method.n_fetch == 0 or is_border)
                and last_fetch != n_steps
                and not (is_sparse and inputs is None)
            ):
                is_waited_for = last_fetch is None or (is_sparse and is_border)
                under_way = [] if is_waited_for else under_way
                under_way.append(
                    (n_steps + (0 if is_waited_for else method.lag), rounded(server) if is_narrow else server.copy())
                )
                last_fetch = n_steps
            if inputs is None:
                break
            while under_way and under_way[0][0] <= n_steps:
                own = under_way.pop(0)[1]
            _, gradient = network.loss_and_gradient(own, inputs.astype(dtype), targets)
            gradient = gradient * np.dtype(dtype).type(1 / len(inputs)) + method.l2 * mask * own
            norm = np.linalg.norm(gradient)
            if method.clip_norm is not None and norm > method.clip_norm:
                gradient *= method.clip_norm / norm
            accrued += gradient
            if method.n_fetch > 1 or method.lag > 1:
                own *= 1 - rule.rate(n_local) * method.weight_decay * mask
                rule.apply(own, gradient, own_state, n_local)
                n_local += 1
            n_steps += 1
            is_push_due = (step + 1) % method.n_push == 0 or step == len(batches) - 1
    return server
