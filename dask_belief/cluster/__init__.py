"""The edge to Dask: actors called with a limit, workers that come and go, replicas as long-running futures."""
