"""Session-based recommendation from raw click logs to a live service."""

import os

# Merlin builds dask graphs by hand, which dask's query planner does not know, and compares dtypes
# with pandas' object strings. dask reads both settings when it is first imported.
os.environ["DASK_DATAFRAME__QUERY_PLANNING"] = "False"
os.environ["DASK_DATAFRAME__CONVERT_STRING"] = "False"

__version__ = "0.1.0"
