"""The stand-in gives what CuPy gives, or something stricter; on a device, what CuPy gives is what was recorded."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

from tests.strict_fake import names, probes
from tests.strict_fake.probes import Probe

PROBES = probes.load()
on_real_cupy = pytest.mark.skipif(
    os.environ.get("EMULATED_GPU") != "1", reason="needs real CuPy: scripts/emulated_gpu runs it on an emulated device"
)
each_probe = pytest.mark.parametrize("probe", PROBES, ids=[probe.expression for probe in PROBES])

# What a refusal is called: everything else than one of these is a result.
REFUSALS = ("Error", "Exception")


@each_probe
def test_the_stand_in_gives_what_cupy_gives(probe: Probe, cupy: ModuleType, cupyx: ModuleType) -> None:
    """Kind, dtype and shape of a result, or the error."""
    assert probes.outcome(probe.expression, probes.surroundings(cupy, cupyx)) == probe.of_stand_in


@on_real_cupy
def test_the_record_is_what_cupy_gives() -> None:
    """What is kept was not made up, and holds for the CuPy that is installed."""
    surroundings = probes.surroundings(pytest.importorskip("cupy"), pytest.importorskip("cupyx"))
    found = {probe.expression: probes.outcome(probe.expression, surroundings) for probe in PROBES}
    assert found == {probe.expression: probe.outcome for probe in PROBES}


@on_real_cupy
def test_the_names_are_those_of_cupy() -> None:
    """Names and parameters are those of the CuPy that is installed."""
    assert names.lines_of_installed_cupy() == names.FILE.read_text(encoding="utf-8").splitlines()


def test_the_probes_are_many_and_what_differs_is_a_refusal_with_its_reason() -> None:
    """The stand-in is never more lenient than CuPy."""
    assert len(PROBES) >= 110
    assert len({probe.expression for probe in PROBES}) == len(PROBES)
    for probe in PROBES:
        assert (probe.stricter is None) == (probe.why is None), probe
        if probe.stricter is not None:
            assert probe.stricter.endswith(REFUSALS) and not probe.outcome.endswith(REFUSALS), probe


def test_probes_tell_results_apart(cupy: ModuleType, cupyx: ModuleType) -> None:
    """Host from device, dtype from dtype, shape from shape, and error from error."""
    found = probes.surroundings(cupy, cupyx)
    expressions = ["x", "host", "x.astype('f8')", "m", "x[0]", "float(x[0])", "x + host", "x[5]", "None", "[x]"]
    assert len({probes.outcome(expression, found) for expression in expressions}) == len(expressions)
