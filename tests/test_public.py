"""What ``import cartwheel`` promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cartwheel


@pytest.mark.parametrize("name", cartwheel.__all__)
def test_each_public_name_is_there(name):
    """Every name in ``__all__`` loads, and is listed by ``dir``."""
    assert getattr(cartwheel, name) is not None
    assert name in dir(cartwheel)


def test_an_unknown_name_is_an_attribute_error():
    """A typing mistake is told as for any module."""
    with pytest.raises(AttributeError, match="no attribute 'Cluster'"):
        _ = cartwheel.Cluster


def test_importing_the_package_loads_nothing_else():
    """``import cartwheel`` stays free of cost: no submodule comes with it."""
    code = "import sys, cartwheel; print([m for m in sys.modules if m.startswith('cartwheel.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
