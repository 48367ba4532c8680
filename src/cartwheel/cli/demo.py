"""``cartwheel demo``: the paper's own example, on a running cluster, or on one of its own that a split divides.

Section 4.4: "'Add to Cart' and 'Delete item from Cart' operations are translated into put requests to Dynamo. When a customer
wants to add an item to (or remove from) a shopping cart and the latest version is not available, the item is added to (or
removed from) the older version and the divergent versions are reconciled later." And: "Using this reconciliation mechanism, an
'add to cart' operation is never lost. However, deleted items can resurface."

A cart is a JSON list; carts are merged by union. The client that merges is the application: Cartwheel only says which values
are concurrent.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from cartwheel.cli import common
from cartwheel.cli.common import Failed
from cartwheel.cli.keys import clock_text, read_siblings, write_value
from cartwheel.client.resp import Connection

if TYPE_CHECKING:
    from cartwheel.chaos.scratch import Scratch

DEV_NODES = ("127.0.0.1:7700", "127.0.0.1:7710")
CONTEXT_SHOWN = 8
"""Characters of a context that are shown at its end: its beginning is alike in all of them."""

Cart = frozenset[str]


@click.group()
def demo() -> None:
    """Watch siblings come and go: on a running cluster, or under a split."""


@demo.command()
@click.option(
    "--node", "nodes", multiple=True, metavar="HOST:PORT",
    help=f"A node for the phone, and another for the laptop. [default: {' and '.join(DEV_NODES)}]",
)  # fmt: skip
@click.option("--split", is_flag=True, help="On five nodes of its own, with the network between the two devices cut.")
@common.json_option
@common.timeout_option
def cart(nodes: tuple[str, ...], split: bool, as_json: bool, timeout_s: float) -> int:
    """The shopping cart (Dynamo, section 4.4): two devices, two nodes, one cart.

    Exit code 1 if an added item was lost, or (--split) a removed one came back though nobody had written beside the removal.
    """
    if split:
        if nodes:
            raise click.UsageError("--split starts nodes of its own: leave out --node", click.get_current_context())
        return _cart_split(as_json)
    if not nodes:
        nodes = (os.environ["CARTWHEEL_NODE"],) if os.environ.get("CARTWHEEL_NODE") else DEV_NODES
    with common.connect(nodes[0], timeout_s) as phone, common.connect(nodes[-1], timeout_s) as laptop:
        story = _Story(phone, laptop, quiet=as_json)
        try:
            kept = story.two_additions()
            resurfaced = story.a_removal_and_an_addition()
        finally:
            story.clean_up()
    if as_json:
        common.print_json({"key": story.key, "kept_both": kept, "resurfaced": resurfaced, "steps": story.steps})
    return 0 if kept else 1


def _cart_split(as_json: bool) -> int:
    with _own_cluster(as_json) as (cluster, _), cluster.connect("n1") as phone, cluster.connect("n3") as laptop:
        told = _SplitStory(cluster, phone, laptop, quiet=as_json).tell()
    if as_json:
        common.print_json(told)
    return 0 if told["kept_both"] and told["stayed_removed"] else 1


@demo.command()
@click.option(
    "--adds", type=click.IntRange(1, 200), default=10, show_default=True, metavar="N",
    help="How many elements each of the four clients adds.",
)  # fmt: skip
@common.json_option
def lww(adds: int, as_json: bool) -> int:
    """A last-writer-wins bucket and a siblings bucket under the same split: what did each lose?

    Starts five nodes of its own. Exit code 1 if the siblings bucket lost an acknowledged write.
    """
    from cartwheel.cli import demo_lww

    with _own_cluster(as_json) as (cluster, said):
        counts, agreed_s = demo_lww.run(cluster, adds, said)
    if as_json:
        common.print_json(
            {
                "sides": [demo_lww.LEFT, demo_lww.RIGHT],
                "agreed_s": round(agreed_s, 3),
                "buckets": {
                    bucket: {
                        "acknowledged": len(count.acknowledged), "failed": len(count.failed), "siblings": count.siblings,
                        "present": len(count.present), "lost": count.lost,
                    }
                    for bucket, count in counts.items()
                },
            }
        )  # fmt: skip
    else:
        said("")
        table = common.table("bucket", "acknowledged", "no answer or refused", "siblings now", "in their union", "lost")
        for bucket, count in counts.items():
            numbers = (count.acknowledged, count.failed, count.siblings, count.present, count.lost)
            table.add_row(bucket, *(str(each if isinstance(each, int) else len(each)) for each in numbers))
        common.console().print(table)
        said(
            "\nlww kept the newer of two concurrent sets, and with the other one what only that had. siblings kept both, until\n"
            "somebody who has read both writes their union. Choose lww for what may be lost: sessions, caches."
        )
    return 1 if counts["siblings"].lost else 0


@contextmanager
def _own_cluster(as_json: bool) -> Iterator[tuple[Scratch, Callable[[str], None]]]:
    """A cluster for this demo, and how to say what happens (JSON stands alone). SIGTERM ends it as Ctrl-C does, and leaves
    nothing."""
    from cartwheel.chaos.scratch import Scratch

    def say(line: str) -> None:
        if not as_json:
            click.echo(line)

    say("Starting a cluster for this demo, in a temporary directory ...")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Scratch() as cluster:
            say(f"{len(cluster.nodes)} nodes are ready.\n")
            yield cluster, say
    finally:
        signal.signal(signal.SIGTERM, before)


class _Story:
    """What the two devices do to the cart, told step by step."""

    def __init__(self, phone: Connection, laptop: Connection, *, quiet: bool) -> None:
        self.key = f"demo:cart:{secrets.token_hex(4)}"
        self.steps: list[dict[str, Any]] = []
        self._devices = {"phone": phone, "laptop": laptop}
        self._quiet = quiet

    def two_additions(self) -> bool:
        """Both read the same cart and add to it. Returns whether both items are in the merged cart."""
        self._say(f"A cart, {self.key}. The phone talks to {self._at('phone')}, the laptop to {self._at('laptop')}.\n")
        self._put("phone", Cart({"milk"}), b"", "a new cart")
        self._say("\n1. Both read the cart, and both add something: neither knows of the other.")
        seen_phone, seen_laptop = self._get_one("phone"), self._get_one("laptop")
        self._put("phone", seen_phone[1] | {"bread"}, seen_phone[0], "adds bread")
        self._put("laptop", seen_laptop[1] | {"eggs"}, seen_laptop[0], "adds eggs")
        self._say(
            "\n2. No write was refused, and none is lost: whoever reads now gets both carts, and a context covering both."
        )
        merged = self._merge("phone")
        self._say("\n3. The merged cart has replaced both siblings: its context covered them.")
        _, cart = self._get_one("laptop")
        return cart == merged == {"milk", "bread", "eggs"}

    def a_removal_and_an_addition(self) -> list[str]:
        """Both read; one removes an item, the other adds one. Returns the items that came back."""
        self._say("\n4. Again both read the cart. The phone removes bread, while the laptop adds tea.")
        seen_phone, seen_laptop = self._get_one("phone"), self._get_one("laptop")
        self._put("phone", seen_phone[1] - {"bread"}, seen_phone[0], "removes bread")
        self._put("laptop", seen_laptop[1] | {"tea"}, seen_laptop[0], "adds tea")
        self._say("\n5. The union of the two siblings brings the bread back.")
        merged = self._merge("laptop")
        resurfaced = sorted(merged & {"bread"})
        self._say(
            "\nAn addition is never lost, but a removed item can resurface: a union cannot tell 'removed' from 'never had'.\n"
            'The paper says so, too (section 4.4). An application that minds writes removals down, e.g. as {"bread": 0}.'
        )
        return resurfaced

    def clean_up(self) -> None:
        """Delete the key, whatever it holds."""
        connection = self._devices["phone"]
        context, values = read_siblings(connection, self.key)
        if values:
            write_value(connection, self.key, None, context=context)

    # --- steps ---

    def _put(self, device: str, cart: Iterable[str], context: bytes, why: str) -> None:
        value = json.dumps(sorted(cart)).encode()
        new = write_value(self._devices[device], self.key, value, context=context or None)
        shown = _short(context) if context else "none"
        self._step(f"{device:>6} {why:<13}  put {value.decode()} with context {shown}", device, "put", [value], new)

    def _get(self, device: str) -> tuple[bytes, list[Cart]]:
        context, values = read_siblings(self._devices[device], self.key)
        clock = self._clock(device)
        shown = "  |  ".join(value.decode() for value in values)
        self._step(
            f"{device:>6} reads          {shown}   context {_short(context)} = {clock}", device, "get", values, context
        )
        return context, [Cart(json.loads(value)) for value in values]

    def _get_one(self, device: str) -> tuple[bytes, Cart]:
        context, carts = self._get(device)
        if len(carts) != 1:
            raise Failed(
                f"expected one cart, found {len(carts)}: does somebody else write {self.key}, or is a node unreachable?"
            )
        return context, carts[0]

    def _merge(self, device: str) -> Cart:
        """Read all siblings, write their union with the context that covers them."""
        context, carts = self._get(device)
        merged = Cart().union(*carts)
        self._put(device, merged, context, "merges")
        return merged

    def _clock(self, device: str) -> str:
        explained = common.ask_json(self._devices[device], "CW.EXPLAIN", self.key, "JSON")
        return clock_text(explained["merged"]["clock"])

    def _at(self, device: str) -> str:
        return self._devices[device].address

    def _step(self, line: str, device: str, what: str, values: list[bytes], context: bytes) -> None:
        carts = [json.loads(value) for value in values]
        self.steps.append(
            {"key": self.key, "device": device, "does": what, "carts": carts, "context": context.decode()}
        )
        self._say(line)

    def _say(self, line: str) -> None:
        if not self._quiet:
            click.echo(line)


class _SplitStory(_Story):
    """The same with a split between the two devices, and a wish list beside the cart that only the laptop writes meanwhile."""

    def __init__(self, cluster: Scratch, phone: Connection, laptop: Connection, *, quiet: bool) -> None:
        super().__init__(phone, laptop, quiet=quiet)
        from cartwheel.cli import demo_lww

        self._cluster = cluster
        self._sides = demo_lww.LEFT, demo_lww.RIGHT
        self._cart, self._owners = demo_lww.key_on_both_sides(cluster, "0", "demo:cart")
        self._wishes, _ = demo_lww.key_on_both_sides(cluster, "0", "demo:wishes")

    def tell(self) -> dict[str, Any]:
        """Tell it; what it amounts to, as a document."""
        self._begin()
        split_s = self._cluster.split(*self._sides)
        phone, laptop = (" ".join(side) for side in self._sides)
        self._say(f"\n1. The network splits: {phone} | {laptop}. After {split_s:.1f} s each side misses the other.")
        self._write_on_both_sides()
        agreed_s = self._cluster.heal() + self._agree()
        self._say(
            f"\n3. The network heals. After {agreed_s:.1f} s all hints were delivered, and all owners held the same. Whoever\n"
            "   reads now gets both carts, and a context covering both."
        )
        self.key = self._cart
        merged = self._merge("phone")
        resurfaced = sorted(merged & {"bread"})
        self._say(
            "\n   Both additions are there. The bread is back: the phone's cart still had it, and a union cannot tell 'removed'\n"
            "   from 'never had'. That is the one way (section 4.4): it takes a write beside the removal."
        )
        stayed_removed = self._removals_that_stay()
        return {
            "sides": self._sides, "split_s": round(split_s, 3), "agreed_s": round(agreed_s, 3),
            "kept_both": merged >= {"milk", "eggs", "tea"}, "resurfaced": resurfaced, "stayed_removed": stayed_removed,
            "steps": self.steps,
        }  # fmt: skip

    def _begin(self) -> None:
        self._say(
            "A cart and a wish list. The phone talks to n1, the laptop to n3. The cart's owners are "
            f"{', '.join(sorted(self._owners))}.\n"
        )
        self.key = self._cart
        self._put("phone", Cart({"milk", "bread"}), b"", "a new cart")
        self.key = self._wishes
        self._put("phone", Cart({"pen", "book"}), b"", "a new list")

    def _write_on_both_sides(self) -> None:
        self._say(
            "\n2. Both sides read and write on. For owners that are missed, fallbacks stand in, and keep hints for them."
        )
        self.key = self._cart
        context, cart = self._get_one("phone")
        self._put("phone", cart | {"eggs"}, context, "adds eggs")
        context, cart = self._get_one("laptop")
        self._put("laptop", cart - {"bread"}, context, "removes bread")
        context, cart = self._get_one("laptop")
        self._put("laptop", cart | {"tea"}, context, "adds tea")
        self.key = self._wishes
        context, cart = self._get_one("laptop")
        self._put("laptop", cart - {"pen"}, context, "removes pen")

    def _removals_that_stay(self) -> bool:
        """Of the wish list, and of the bread by somebody who has seen both carts. Whether they did stay."""
        self._say("\n4. The wish list was written by the laptop alone: what it removed stays removed.")
        self.key = self._wishes
        _, wishes = self._get_one("phone")
        self._say("\n5. And the bread, removed by somebody who has seen all of the cart, is gone for good.")
        self.key = self._cart
        self._agree()
        context, cart = self._get_one("laptop")
        self._put("laptop", cart - {"bread"}, context, "removes bread")
        self._agree()
        _, cart = self._get_one("phone")
        return wishes == {"book"} and "bread" not in cart

    def _agree(self) -> float:
        return self._cluster.wait_agree([("0", self._cart), ("0", self._wishes)])


def _short(context: bytes) -> str:
    return f"...{context.decode()[-CONTEXT_SHOWN:]}"
