"""Who can reach a run: by default nobody from outside the machine; with TLS nobody without the certificate."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
from distributed.security import Security

import dask_belief as db
from dask_belief.monitoring.events import Event, RunStarted
from tests.end_to_end.conftest import blobs

LOOPBACK = ("127.", "::1")

METHODS = [
    db.Sandblaster(max_iter=6, l2=1e-3),
    # One replica: what it gives does not depend on time.
    db.Downpour(n_replicas=1, rule=db.SGD(0.05), epochs=2),
]


def listening(process: psutil.Process) -> set[str]:
    """The addresses at which a process and all that it started take connections over TCP."""
    family = [process, *process.children(recursive=True)]
    return {
        f"{connection.laddr.ip}:{connection.laddr.port}"
        for each in family
        for connection in each.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def is_beyond_loopback(address: str) -> bool:
    return not address.startswith(LOOPBACK)


def train(network: db.Network, method, client: Client | None, callbacks=()) -> db.TrainingResult:
    return db.train(network, blobs(600, seed=0), method, client=client, progress=False, callbacks=callbacks)


@pytest.mark.parametrize("method", METHODS, ids=type)
def test_default_cluster_listens_on_loopback_only(network: db.Network, method) -> None:
    """Scheduler, nannies, workers and dashboards of the cluster that `train` makes."""
    before = listening(psutil.Process())
    found: set[str] = set()

    def look(event: Event) -> None:
        if isinstance(event, RunStarted):
            found.update(listening(psutil.Process()) - before)

    train(network, method, None, [look])
    # A scheduler, its dashboard, and for each core a nanny, a worker and the worker's dashboard.
    assert len(found) >= 2 + 3 * min(2, CPU_COUNT)
    assert {address for address in found if is_beyond_loopback(address)} == set()
    assert listening(psutil.Process()) <= before


def test_open_port_would_be_seen() -> None:
    """A cluster that is made to listen everywhere is found out by the same look."""
    before = listening(psutil.Process())
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, host="tcp://0.0.0.0", dashboard_address="127.0.0.1:0"
    ):
        found = listening(psutil.Process()) - before
    assert any(is_beyond_loopback(address) for address in found)


@pytest.fixture(scope="module")
def secured() -> Iterator[Client]:
    """Two worker processes and a client that speak TLS with certificates made for this test."""
    pytest.importorskip("cryptography", reason="makes the certificates")
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            protocol="tls://",
            security=Security.temporary(),
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize("method", METHODS, ids=type)
def test_tls_changes_no_bit(secured: Client, two_workers: Client, network: db.Network, method) -> None:
    """Both methods run over TLS, also from worker to worker, and give what they give without."""
    assert all(address.startswith("tls://") for address in secured.nthreads())
    result, plain = train(network, method, secured), train(network, method, two_workers)
    np.testing.assert_array_equal(result.parameters, plain.parameters)
    assert result.loss == plain.loss


@pytest.mark.parametrize("method", METHODS, ids=type)
def test_detached_run_is_found_again_with_the_certificate(
    secured: Client, network: db.Network, tmp_path: Path, method
) -> None:
    """Its driver speaks TLS as its worker does; another client needs no more than the certificate."""
    rows = tmp_path / "rows.zarr"
    db.write_dataset(rows, *blobs(600, seed=0), chunk_rows=100)
    here = db.train(network, rows, method, client=secured, progress=False)
    db.train(network, rows, method, client=secured, detach=True, name="nightly", checkpoint=tmp_path / "run")
    with Client(secured.scheduler.address, security=secured.security, set_as_default=False) as other:
        run = db.attach("nightly", other)
        result = run.result(timeout_seconds=60.0)
        assert any(event["kind"] == "RunStarted" for event in run.events())
    np.testing.assert_array_equal(result.parameters, here.parameters)
    assert result.loss == here.loss
    assert all(address.startswith("tls://") for address in secured.nthreads())
    assert secured.list_datasets() == ()


# Prints what refused it. It ends at once: a client that was never let in takes seconds to close.
OUTSIDER = """
import os, sys
from distributed import Client
from distributed.security import Security

address, security = sys.argv[1], Security.temporary() if sys.argv[2] == "own" else None
try:
    Client(address, security=security, set_as_default=False, timeout=5)
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(0)
os._exit(1)
"""


@pytest.mark.parametrize(
    ("protocol", "certificates", "refusal"),
    [("tcp", "none", "CommClosedError"), ("tls", "none", "ssl_context"), ("tls", "own", "Error")],
)
def test_client_without_the_certificate_is_refused(
    secured: Client, protocol: str, certificates: str, refusal: str
) -> None:
    """One that does not speak TLS, one that has no certificate, and one that has a certificate of its own making."""
    address = f"{protocol}://{secured.scheduler.address.partition('://')[2]}"
    command = [sys.executable, "-c", OUTSIDER, address, certificates]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, "it was let in"
    assert refusal in done.stdout
    assert len(secured.nthreads()) == 2


def test_every_server_asks_for_the_certificate(secured: Client) -> None:
    """Whoever trusts scheduler and workers, but cannot show a certificate, is told no more than that."""
    security = secured.security
    for address in (secured.scheduler.address, *secured.nthreads()):
        host, port = address.partition("://")[2].rsplit(":", 1)
        context = ssl.create_default_context(cadata=security.tls_ca_file)
        context.check_hostname = False
        with (
            socket.create_connection((host, int(port)), timeout=30) as connection,
            pytest.raises((ssl.SSLError, ConnectionError), match=r"certificate required|reset"),
            context.wrap_socket(connection) as speaking,
        ):
            # With TLS 1.3 the refusal comes after the client's half of the handshake.
            speaking.recv(1)
