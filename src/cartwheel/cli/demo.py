"""``cartwheel demo``: the paper's own example, on a running cluster.

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
from collections.abc import Iterable
from typing import Any

import click

from cartwheel.cli import common
from cartwheel.cli.common import Failed
from cartwheel.cli.keys import clock_text, read_siblings, write_value
from cartwheel.client.resp import Connection

DEV_NODES = ("127.0.0.1:7700", "127.0.0.1:7710")
CONTEXT_SHOWN = 8
"""Characters of a context that are shown at its end: its beginning is alike in all of them."""

Cart = frozenset[str]


@click.group()
def demo() -> None:
    """Watch siblings come and go on a running cluster."""


@demo.command()
@click.option(
    "--node", "nodes", multiple=True, metavar="HOST:PORT",
    help=f"A node for the phone, and another for the laptop. [default: {' and '.join(DEV_NODES)}]",
)  # fmt: skip
@common.json_option
@common.timeout_option
def cart(nodes: tuple[str, ...], as_json: bool, timeout_s: float) -> int:
    """The shopping cart (Dynamo, section 4.4): two devices, two nodes, one cart.

    Exit code 1 if an added item was lost.
    """
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
        self.steps.append({"device": device, "does": what, "carts": carts, "context": context.decode()})
        self._say(line)

    def _say(self, line: str) -> None:
        if not self._quiet:
            click.echo(line)


def _short(context: bytes) -> str:
    return f"...{context.decode()[-CONTEXT_SHOWN:]}"
