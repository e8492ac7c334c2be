"""Names that others chose are shown on one line, and a terminal takes nothing in them for an order."""

import pytest

from xlstm_unet_lab.ops.words import printable, printable_lines


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Leber, größer 肝 🙂", "Leber, größer 肝 🙂"),
        ("two\nlines\tand\ra half", r"two\nlines\tand\ra half"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        (b"latin \xe4.png".decode(errors="surrogateescape"), r"latin \udce4.png"),
        ("png.\u202egpj", r"png.\u202egpj"),
        ("a\x00b\x9b", r"a\x00b\x9b"),
        (7, "7"),
    ],
)
def test_names_are_printable(name, shown):
    assert printable(name) == shown
    shown.encode()


def test_a_text_keeps_its_own_lines():
    assert printable_lines("one\ntwo\x1b") == "one\ntwo\\x1b"
