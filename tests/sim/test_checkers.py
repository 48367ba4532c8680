"""The judges themselves: each rule fails on a minimal bad history, and none on a good one.

Histories are written as small tables: mints "a1: a0" (dot a1 supersedes a0), what is acknowledged, what gets saw, what is left.
"""

from __future__ import annotations

import pytest

from cartwheel.core.errors import Code
from cartwheel.core.types import Dot
from cartwheel.core.versions import Record, Version
from cartwheel.sim import causal, checkers
from cartwheel.sim.history import (
    Final,
    KeyHistory,
    Leftover,
    Mint,
    Read,
    Status,
    Try,
    Violation,
    Write,
    describe,
    parse_value,
    value_bytes,
    write_of,
)
from cartwheel.sim.ledgers import DotLedger, check_durable
from cartwheel.sim.reach import Reach


def dot(name: str) -> Dot:
    """ "a1" -> ("a/s", 1)."""
    return f"{name[0]}/s", int(name[1:])


def dots(names: str) -> tuple[Dot, ...]:
    """Several dots."""
    return tuple(dot(name) for name in names.split())


def story(
    mints: list[str], *, acked: str = "", gets: list[str] | None = None, finals: dict[str, str] | None = None,
    tombstones: str = "",
) -> KeyHistory:  # fmt: skip
    """A history: mint number i (from 1) is of write i, at second i, acknowledged half a second later; get number i is from
    100 + i to 100 + i + 0.5."""
    history = KeyHistory("k")
    for number, line in enumerate(mints, 1):
        name, _, replaced = line.partition(":")
        write = Write(number, process=0, key="k", value=value_bytes(number), read=dots(replaced), status=Status.OK)
        if name in acked.split():
            write.acked[dot(name)] = number + 0.5
        write.dots.append(dot(name))
        history.writes[number] = write
        tombstone = name in tombstones.split()
        history.mints[dot(name)] = Mint(dot(name), number, name[0], float(number), dots(replaced), tombstone=tombstone)
    for number, seen in enumerate(gets or []):
        at = 100.0 + number
        shown = tuple(history.mints[d].write for d in dots(seen) if d in history.mints)
        history.reads.append(Read(0, "k", "n1", at, at + 0.5, Status.OK, dots=dots(seen), shown=shown, wall_ms=10_000))
    for node, left in (finals or {}).items():
        live = tuple(d for d in dots(left) if d in history.mints and not history.mints[d].tombstone)
        history.finals[node] = Final(left.encode(), dots(left), live_dots=live)
    return history


def rules(violations: list[Violation]) -> list[str]:
    """Which rules were broken, in order of appearance, each once."""
    return list(dict.fromkeys(v.rule for v in violations))


GOOD = story(
    ["a1", "b1", "a2: a1", "b2: a2 b1"],
    acked="a1 b1 a2 b2",
    gets=["b2", "b2"],
    finals={"n1": "b2", "n2": "b2", "n3": "b2"},
)


def test_a_good_history_passes_every_judge():
    """Concurrent writes, one that supersedes one of them, one that supersedes both: nothing to complain about."""
    assert checkers.check_supersession(GOOD) == []
    assert checkers.check_last_writer_wins(GOOD) == []
    assert checkers.check_fresh(GOOD) == []
    assert checkers.check_sessions(GOOD)[0] == []
    assert causal.check_causal(GOOD) == ([], 0)
    assert checkers.check_resurrection(GOOD, []) == []
    assert checkers.check_convergence(GOOD) == []
    assert checkers.check_rejected(GOOD) == []
    assert checkers.check_expiry(GOOD, slack_ms=0) == []


