"""Chaos: real node processes under load while faults strike, and the simulator's judges over what their clients saw.

    run        one run from start to verdict
    cluster    the nodes: started, killed, paused, wiped         proxy    the network between them, which can be cut
    shim       a disk that answers EIO                           processes   whose turn it is with a node, and who is away
    nemesis    what can go wrong                                 draw     what does, and when: the plan, from the seed
    hand       carries the plan out                              members  the administrators: nodes come and go
    load       the clients, and what they note in the history    history  the file of what happened
    judge      the verdict over that file                        report, picture    for people and programs
    scratch    a cluster and its network for a demonstration, without load

The simulator finds bugs of the protocol in millions of schedules; this finds what a simulation must take on trust: the engine,
the kernel, sockets, signals, start and recovery. It works on the same promises (``cartwheel.sim.checkers``).
"""
