"""Failure detection: which peers answer, and which take writes, judged by each node for itself (section 4.8.3).

As in the paper, the detection is local: "node A may consider node B failed if node B does not respond to node A's messages
(even if B is responsive to node C's messages)". While requests flow, their outcome is all that is needed; a peer that got none
is not judged. Once one is found silent, it is probed until it answers. Nobody is told of a verdict but for display.

    transport ── PeerUp ──> up ──── a request is late ────> silent, slow writes or slow reads ── probes are answered ──> up
                            │ ^                                            │
                  PeerDown  v │ PeerUp                                     v PeerDown
                         unreachable <─────────────────────────────────────┘

**Late.** The request path only notes the last id asked of a peer, and the last that it answered (``Local.asked_read`` and its
kin). Each tick keeps what had been asked until then; what was asked ``late_s`` ago and is still unanswered, with nothing later
answered either, is late. (Ids rise, so an answer to a later request clears the earlier ones: a lost message among others is no
verdict.) At half of that time a probe follows, in case that the one message was lost after which none came.

**Reads and writes are judged apart.** A peer whose commits take seconds answers reads and every heartbeat: who still answers
something leaves only the set it is late for. The probe for writes writes and syncs before it is answered. That for reads is
answered at once, and clears them all: a read that shows what is not yet on that slow disk waits for it, but others need not.

**Return.** While a peer is out it is probed twice a second; an answer within ``late_s`` is a good one. One good answer ends the
verdict; a peer that relapses soon after must give twice as many in a row each time (no flapping). A new connection is as good
as a probe, unless the peer has relapsed. No dice are needed to spread probes: they are few and small, and those for the disk
do best together, in one group commit.

**A loop that stalled** cannot tell who was late. After a pause of over a second everything asked before is forgotten, after a
shorter one the waiting begins anew.

**Full disks.** A node whose disk is nearly full says so (Health); its peers send it only deletes.

Invariants (``check``): ``readable`` and ``deletable`` hold only reachable peers; ``writable`` is part of ``deletable``.

Cost: a few dictionary look-ups per peer and tick; nothing per request. Runs on every node.
"""

from __future__ import annotations

import math
from collections import deque

from cartwheel.core.local import Local
from cartwheel.core.messages import TICK_S, DiskSpace, Drain, Health, Probe, Probed
from cartwheel.core.storage import Space
from cartwheel.core.types import Durability, NodeId

META_PROBE = b"probe"
"""What a durable probe writes: the value does not matter."""
PROBE_S = 0.5
"""A peer that is out is probed so often: its return is noticed within as long and an answer's time."""
RELAPSE_S = 30.0
"""A verdict within so long of the last return is a relapse."""
FORGIVE_S = 60.0
"""So long without a verdict, and earlier relapses are forgotten."""
GOOD_PROBES_MAX = 8
"""The most good probes in a row that a return takes: four seconds, so that even a peer that fails again at once is out over nine
tenths of the time."""
STALL_S = 1.0
"""A gap between two ticks after which our own loop is the suspect (Lifeguard's idea: doubt yourself first)."""
HEALTH_S = 5.0
"""Every peer hears of our health so often, in case that it missed a change;"""
HEALTH_PEERS = 50
"""with more peers than this less often: never more than ten such messages a second."""
DISK_HYSTERESIS = 0.03
"""The disk must be emptier by so much than where writes ended before they begin again: compaction comes and goes."""

STATES = ("up", "no writes", "slow reads", "slow writes", "silent", "stopping", "unreachable")
"""What a node may find of a peer, from good to bad."""


