"""Request runtime: encodes requests and decodes lists around the model, with NumPy alone.

request.py checks a request, rows.py pads its sessions, request_encoder.py maps raw values to
indices with lookups.py, batching.py runs the model and maps item indices back to raw ids.

The exporter copies this package into the model repository, so it imports nothing of this project
and runs on Python 3.10 and NumPy 1.26, which NVIDIA's stock Triton image has.
"""


class RequestError(ValueError):
    """A request that cannot be answered, with the wrong value and what was expected."""
