"""Cartwheel: Amazon's Dynamo (SOSP 2007) as software that people run. A leaderless, always-writeable key-value store."""

__version__ = "0.1.0"
