"""Proxy in front of Triton, which keeps requests that would end it away from it."""