class _Answers:
    """What one peer has answered of one kind of request."""

    __slots__ = (
        "answered", "asked", "durable", "good", "needed", "ok", "probe_id", "probe_open", "probed_s", "returned_s", "verdict_s",
    )  # fmt: skip

    def __init__(self, *, durable: bool, window: int) -> None:
        self.durable = durable
        self.asked: deque[int] = deque(maxlen=window)  # the last id asked as of each of the last ticks
        self.answered = 0  # Invariant: never falls while the peer is connected
        self.ok = True
        self.good = 0  # probes answered in time, in a row
        self.needed = 1
        self.probe_id = 0
        self.probe_open = False
        self.probed_s = -math.inf
        self.verdict_s = -math.inf
        self.returned_s = -math.inf

    def unanswered(self, ticks_ago: int) -> int:
        """The id asked as of then, if it and all that followed is unanswered; else 0."""
        if len(self.asked) <= ticks_ago:
            return 0
        question = self.asked[-1 - ticks_ago]
        return question if question > self.answered else 0

    def give_up(self, now_s: float) -> None:
        """A verdict: it is late."""
        if now_s - self.returned_s <= RELAPSE_S:
            self.needed = min(2 * self.needed, GOOD_PROBES_MAX)
        elif now_s - self.returned_s > FORGIVE_S:
            self.needed = 1
        self.ok, self.good = False, 0
        self.verdict_s, self.probed_s = now_s, -math.inf

    def welcome(self, now_s: float) -> None:
        """It answers again: what was asked meanwhile is no matter."""
        self.ok = True
        self.returned_s = now_s
        self.forget()

    def forget(self) -> None:
        """Expect no answer to anything asked so far."""
        self.answered = max([self.answered, self.probe_id, *self.asked])
        self.asked.clear()
        self.probe_open = False

    def reconnect(self, now_s: float) -> None:
        """There is a new connection: nothing asked on an earlier one counts."""
        self.asked.clear()
        self.answered = self.good = self.probe_id = 0
        self.probe_open, self.probed_s = False, -math.inf
        if now_s - self.verdict_s > FORGIVE_S:
            self.needed = 1
        if not self.ok and self.needed == 1:
            self.welcome(now_s)


class _Peer:
    """What this node knows of one peer."""

    __slots__ = ("door", "full", "heard_tick", "reads", "since_s", "state", "stopping", "up", "writes")

    def __init__(self, window: int, now_s: float) -> None:
        self.reads = _Answers(durable=False, window=window)
        self.writes = _Answers(durable=True, window=window)
        self.up = False
        self.full = False
        self.stopping = False
        self.door = ""
        self.state = "unreachable"
        self.since_s = now_s
        self.heard_tick = 0  # in the time before this tick it answered something

    def judge(self) -> str:
        """The state that follows from the rest."""
        if not self.up:
            return "unreachable"
        if self.stopping:
            return "stopping"
        if not self.reads.ok:
            return "slow reads" if self.writes.ok else "silent"
        if not self.writes.ok:
            return "slow writes"
        return "no writes" if self.full else "up"


