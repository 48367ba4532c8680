"""The ring: which nodes hold a key, and the history of explicit changes that every node folds into the same ring.

Dynamo sections 4.1 to 4.3, 4.8.1 and 6.2 (strategy 3). A key's *position* is the MD5 of bucket and key, 128 bits. The ring of
positions is cut into q equal *partitions*; each is a *token* that one node owns, so each owned token is a virtual node::

           0 a                  q = 8, owners = a c b a c a c b
     7 b         1 c
                                position c4ca4238...: the top log2(q) = 3 bits, 110, say partition 6
    6 c    ->      2 b
                                preference(3) = a c b    tokens 5 and 6 are met again: skipped
     5 a         3 a            preference(6) = c b a    on past the end of the ring
           4 c

The parts: ``history`` (what was decided), ``ring`` (``position``, ``Ring``, and ``fold``, which turns the one into the other),
``claim`` (which tokens move in a change) and ``plan`` (what a change would mean).

Invariants:

1. Same set of changes, same ring: in every process, on every machine. No ``hash()``, no set order, no float decides.
2. ``preference(p)`` holds every member exactly once; its first entry is ``owners[p]``.
3. Primary load: after a claim a node's number of tokens is its share by weight rounded down or up (a node due less than one token
   has one, if q allows). So it is within 5 % of the share from 20 tokens per node on.
4. A commit moves at most 1.2 times as many tokens as it must, and none if it only relocates, replaces or doubles.
5. The first n entries of a list are on as many zones as exist, then hosts, for every n and also round the end of the ring.

Not an invariant: that *replica* load follows weight as closely as primary load does. ``claim`` has the figures.

Cost: ``position`` is about a microsecond, ``partition_of`` and a repeated ``preference`` or ``owners_of`` a tenth of one. The
first ``preference`` of a partition is O(q + members), the first ``owners_of`` a few microseconds. A fold costs 10 to 20 ms
per new commit at q = 1024, whatever the number of nodes, and microseconds for each change that is folded already
(``snapshot`` and ``remember`` save that over a restart); it runs when the history changes, never on a request.
"""

from cartwheel.core.ring.history import FOUNDING_END, Change, ChangeKind, History, Member
from cartwheel.core.ring.plan import Plan, Share, Transfer, plan
from cartwheel.core.ring.ring import Q_MAX, Folded, Ring, fold, position, record_key, remember, snapshot

__all__ = [
    "FOUNDING_END",
    "Change",
    "ChangeKind",
    "Folded",
    "History",
    "Member",
    "Plan",
    "Q_MAX",
    "Ring",
    "Share",
    "Transfer",
    "fold",
    "plan",
    "position",
    "record_key",
    "remember",
    "snapshot",
]
