"""Dynamo's section 6.2 as a simulation: three ways to cut the ring and place its pieces, and how evenly each spreads the load.

In reading order: ``placement`` (the strategies, and the ring that Cartwheel itself makes), ``figure_8`` (load balancing
efficiency against the size of the membership metadata), ``figure_6`` (nodes out of balance over a day), ``simulate`` (the
options, and both together), ``picture`` (as SVG). ``cartwheel ring simulate`` is their command.

::

    strategy 1    a   b a       c  b   c  a      T random tokens a node. A range ends at a token, and belongs to the
                 -|---|-|-------|--|---|--|-     first n nodes met from that token on, itself included.

    strategy 2   |..:..|..:..|..:..|..:..|..:    Q equal partitions; the tokens (T a node, random) only order the nodes.
                    a     b     a     c    b     A partition goes to the first n nodes met from its end on.

    strategy 3    a  c  b  a  c  b  b  a  c      Q equal partitions, each the token of one node, Q/S tokens a node. A
                 |--|--|--|--|--|--|--|--|--|    partition goes to the first n nodes met from it on.

How the paper's Figure 8 is read
--------------------------------

The paper says what is on its axes ("load balancing efficiency is defined as the ratio of average number of requests served by
each node to the maximum number of requests served by the hottest node", against "different sizes of membership information that
needs to be maintained at each node", in no unit), that S = 30 and N = 3, and neither T nor Q nor the load. This reading gives
its curves:

1. **Metadata** is counted in entries that each node keeps, about the whole ring: the S*T tokens in strategies 1 and 2, the owners
   of the Q partitions in strategy 3. Strategy 2's partitions cost nothing: where they end follows from Q.
2. **Load** is the share of the ring that a node holds as one of the n on a preference list: uniform keys, so many that no single
   one matters. Skewed popularity would need a parameter of its own, and its noise would keep strategy 3 from the .99 it has.
3. **Strategy 2's Q is fixed**, at about 1000; we take 1024. While tokens are scarce it is nearly strategy 1. It peaks where S*T
   is a few times Q: then the lists together use most tokens once. With more tokens than that each partition draws its nodes as
   with dice, and the efficiency is that of Q throws, .85. (The paper demands Q >> S*T; its figure shows what comes otherwise.)
4. **Strategy 3** is assigned at random, as the paper has it: Q/S tokens a node, shuffled. What it lacks to 1 is due to lists that
   skip a node they have already. Cartwheel's claim keeps a node's tokens apart, and lacks nothing here.

Over 40 seeds the simulation is within 0.015 of every value that was read off the figure (``figure_8.PAPER``), which was done by
eye, to .01; docs/concepts/placement.md has the table. *Not found:* that strategy 3 "reduces the size of membership information
maintained at each node by three orders of magnitude". Counted in entries, at equal efficiency, the paper's own figure says 12 to
30 times.

Invariants:

1. Same options, same figures, in every process: one generator per use, seeded by text that names the use.
2. Loads are integers, and the loads of all nodes add up to n times the ring.

Cost: O(S*T) per strategy and seed; see ``simulate`` for what that is in seconds.
"""
