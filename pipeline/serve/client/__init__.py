"""Clients of a server over HTTP and gRPC, and of a run in this process."""
