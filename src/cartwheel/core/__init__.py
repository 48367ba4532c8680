"""The pure core: a node as a deterministic state machine, ``handle(now_s, wall_ms, event) -> effects``.

Nothing here reads a clock or a random source, or touches a socket, file or thread. Production (``cartwheel.runtime``) and
the simulator (``cartwheel.sim``) drive the very same classes. Floors, each importing only from lower ones:
``types errors config`` < ``clock versions context ring quorum`` < ``messages storage`` < ``coordinator replica coverage
membership`` < ``node``.
"""