@pytest.mark.parametrize(
    ("case", "history", "expected", "words"),
    [
        ("an acknowledged write is gone", story(["a1", "b1"], acked="a1", finals={"n1": "b1"}), "C2", "acknowledged and lost"),
        ("nothing is left at all", story(["a1"], acked="a1", finals={"n1": ""}), "C2", "acknowledged and lost"),
        ("one owner has lost it", story(["a1"], acked="a1", finals={"n1": "a1", "n2": ""}), "C2", "lost at n2"),
        ("a get saw it, then it is gone", story(["a1"], gets=["a1"], finals={"n1": ""}), "C2", "shown to a client"),
        ("an acknowledged delete is gone", story(["a1", "a2: a1"], acked="a2", finals={"n1": "a1"}), "C2", "and lost"),
        ("a false sibling in the end", story(["a1", "a2: a1"], finals={"n1": "a1 a2"}), "C2", "a superseded version"),
        ("a false sibling in a get", story(["a1", "a2: a1"], gets=["a1 a2"], finals={"n1": "a2"}), "C2", "a superseded version"),
        ("one two steps back", story(["a1", "a2: a1", "a3: a2"], finals={"n1": "a1 a3"}), "C2", "a superseded version"),
        ("a deleted value rises", story(["a1", "a2: a1"], gets=["a1 a2"], tombstones="a2"), "C6", "a deleted version"),
        ("thin air in a get", story(["a1"], gets=["x9"], finals={"n1": "a1"}), "C2", "nobody wrote"),
        ("thin air in the end", story(["a1"], finals={"n1": "a1 x9"}), "C2", "nobody wrote"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)  # fmt: skip
def test_exact_supersession(case, history, expected, words):
    """Each row: with this history, C2 (or C6) complains in these words."""
    found = checkers.check_supersession(history)
    assert rules(found) == [expected], case
    assert words in found[0].text


def test_what_was_only_shown_may_go_with_a_lost_disk():
    """Without ``shown_stays`` an unacknowledged version may vanish, an acknowledged one may not."""
    shown = story(["a1"], gets=["a1"], finals={"n1": ""})
    assert checkers.check_supersession(shown, shown_stays=False) == []
    acked = story(["a1"], acked="a1", gets=["a1"], finals={"n1": ""})
    assert rules(checkers.check_supersession(acked, shown_stays=False)) == ["C2"]


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (story(["a1", "b2"], acked="a1 b2", finals={"n1": "a1"}), "newer ones were acknowledged"),
        (story(["a1", "b2"], acked="a1 b2", finals={"n1": "a1 b2"}), "holds siblings"),
        (story(["a5", "b2: a5"], acked="a5 b2", finals={"n1": "a5"}), "had superseded"),
        (story(["a1"], acked="a1", finals={"n1": ""}), "newer ones"),
        (story(["a1"], finals={"n1": "x9"}), "nobody wrote"),
    ],
)
def test_last_writer_wins(history, words):
    """Each row: with what is left, the LWW judge complains in these words."""
    found = checkers.check_last_writer_wins(history)
    assert rules(found) == ["LWW"]
    assert words in found[0].text


def test_the_older_of_two_concurrent_writes_may_lose():
    """Last writer wins: that is what its user asked for."""
    assert checkers.check_last_writer_wins(story(["a1", "b2"], acked="a1 b2", finals={"n1": "b2"})) == []


def test_sets_lose_nothing_and_invent_nothing():
    """C1: acknowledged elements stay, nobody's do not appear, unacknowledged ones that stay are counted."""
    found, recovered = checkers.check_set("k", {1, 2, 3}, {1, 2}, {"n1": {1, 2, 3}})
    assert (found, recovered) == ([], 1)
    found, _ = checkers.check_set("k", {1, 2, 3}, {1, 2}, {"n1": {1, 2}, "n2": {1}})
    assert rules(found) == ["C1"]
    assert "lost at n2" in found[0].text
    found, _ = checkers.check_set("k", {1}, {1}, {"n1": {1, 7}})
    assert rules(found) == ["C1"]
    assert "nobody added" in found[0].text


def test_a_get_after_an_ack_shows_the_write():
    """FRESH: a get that began before the ack may miss the write, one after it may not; a successor will do."""
    stale = story(["a1", "b1"], acked="a1", gets=["b1"])
    assert rules(checkers.check_fresh(stale)) == ["FRESH"]
    assert checkers.check_fresh(story(["a1", "b1: a1"], acked="a1", gets=["b1"])) == []
    stale.reads[0].invoked_at = 1.4
    assert checkers.check_fresh(stale) == []
    stale.reads[0].invoked_at, stale.reads[0].status = 100.0, Status.REJECTED
    assert checkers.check_fresh(stale) == []


