"""What a server does with a request before and after the model, with NumPy alone.

The exporter copies this package into the model repository, so it imports nothing of this project
and runs on Python 3.10 and NumPy 1.26, which NVIDIA's stock Triton image has.
"""
