"""The simulator: a whole cluster in one thread, driven by one seed, with faults and judges.

    world       virtual time, hosts, links, the door for clients
      host      a machine, and the driver's duties (group commit, held effects, batches of messages)
      network   delays, losses, repeats, reordering, cuts, clogs
      disks     what a sync keeps and a power cut takes
      clocks    skew, drift, jumps
    faults      kinds of fault, and a plan: everything that is settled before a run
    swarm       draws a plan from its seed
    troubles    carries out a plan's faults
    workloads   clients whose every value is unique
    observer    what the judges are told: histories, mints, acknowledgements, what is left
      history   what the clients saw, and what was minted
      reach     who could exchange frames with whom, and when
    checkers    judges: pure functions over a history
      causal    the one for causal consistency
      ledgers   those asked during the run
    marks       what a batch should have seen happen
    bugs        planted bugs, which the checkers must catch: the test of the tests
    run         one seed from plan to verdict; batches of seeds
    shrink      the shortening of a failing run

The nodes are the very class that production runs (``core.node.Node``); only what surrounds them is simulated. The same seed
and options give the same run on every machine, so a seed is a bug report. ``docs/concepts/simulator.md`` tells how to use it.
"""
