"""A pytest plugin that makes CuPy usable everywhere: ``python -m pytest -p tests.strict_fake.plugin tests/models``.

Put in place before the first test module is imported, so that all tests which run on every usable backend run on the
stand-in as well. Two devices, so that what is on one of them and used on the other is found.
"""

from __future__ import annotations

from tests.strict_fake.modules import install

install(n_devices=2)
