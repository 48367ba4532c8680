"""How the ring is divided among the nodes. Part of ``core.ring``, which is where others import from."""
