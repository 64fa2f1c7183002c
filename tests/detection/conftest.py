"""These tests need environments that ``scripts/test_gpu R4`` makes and names; without any they are left alone."""

from __future__ import annotations

import os

from tests.detection.environments import VARIABLES

collect_ignore_glob = [] if VARIABLES & os.environ.keys() else ["test_*.py"]