class Detector:
    """This node's verdicts on its peers."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._window = max(2, round(local.config.late_s / TICK_S))
        self._half = self._window // 2
        self._peers: dict[NodeId, _Peer] = {}
        self._tick = 0
        self._ticked_s = math.inf  # no tick yet
        self._started_s = self._takes_since_s = 0.0
        self._told_s = -math.inf
        self._stopping = False
        self._told: frozenset[NodeId] = frozenset()  # who took part when we last looked

    def start(self) -> None:
        """From now on peers may connect."""
        self._started_s = self._takes_since_s = self._local.now_s

    # --- the transport's word ---

    def handle_peer_up(self, node: NodeId) -> None:
        """A connection to this peer is there: it lives. Tell it of our health."""
        local = self._local
        for ids in (local.asked_read, local.asked_write, local.heard_read, local.heard_write):
            ids.pop(node, None)
        peer = self._peer(node)
        peer.up, peer.stopping = True, False
        for answers in (peer.reads, peer.writes):
            answers.reconnect(local.now_s)
        self._place(node, peer)
        local.send(node, self._health())

    def handle_peer_down(self, node: NodeId) -> None:
        """The connection is lost. That is no relapse: it is known at once, and known to be over with the next one."""
        peer = self._peer(node)
        peer.up = False
        self._place(node, peer)

    # --- requests ---

    def handle_tick(self) -> None:
        """Judge whoever is late; probe whoever is out; tell our health."""
        now_s = self._local.now_s
        gap_s, self._ticked_s = now_s - self._ticked_s, now_s
        self._tick += 1
        if gap_s > STALL_S:
            self._local.count("verdicts_suspended")
        for node in sorted(self._peers):
            peer = self._peers[node]
            if peer.up:
                self._note(node, peer)
                if gap_s > STALL_S:
                    peer.reads.forget()
                    peer.writes.forget()
                elif gap_s > self._local.config.late_s:
                    peer.reads.asked.clear()
                    peer.writes.asked.clear()
                self._watch(node, peer)
        if now_s - self._told_s >= HEALTH_S * max(1.0, len(self._peers) / HEALTH_PEERS):
            self._tell_all()

    def _note(self, node: NodeId, peer: _Peer) -> None:
        """Keep what was asked and answered until this tick."""
        local = self._local
        for answers, asked, heard in (
            (peer.reads, local.asked_read, local.heard_read),
            (peer.writes, local.asked_write, local.heard_write),
        ):
            answered = heard.get(node, 0)
            if answered > answers.answered:
                answers.answered = answered
                peer.heard_tick = self._tick
            answers.asked.append(asked.get(node, 0))

    def _watch(self, node: NodeId, peer: _Peer) -> None:
        reads, writes = peer.reads, peer.writes
        late = [answers for answers in (reads, writes) if answers.ok and answers.unanswered(self._window)]
        if late and peer.heard_tick <= self._tick - self._half:
            late = [reads, writes]  # it answers nothing at all
        for answers in late:
            if answers.ok:
                answers.give_up(self._local.now_s)
        if late:
            self._place(node, peer)
        if reads.ok:
            question = max(reads.unanswered(self._half), writes.unanswered(self._half) if writes.ok else 0)
            if question > reads.probe_id:
                self._probe(node, reads)
        if writes.ok:
            question = writes.unanswered(self._half)
            # What was asked since may yet clear it, and costs the peer no sync more.
            if question > writes.probe_id and question == writes.asked[-1]:
                self._probe(node, writes)
        for answers in (reads, writes):
            if not answers.ok and self._local.now_s - answers.probed_s >= PROBE_S - TICK_S / 2:
                if answers.probe_open:
                    answers.good = 0
                self._probe(node, answers)

    # --- probes ---

    def _probe(self, node: NodeId, answers: _Answers) -> None:
        local = self._local
        answers.probe_id, answers.probe_open, answers.probed_s = local.new_id(), True, local.now_s
        local.send(node, Probe(answers.probe_id, answers.durable))

    def handle_probe(self, src: NodeId, message: Probe) -> None:
        """Answer; a durable one after a sync, however long that takes: that is what is asked."""
        local = self._local
        if not message.durable:
            local.send(src, Probed(message.id))
            return
        local.store.stage(Space.META, META_PROBE, b"\x01", Durability.SYNC)
        local.send(src, Probed(message.id), Durability.SYNC)

    def handle_probed(self, src: NodeId, message: Probed) -> None:
        """A probe is answered. An answer to an earlier probe than the last says nothing that counts, nor does a second one."""
        peer = self._peers.get(src)
        if peer is None:
            return
        now_s = self._local.now_s
        for answers in (peer.reads, peer.writes):
            if not answers.probe_open or message.id != answers.probe_id:
                continue
            answers.probe_open = False
            answers.answered = max(answers.answered, message.id)
            peer.heard_tick = self._tick + 1
            if not answers.ok:
                answers.good = answers.good + 1 if now_s - answers.probed_s <= self._local.config.late_s else 0
                if answers.good >= answers.needed:
                    answers.welcome(now_s)
                    self._place(src, peer)

    # --- full disks ---

    def handle_disk(self, event: DiskSpace) -> None:
        """Our disk is so full. Tell everyone when that makes a difference."""
        local = self._local
        bound = local.config.disk_used_max
        if local.takes_writes:
            changed = event.used >= bound
        else:
            changed = event.used < bound - DISK_HYSTERESIS
        if changed:
            local.takes_writes = not local.takes_writes
            self._takes_since_s = local.now_s
            local.count("disk_has_room" if local.takes_writes else "disk_nearly_full")
            if local.takes_writes:
                local.verdicts.pop(local.node, None)
            else:
                local.verdicts[local.node] = self._reasons()["no writes"]
            self._tell_all()

    def handle_health(self, src: NodeId, message: Health) -> None:
        """A peer says what it can take. It may come before PeerUp: the two connections are made one by one."""
        peer = self._peer(src)
        peer.full, peer.door, peer.stopping = not message.writes, message.door, message.stopping
        self._place(src, peer)

    def _health(self) -> Health:
        return Health(self._local.takes_writes, self._local.config.door, self._stopping)

    def drain(self, event: Drain) -> None:
        """We are about to stop."""
        del event
        self._stopping = True
        self._tell_all()

    def _tell_all(self) -> None:
        self._told_s = self._local.now_s
        for node in sorted(self._local.reachable):
            self._local.send(node, self._health())

    # --- verdicts ---

    def handle_place(self) -> None:
        """There is a new view: strangers may be members now, and members strangers. New ones have not heard how we are."""
        local = self._local
        assert local.placement is not None
        new = local.placement.peers - self._told
        self._told = local.placement.peers
        for node, peer in self._peers.items():
            self._place(node, peer)
            if peer.up and (node in new or local.node in new):
                local.send(node, self._health())

    def _peer(self, node: NodeId) -> _Peer:
        peer = self._peers.get(node)
        if peer is None:
            peer = self._peers[node] = _Peer(self._window + 1, self._local.now_s)
        return peer

    def _place(self, node: NodeId, peer: _Peer) -> None:
        """Put a peer into the sets where it belongs, and note a change of its state. Those for the worse are counted, and full
        recoveries: what lies between, such as reads that return a moment before writes, is no verdict."""
        local = self._local
        up = peer.up and not peer.stopping and local.is_peer(node)
        for fit, fits in (
            (local.readable, up and peer.reads.ok),
            (local.writable, up and peer.writes.ok and not peer.full),
            (local.deletable, up and peer.writes.ok),
        ):
            if fits:
                fit.add(node)
            else:
                fit.discard(node)
        state = peer.judge()
        if state != peer.state:
            if state == "up" or STATES.index(state) > STATES.index(peer.state):
                local.count("verdicts_" + state.replace(" ", "_"))
            peer.state, peer.since_s = state, local.now_s
            if state in ("up", "unreachable"):
                local.verdicts.pop(node, None)
            else:
                local.verdicts[node] = self._reasons()[state]

    def _reasons(self) -> dict[str, str]:
        """State -> what it means, of those that are reachable."""
        late_s = self._local.config.late_s
        return {
            "up": "",
            "no writes": "its disk is nearly full",
            "slow reads": f"reads are not answered within {late_s:g} s",
            "slow writes": f"writes are not answered within {late_s:g} s",
            "silent": f"no answer within {late_s:g} s",
            "stopping": "it has been told to stop",
        }

    def view(self, node: NodeId) -> tuple[str, float, str]:
        """A node's state, for how many seconds, and why. Ours too: we are up, or our disk is nearly full."""
        local = self._local
        peer = self._peers.get(node)
        if peer is not None:
            state, since_s = peer.state, peer.since_s
        elif node == local.node:
            state, since_s = ("up" if local.takes_writes else "no writes"), self._takes_since_s
        else:
            state, since_s = "unreachable", self._started_s
        reason = local.why_unreachable(node) if state == "unreachable" else self._reasons()[state]
        return state, local.now_s - since_s, reason

    def door(self, node: NodeId) -> str:
        """Where this node takes Redis clients, as it has told; "": it has not yet."""
        if node == self._local.node:
            return self._local.config.door
        peer = self._peers.get(node)
        return "" if peer is None else peer.door

    def check(self) -> None:
        """Assert the invariants."""
        local = self._local
        assert local.readable <= local.reachable
        assert local.writable <= local.deletable <= local.reachable
