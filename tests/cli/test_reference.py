"""The reference pages say what the program does."""

import inspect

import pytest
from tests.cli.reference import BEGIN, DOCS, END, PAGES, field_docstrings, filled

from cartwheel.cli import start as start_module
from cartwheel.runtime.settings import SETTING_NAMES


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_up_to_date(page):
    """Otherwise: python -m tests.cli.reference."""
    text = (DOCS / page).read_text("utf-8")
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    assert text == filled(text, PAGES[page]()), "run `python -m tests.cli.reference`"


def test_every_setting_is_documented_and_has_a_flag():
    """A field without a docstring, or a flag without help, would be left out of the manual."""
    texts = field_docstrings()
    for name in SETTING_NAMES:
        assert texts[name].endswith(".")
    assert set(start_module.FLAG_HELP) == set(SETTING_NAMES)
    assert set(inspect.signature(start_module.start.callback).parameters) == {
        "file",
        "show_settings",
        "until_eof",
        "flags",
    }
