"""Clients of a cluster, for use from Python."""
