import pipeline.core.merlin  # noqa: F401  (before any module here imports Merlin or dask)
