"""The simulator: a whole cluster in one thread, driven by one seed, with faults and judges.

    world       virtual time, hosts, the driver's duties (group commit, held effects, batches of messages)
      network   delays, losses, repeats, reordering, cuts, clogs
      disks     what a sync keeps and a power cut takes
      clocks    skew, drift, jumps
    faults      what goes wrong and when, drawn from the seed
    workloads   clients whose every value is unique
    history     what the clients saw, and what was minted
    checkers    judges: pure functions over a history, and ledgers asked during the run
    bugs        planted bugs, which the checkers must catch: the test of the tests
    run         one seed from plan to verdict; batches of seeds

The nodes are the very class that production runs (``core.node.Node``); only what surrounds them is simulated. The same seed
and options give the same run on every machine, so a seed is a bug report. ``docs/concepts/simulator.md`` tells how to use it.
"""