def test_a_process_reads_its_own_writes():
    """C3: missing one's own acknowledged write is a violation if strict, else counted; so is going back in time, always."""
    history = story(["a1", "b1"], acked="a1", gets=["a1", "b1"])
    found, counts = checkers.check_sessions(history)
    assert rules(found) == ["C3"]
    assert counts == {"session.reads": 2, "session.stale_own": 1, "session.back_in_time": 1}
    found, counts = checkers.check_sessions(history, strict=False)
    assert (found, counts["session.stale_own"]) == ([], 1)
    for write in history.writes.values():
        write.process = 5
    assert checkers.check_sessions(history)[0] == []


def test_an_owner_may_have_yet_to_drop_what_is_reaped():
    """Another one has dropped it a moment before: a record that shows nothing and one that is gone are alike, others are not."""
    history = story(["a1", "a2: a1"], tombstones="a2", finals={"n1": "a2", "n2": "a2"})
    history.finals["n3"] = Final(None, ())
    assert rules(checkers.check_convergence(history)) == ["C5"]
    history.reaped[dot("a2")] = 99.0
    assert checkers.check_convergence(history) == []
    history.finals["n1"].live = True
    assert rules(checkers.check_convergence(history)) == ["C5"]


def test_owners_converge_to_the_same_canonical_bytes():
    """C5: other bytes are a violation even if they mean the same, and so are bytes that the encoder would not make."""
    assert rules(checkers.check_convergence(story(["a1"], finals={"n1": "a1", "n2": ""}))) == ["C5"]
    history = story(["a1"], finals={"n1": "a1", "n2": "a1"})
    assert checkers.check_convergence(history) == []
    history.finals["n2"].canonical = False
    assert "not canonical" in checkers.check_convergence(history)[0].text


def test_nothing_is_left_where_it_should_not_be():
    """C5: a record on a node that does not own its key, and a hint that was not delivered."""
    assert checkers.check_leftovers([]) == []
    found = checkers.check_leftovers([Leftover("n4", "", "k"), Leftover("n5", "n1", "k")])
    assert rules(found) == ["C5"]
    assert "does not own" in found[0].text
    assert "a hint for n1" in found[1].text


def test_what_was_deleted_lives_nowhere():
    """C6: not on an owner, not on another node, not in a hint; an unacknowledged delete that nobody saw counts for nothing."""
    history = story(["a1", "a2: a1"], acked="a1 a2", tombstones="a2", finals={"n1": "a2", "n2": "a1"})
    assert "n2 holds what was deleted" in checkers.check_resurrection(history, [])[0].text
    history = story(["a1", "a2: a1"], acked="a1 a2", tombstones="a2", finals={"n1": "a2"})
    assert checkers.check_resurrection(history, []) == []
    hint = Leftover("n4", "n2", "k", dots("a1"))
    assert "a hint at n4 for n2 holds" in checkers.check_resurrection(history, [hint])[0].text
    assert "n4, no owner, holds" in checkers.check_resurrection(history, [Leftover("n4", "", "k", dots("a1"))])[0].text
    history.writes[2].acked.clear()
    assert checkers.check_resurrection(history, [hint]) == []
    history.reads.append(Read(0, "k", "n1", 100.0, 100.5, Status.OK, dots=dots("a2")))
    assert rules(checkers.check_resurrection(history, [hint])) == ["C6"]
    assert checkers.check_resurrection(history, [hint], shown_stays=False) == []
    history.reaped[dot("a2")] = 50.0
    assert rules(checkers.check_resurrection(history, [hint], shown_stays=False)) == ["C6"]


def test_what_was_reaped_need_not_be_shown():
    """Once a tombstone is dropped for good, it and its past count as present everywhere; a later write does not."""
    history = story(["a1", "a2: a1", "a3: a2"], acked="a1 a2", tombstones="a2", finals={"n1": ""}, gets=[""])
    assert rules(checkers.check_supersession(history)) == ["C2"]
    assert rules(checkers.check_fresh(history)) == ["FRESH"]
    assert rules(causal.check_causal(history)[0]) == ["C4"]
    assert rules(checkers.check_last_writer_wins(history)) == ["LWW"]
    history.reaped[dot("a2")] = 50.0
    assert checkers.check_supersession(history) == []
    assert checkers.check_fresh(history) == []
    assert causal.check_causal(history) == ([], 0)
    assert checkers.check_last_writer_wins(history) == []
    history.writes[3].acked[dot("a3")] = 60.0
    assert rules(checkers.check_supersession(history)) == ["C2"]
    assert rules(checkers.check_last_writer_wins(history)) == ["LWW"]


