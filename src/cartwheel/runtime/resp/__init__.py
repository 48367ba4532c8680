"""The Redis door."""
