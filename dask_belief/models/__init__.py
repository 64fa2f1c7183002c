"""Models: what is trained, described apart from the vector of its parameters."""

from __future__ import annotations

from dask_belief.models.layers import Dense, Embedding, Layer
from dask_belief.models.layout import ParameterLayout
from dask_belief.models.network import Network

__all__ = ["Dense", "Embedding", "Layer", "Network", "ParameterLayout"]
