"""Serving: Triton launcher, clients, request runtime, page, load test."""
