"""Request runtime: work of the server before and after the model, on NumPy alone.

The exporter copies this package into the model repository, so it imports nothing of this project
and runs on Python 3.10 and NumPy 1.26, which NVIDIA's stock Triton image has.
"""


class RequestError(ValueError):
    """A request that cannot be answered, with the wrong value and what was expected."""
