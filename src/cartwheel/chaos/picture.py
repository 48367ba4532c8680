"""The picture of a run: throughput, latency and faults over the same time, on a terminal (unicode) or as SVG.

operations/s  ▇▇▇▇▆▇▇▂▅▇▇    890
failed/s      ▁▁▁▁▁▁▁▆▁▁▁     12
p50 ms        ▂▂▂▂▂▂▂▂▂▂▂      3
p99 ms        ▁▁▁▁▁▁▁█▂▁▁    210       the highest of each row at its end
kill                 ██
split           █████
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rich.table import Table
from rich.text import Text

from cartwheel.chaos.history import Fault
from cartwheel.chaos.judge import Record
from cartwheel.chaos.measure import Bucket, by_kind
from cartwheel.chaos.report import KILL_P99_MS, Report, load_span

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH_MAX = 100
COLOURS = {
    "kill": "red", "pause": "yellow", "rolling": "cyan", "fill": "magenta", "wipe": "bright_red", "eio": "bright_magenta",
    "split": "blue", "oneway": "bright_blue", "isolate": "green", "bridge": "bright_cyan", "flap": "bright_yellow",
    "join": "green3", "leave": "orange3", "replace": "purple", "weight": "gold3", "administrators": "deep_pink3",
    "return": "grey50", "clone": "dark_red",
}  # fmt: skip
SVG_COLOURS = {
    "kill": "#d62728", "pause": "#e0a800", "rolling": "#17a2b8", "fill": "#b5489a", "wipe": "#8b0000", "eio": "#e377c2",
    "split": "#1f77b4", "oneway": "#5b8ff9", "isolate": "#2ca02c", "bridge": "#20c0a0", "flap": "#ff7f0e",
    "join": "#3cb371", "leave": "#d2691e", "replace": "#6a3d9a", "weight": "#b8a000", "administrators": "#d6006c",
    "return": "#7f7f7f", "clone": "#600020",
}  # fmt: skip


def sparkline(values: Sequence[float], highest: float | None = None) -> str:
    """A row of blocks, from nothing to the highest."""
    top = max(values, default=0.0) if highest is None else highest
    if top <= 0:
        return BLOCKS[0] * len(values)
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(value / top * len(BLOCKS)))] for value in values)


def bar(spans: Sequence[tuple[float, float]], start: float, width_s: float, columns: int) -> str:
    """Blocks where a fault was at work, even if only for a moment."""
    cells = [" "] * columns
    for begin, end in spans:
        first, last = int((begin - start) / width_s), int((end - start) / width_s)
        for cell in range(max(0, first), min(columns - 1, last) + 1):
            cells[cell] = "█"
    return "".join(cells)


def timeline(record: Record, columns: int = WIDTH_MAX) -> Table:
    """For the terminal."""
    start, end = load_span(record)
    width_s = max((end - start) / columns, 0.25)
    buckets = record.measured.buckets(start, end, width_s)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(no_wrap=True)
    rows: list[tuple[str, list[float]]] = [
        ("operations/s", [each.done_per_s for each in buckets]),
        ("failed/s", [each.failed_per_s for each in buckets]),
        ("p50 ms", [each.p50_ms for each in buckets]),
        ("p99 ms", [each.p99_ms for each in buckets]),
    ]
    for name, values in rows:
        table.add_row(name, sparkline(values), f"{max(values):.0f}")
    for kind, spans in by_kind(record.faults).items():
        drawn = Text(bar(spans, start, width_s, len(buckets)), style=COLOURS.get(kind, "white"))
        table.add_row(kind, drawn, f"{len(spans)}x")
    table.add_row("", f"0 s{f'{end - start:.0f} s':>{max(1, len(buckets) - 3)}}", "")
    return table


def figures(report: Report) -> Table:
    """For the terminal: the figures."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 3, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    latency = report.latency_ms
    rows = [
        ("operations", f"{report.operations:,} in {report.seconds:g} s, {report.ops_per_s:,.0f} successful a second"),
        ("acknowledged writes", f"{report.acknowledged:,}, {report.writes_ok_percent:.3f} % of those tried"),
        (
            "with W reachable",
            f"{report.writes_served_ok_percent:.4f} % of the {report.writes_served:,} writes to a node that was up and "
            f"reached W nodes: {report.writes_served - report.writes_served_ok:,} failed",
        ),
        (
            "failed",
            f"{report.unknown:,} writes of unknown outcome, {report.rejected:,} rejected; {report.reads_failed:,} reads",
        ),
        ("latency", f"p50 {latency.p50:g} ms, p99 {latency.p99:g} ms, p99.9 {latency.p999:g} ms"),
    ]
    if report.kills:
        met = "under" if report.kill_p99_ms < KILL_P99_MS else "not under"
        rows.append(
            (
                "around kill -9",
                f"p99 {report.kill_p99_ms:g} ms in the 10 s around {report.kills} kills, {met} {KILL_P99_MS:g}; worst "
                f"{report.kill_p99_ms_worst:g} ms; back within {report.kill_ready_s_worst:g} s",
            )
        )
    by_read = f", {report.keys_read_to_agree} of them only when read" if report.keys_read_to_agree else ""
    stale = f"{report.stale_own_reads:,} of {report.session_reads:,} reads"
    rows += [
        ("lost", f"{report.lost} acknowledged writes"),
        ("phantom", f"{report.phantom} values that nobody wrote, or that were rejected"),
        ("resurrected", f"{report.resurrected} superseded or deleted values"),
        ("shown again", f"{report.shown_again} superseded values of writes that two coordinators had taken"),
        ("unknown that stayed", f"{report.recovered} elements of sets"),
        ("did not read its own", stale),
        ("members", f"{', '.join(report.members) or '?'}; all tell the same history of {report.changes} changes"),
        ("owners agree", f"{report.agreed_s:g} s after healing, on {report.keys:,} keys{by_read}"),
    ]
    for name, text in rows:
        table.add_row(name, text)
    return table


