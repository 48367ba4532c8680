"""The hot records: whatever is found there is what was last written."""

from hypothesis import given
from hypothesis import strategies as st

from cartwheel.core import hot
from cartwheel.core.hot import HotRecords
from cartwheel.core.versions import EMPTY, Record


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), st.booleans())))
def test_an_entry_is_what_was_last_put(steps):
    """After any puts and gets, of small and of large records, a get finds the last put or nothing, and memory is bounded."""
    entries_max, bytes_max = hot.ENTRIES_MAX, hot.RECORD_BYTES_MAX
    hot.ENTRIES_MAX, hot.RECORD_BYTES_MAX = 2, 4
    try:
        records, last = HotRecords(), {}
        for i, (puts, key, large) in enumerate(steps):
            if puts:
                last[key] = (b"large" if large else b"%d" % i, Record({"a": i}, ()))
                records.put(key, *last[key])
            found = records.get(key)
            assert found in (None, last.get(key))
            assert found is None or len(found[0]) <= 4
            if puts and not large:
                assert found == last[key]  # what was just written is there
            assert len(records._young) <= 2
            assert len(records._old) <= 2
    finally:
        hot.ENTRIES_MAX, hot.RECORD_BYTES_MAX = entries_max, bytes_max


def test_records_up_to_the_limit_are_kept():
    """Larger ones are read from the store each time."""
    records = HotRecords()
    records.put(b"a", b"x" * hot.RECORD_BYTES_MAX, EMPTY)
    records.put(b"b", b"x" * (hot.RECORD_BYTES_MAX + 1), EMPTY)
    assert records.get(b"a") is not None
    assert records.get(b"b") is None
    records.clear()
    assert records.get(b"a") is None


def test_what_is_used_stays(monkeypatch):
    """A record used once in a generation survives it; one that is not used is forgotten with the next."""
    monkeypatch.setattr(hot, "ENTRIES_MAX", 2)
    records = HotRecords()
    records.put(b"hot", b"h", EMPTY)
    records.put(b"cold", b"c", EMPTY)
    for i in range(10):
        records.put(b"%d" % i, b"x", EMPTY)
        assert records.get(b"hot") == (b"h", EMPTY)
    assert records.get(b"cold") is None