# --- C4: the bad patterns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "history"),
    [
        # Two writes each of which had read the other: somebody read from the future.
        ("CyclicCO", story(["a1: b1", "b1: a1"])),
        ("CyclicCO", story(["a1: c1", "b1: a1", "c1: b1"])),
        # A dot that was never minted.
        ("ThinAirRead", story(["a1"], gets=["x9"])),
        # The session had passed on b1, which supersedes a1; then it reads a1.
        ("WriteCORead", story(["a1", "b1: a1"], acked="a1 b1", gets=["a1"])),
        # The same over a step that it never wrote: c1 supersedes b1, which superseded a1.
        ("WriteCORead", story(["a1", "b1: a1", "c1: b1"], acked="c1", gets=["a1"])),
        # It had passed on a1, and reads nothing.
        ("WriteCOInitRead", story(["a1"], acked="a1", gets=[""])),
        # It had passed on a1, and reads a sibling alone.
        ("WriteCOHidden", story(["a1", "b1"], acked="a1", gets=["b1"])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_causal_bad_patterns(pattern, history):
    """C4: each history shows its pattern, and is a violation."""
    found, _ = causal.check_causal(history)
    assert rules(found) == ["C4"]
    assert found[0].text.startswith(pattern)


def test_causal_needs_its_premise_for_reads_that_are_behind():
    """Without overlapping quorums they are counted; circles and thin air are never right; nor does it hold for what another
    process wrote, or what is acknowledged only after the read began."""
    behind = story(["a1", "b1: a1"], acked="a1 b1", gets=["a1"])
    assert causal.check_causal(behind, strict=False) == ([], 1)
    assert rules(causal.check_causal(story(["a1: b1", "b1: a1"]), strict=False)[0]) == ["C4"]
    assert rules(causal.check_causal(story(["a1"], gets=["x9"]), strict=False)[0]) == ["C4"]
    behind.writes[2].process = 5
    assert causal.check_causal(behind) == ([], 0)
    early = story(["a1"], acked="a1", gets=[""])
    early.reads[0].invoked_at = 1.2
    assert causal.check_causal(early) == ([], 0)
    shown = story(["a1"], gets=["a1"])
    shown.reads[0].shown = (7,)
    assert rules(causal.check_causal(shown)[0]) == ["C4"]


def test_causal_good_histories():
    """A successor, a sibling beside, a delete that is still there: present."""
    for gets in (["c1"], ["b1", "b1 c1"]):
        assert causal.check_causal(story(["a1", "b1: a1", "c1: b1"], acked="b1", gets=gets)) == ([], 0)
    assert causal.check_causal(story(["a1", "a2: a1"], acked="a1 a2", gets=["a2"], tombstones="a2")) == ([], 0)


# --- after healing -----------------------------------------------------------------------------------------------------


def test_a_walk_shows_each_live_key_once():
    """SCAN: a key that is missing, repeated, not live or unknown, and a walk without an end, are violations."""
    live, gone = story(["a1"], finals={"n1": "a1"}), story(["a1"], finals={"n1": "a1"})
    live.finals["n1"].live = True
    gone.key = "gone"
    assert checkers.check_scan([live, gone], ["k"], ended=True) == []
    for scanned in ([], ["k", "k"], ["k", "gone"], ["k", "new"]):
        assert rules(checkers.check_scan([live, gone], scanned, ended=True)) == ["SCAN"]
    assert rules(checkers.check_scan([live], ["k"], ended=False)) == ["SCAN"]


def test_nothing_fails_in_quiet_times():
    """C8: no quorum, or no answer, outside the disturbed times; other refusals are the client's affair."""
    tries = [Try("n1", 10.0, 10.1, Status.OK), Try("n1", 10.0, 10.1, Status.REJECTED, Code.TOOMANYSIBLINGS)]
    assert checkers.check_available(tries, []) == []
    failed = Try("n1", 10.0, 12.0, Status.UNKNOWN, Code.NOQUORUM)
    silent = Try("n1", 10.0, 14.0, Status.UNKNOWN)
    assert rules(checkers.check_available([failed], [])) == ["C8"]
    assert rules(checkers.check_available([silent], [])) == ["C8"]
    assert checkers.check_available([failed, silent], [(11.0, 30.0)]) == []
    assert rules(checkers.check_available([failed], [(12.5, 30.0)])) == ["C8"]


def test_a_write_is_served_where_a_quorum_is_reached():
    """C8, P3: a failed write is a violation if its coordinator reached W-1 others all the while, and no other reason is given."""
    reach = Reach()
    for a, b in (("n1", "n2"), ("n2", "n1"), ("n1", "n3"), ("n3", "n1")):
        reach.told(a, b, 1.0)
    nodes = ("n1", "n2", "n3", "n4")

    def served(**changed: object) -> list[Violation]:
        attempt = Try("n1", 10.0, 12.0, Status.UNKNOWN, Code.NOQUORUM, write=True)
        for name, value in changed.items():
            setattr(attempt, name, value)
        return checkers.check_served([attempt], reach, nodes, 3)

    assert rules(served()) == ["C8"]
    assert "it reached n2, n3" in served()[0].text
    assert rules(served(code=None)) == ["C8"]
    assert rules(served(status=Status.REJECTED)) == ["C8"]
    for excuse in ({"write": False}, {"status": Status.OK}, {"code": Code.BUSY}, {"text": "n2: clock 900 ms ahead"}):
        assert served(**excuse) == []
    assert served(text="n2: its disk is nearly full") == []
    assert served(node="n2") == []  # which reaches n1 only
    attempt = Try("n1", 10.0, 12.0, Status.UNKNOWN, Code.NOQUORUM, write=True)
    assert checkers.check_served([attempt], reach, nodes, 3, {"n1"}) == []  # it is removed
    assert checkers.check_served([attempt], reach, nodes[1:], 3) == []  # it comes or goes: it needs three others
    assert rules(checkers.check_served([attempt], reach, nodes[1:], 2)) == ["C8"]
    assert served(invoked_at=5.0) == []  # soon after they were connected: verdicts of before may stand
    reach.hindered(("n3",), 11.0, 11.1)
    assert served() == []
    assert rules(served(invoked_at=16.0, completed_at=18.0)) == ["C8"]


def test_rejected_means_never_minted():
    """P7."""
    history = story(["a1"])
    history.writes[1].status = Status.REJECTED
    assert rules(checkers.check_rejected(history)) == ["P7"]
    history.writes[1].status = Status.UNKNOWN
    assert checkers.check_rejected(history) == []


@pytest.mark.parametrize(
    ("expires_at_ms", "shown", "words"),
    [
        (8_000, True, "after it expired"),
        (12_000, False, "hides"),
        (0, False, "hides"),
        (8_000, False, ""),
        (12_000, True, ""),
        (0, True, ""),
        (9_500, True, ""),  # within the slack, both may be
        (9_500, False, ""),
    ],
)  # fmt: skip
def test_values_are_shown_until_they_expire(expires_at_ms, shown, words):
    """TTL, for a get at 10,000 ms with a second of slack."""
    history = story(["a1"], gets=["a1"])
    history.writes[1].expires_at_ms = expires_at_ms
    if not shown:
        history.reads[0].shown = ()
    found = checkers.check_expiry(history, slack_ms=1000)
    assert rules(found) == (["TTL"] if words else [])
    assert not words or words in found[0].text


# --- ledgers -----------------------------------------------------------------------------------------------------------


def record(*names: str, clock: dict[str, int] | None = None, value: bytes = b"1:0", request_id: bytes = b"") -> Record:
    """A record of these dots, with the least clock for them or a given one."""
    found = tuple(Version(*dot(name), value, 0, request_id) for name in sorted(names))
    return Record(clock if clock is not None else {v.actor: v.counter for v in found}, found)


def stage(
    ledger: DotLedger, node: str, staged: Record, *, before: Record | None = None, key: bytes = b"k", boot: int = 1
):
    """``node`` stages a record under its actor ``node/s``."""
    return ledger.staged(node, f"{node}/s", boot, key, lambda: before or Record({}, ()), staged)


def test_dots_are_minted_once_and_spread_unchanged():
    """C7, the good story: a mint, its copy at another node, the next mint on top."""
    ledger = DotLedger()
    minted, wrong = stage(ledger, "a", record("a1"))
    assert ([v.dot for v in minted], wrong) == ([dot("a1")], [])
    assert stage(ledger, "b", record("a1")) == ([], [])
    assert stage(ledger, "a", record("a1"), before=record("a1")) == ([], [])
    assert stage(ledger, "a", record("a2"), before=record("a1"))[1] == []


@pytest.mark.parametrize(
    ("node", "staged", "before", "words"),
    [
        ("b", record("a1", value=b"2:0"), None, "it was minted with"),  # one dot, two values
        ("b", record("c9"), None, "never minted"),  # thin air
        ("a", record("a2"), Record({}, ()), "without accounting for"),  # invariant A: it has forgotten a1
        ("a", record("a2"), Record({}, (), (dot("a1"),)), "without accounting for"),  # and a note of it is no entry
        ("a", record("a0"), record("a1"), "not above all earlier"),  # the counter goes back
        ("a", record("a2", request_id=b"w1"), record("a1"), "stamps a request twice"),
    ],
)
def test_the_dot_ledger_finds(node, staged, before, words):
    """C7: each row is found at the very staging."""
    ledger = DotLedger()
    assert stage(ledger, "a", record("a1", request_id=b"w1" if staged.versions[0].request_id else b""))[1] == []
    _, wrong = stage(ledger, node, staged, before=before)
    assert [rule for rule, _ in wrong] == ["C7"]
    assert words in wrong[0][1]


def test_a_dot_names_one_key_and_a_node_mints_as_its_present_actor():
    """C7: a dot under a second key, and a mint under an ended stint, are found."""
    ledger = DotLedger()
    stage(ledger, "a", record("a1"))
    assert "it was minted with" in stage(ledger, "a", record("a1"), key=b"other")[1][0][1]
    _, wrong = ledger.staged("a", "a/new", 2, b"k", lambda: record("a1"), record("a1", "a2"))
    assert "goes by a/new now" in wrong[0][1]


def test_a_restarted_node_may_stamp_a_retry_again():
    """C7: what a coordinator remembers of requests ends with its life."""
    ledger = DotLedger()
    stage(ledger, "a", record("a1", request_id=b"w1"))
    assert stage(ledger, "a", record("a2", request_id=b"w1"), before=record("a1"), boot=2)[1] == []


def test_an_ack_means_w_safe_copies():
    """C9: the write is accounted for on W disks, by itself or by what superseded it."""
    one, two = {"a": record("a1")}, {"a": record("a1"), "b": record(clock={"a/s": 3})}
    assert rules(check_durable("k", [dot("a1")], 2, one, 0.0)) == ["C9"]
    assert check_durable("k", [dot("a1")], 2, two, 0.0) == []
    assert rules(check_durable("k", [dot("a1")], 3, two, 0.0)) == ["C9"]
    noted = {**two, "c": Record({"c/s": 1}, (), (dot("a1"),))}
    assert check_durable("k", [dot("a1")], 3, noted, 0.0) == []
    assert "covers no version" in check_durable("k", [], 2, two, 0.0)[0].text


# --- history -----------------------------------------------------------------------------------------------------------


def test_a_value_tells_its_write():
    """Values are unique, and deletes are known by their request ids; anything else is nobody's."""
    assert parse_value(value_bytes(17, 0b101)) == (17, 5)
    assert write_of(value_bytes(17), b"") == 17
    assert write_of(None, b"w17") == 17
    assert write_of(b"milk", b"w17") is None
    assert write_of(None, b"fwd:n1/3") is None


def test_a_story_tells_tries_gets_mints_and_the_end():
    """``describe`` is what a developer reads first."""
    history = story(["a1", "b1: a1"], acked="a1", gets=["b1"], finals={"n1": "b1"})
    history.writes[1].tries.append(Try("n1", 0.5, 0.9, Status.OK))
    text = "\n".join(describe(history))
    for part in ("put #1 via n1", "get via n1", "b mints version", "final n1"):
        assert part in text
    assert "earlier lines" in describe(history, limit=2)[0]