def rates(report: Report) -> Table:
    """For the terminal: how writes fared under each kind of fault."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for title in ("nemesis", "times", "writes", "succeeded"):
        table.add_column(title, no_wrap=True, justify="left" if title == "nemesis" else "right")
    for kind, rate in report.writes_by_nemesis.items():
        table.add_row(kind, f"{rate['times']:.0f}", f"{rate['writes']:,.0f}", f"{rate['ok_percent']:.3f} %")
    return table


# --- SVG ---------------------------------------------------------------------------------------------------------------

LEFT, RIGHT, TOP = 110, 30, 40
PLOT_WIDTH, PANEL_HEIGHT, PANEL_GAP, LANE_HEIGHT = 860, 130, 34, 20


def svg(record: Record, report: Report) -> str:
    """The same as a picture of its own: throughput, latency (logarithmic) and a lane for each kind of fault."""
    start, end = load_span(record)
    span = max(end - start, 0.001)
    buckets = record.measured.buckets(start, end, max(span / 400, 0.25))
    spans = by_kind(record.faults)
    lanes_top = TOP + 2 * (PANEL_HEIGHT + PANEL_GAP)
    height = lanes_top + LANE_HEIGHT * len(spans) + 50
    width = LEFT + PLOT_WIDTH + RIGHT
    title = (
        f"cartwheel chaos, seed {report.seed}: {report.verdict}; {report.operations:,} operations, {report.lost} lost, "
        f"{report.phantom} phantom, {report.resurrected} resurrected"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    parts += _shades(record.faults, start, span, lanes_top - PANEL_GAP)
    parts += _throughput(buckets, start, span)
    parts += _latencies(buckets, start, span, TOP + PANEL_HEIGHT + PANEL_GAP)
    for number, (kind, each) in enumerate(spans.items()):
        parts += _lane(
            kind, [f for f in record.faults if f.kind == kind], start, span, lanes_top + number * LANE_HEIGHT
        )
        assert each, "a kind is there because it happened"
    parts += _time_axis(span, lanes_top + LANE_HEIGHT * len(spans) + 6)
    return "\n".join([*parts, "</svg>\n"])


def _x(at: float, start: float, span: float) -> float:
    return round(LEFT + min(max((at - start) / span, 0.0), 1.0) * PLOT_WIDTH, 1)


def _shades(faults: Sequence[Fault], start: float, span: float, bottom: float) -> list[str]:
    """Faint bands behind the curves."""
    parts = []
    for fault in faults:
        x, until = _x(fault.start, start, span), _x(fault.end, start, span)
        colour = SVG_COLOURS.get(fault.kind, "#888")
        box = f'x="{x}" y="{TOP}" width="{max(1.0, until - x):.1f}" height="{bottom - TOP}"'
        parts.append(f'<rect {box} fill="{colour}" opacity="0.10"/>')
    return parts


def _frame(top: float, name: str, ticks: Sequence[tuple[float, str]]) -> list[str]:
    """A panel's border, name and horizontal lines, each at a share of its height."""
    parts = [
        f'<rect x="{LEFT}" y="{top}" width="{PLOT_WIDTH}" height="{PANEL_HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{LEFT}" y="{top - 5}" fill="#333">{escape(name)}</text>',
    ]
    for share, text in ticks:
        y = round(top + PANEL_HEIGHT * (1 - share), 1)
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{LEFT + PLOT_WIDTH}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end" fill="#333">{text}</text>')
    return parts


def _curve(points: Sequence[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>'


def _throughput(buckets: Sequence[Bucket], start: float, span: float) -> list[str]:
    top = max([each.done_per_s for each in buckets] + [1.0])
    ticks = [(share, f"{top * share:,.0f}") for share in (0.0, 0.5, 1.0)]
    parts = _frame(TOP, "operations a second (red: failed)", ticks)
    for name, colour in (("done_per_s", "#1f77b4"), ("failed_per_s", "#d62728")):
        points = [
            (_x(each.start, start, span), round(TOP + PANEL_HEIGHT * (1 - getattr(each, name) / top), 1))
            for each in buckets
        ]
        parts.append(_curve(points, colour))
    return parts


def _latencies(buckets: Sequence[Bucket], start: float, span: float, top: float) -> list[str]:
    low, high = 0.1, max([each.p99_ms for each in buckets] + [1.0])
    decades = math.log10(high / low)

    def share(value: float) -> float:
        return min(1.0, max(0.0, math.log10(max(value, low) / low) / decades))

    ticks = [(share(10.0**power), f"{10.0**power:g}") for power in range(-1, int(math.log10(high)) + 1)]
    parts = _frame(top, "latency in ms, logarithmic: p50 (blue), p99 (orange)", ticks)
    for name, colour in (("p50_ms", "#1f77b4"), ("p99_ms", "#ff7f0e")):
        points = [
            (_x(each.start, start, span), round(top + PANEL_HEIGHT * (1 - share(getattr(each, name))), 1))
            for each in buckets
        ]
        parts.append(_curve(points, colour))
    return parts


def _lane(kind: str, faults: Sequence[Fault], start: float, span: float, top: float) -> list[str]:
    parts = [f'<text x="{LEFT - 6}" y="{top + 13}" text-anchor="end">{escape(kind)}</text>']
    for fault in faults:
        x, until = _x(fault.start, start, span), _x(fault.end, start, span)
        told = f"{kind} {fault.label or ' '.join(fault.nodes)}, {fault.start:.1f} to {fault.end:.1f} s"
        parts.append(
            f'<rect x="{x}" y="{top + 3}" width="{max(2.0, until - x):.1f}" height="{LANE_HEIGHT - 6}" '
            f'fill="{SVG_COLOURS.get(kind, "#888")}"><title>{escape(told)}</title></rect>'
        )
    return parts


def _time_axis(span: float, top: float) -> list[str]:
    step = next(each for each in (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 1 << 40) if span / each <= 12)
    parts = []
    for number in range(int(span / step) + 1):
        x = _x(number * step, 0.0, span)
        parts.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{top + 5}" stroke="#999"/>')
        parts.append(f'<text x="{x}" y="{top + 19}" text-anchor="middle" fill="#333">{number * step} s</text>')
    return parts
