"""What errors say: one line, which can be printed."""

import pickle

import pytest
from tvm import s_tir
from tvm.script import tirx as T

from tvm_directconv import errors
from tvm_directconv.network import rewriter


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("one\n  two\r\n\nthree\n", "one two three"),
        ("a\x1b[31m, a\0 and \u202e", r"a\x1b[31m, a\x00 and \u202e"),
        ("half of \ud83d, na\u00efve", r"half of \ud83d, na\u00efve".replace(r"\u00ef", "\u00ef")),
        ("key 'x" + "y" * 70_000 + "z': no", "key 'x" + "y" * 398 + " ... " + "y" * 197 + "z': no"),
        ("word " * 500, ("word " * 500).strip()),
    ],
)
def test_messages_are_of_one_line(said: str, shown: str) -> None:
    for kind in (errors.DirectConvError, errors.ModelError, errors.LibraryError):
        error = kind(said)
        assert str(error) == shown and shown.isprintable()
        assert str(pickle.loads(pickle.dumps(error))) == shown


def test_what_is_said_by_others() -> None:
    assert errors.said_by(ValueError("code\n    more\nwhy\n\n")) == "ValueError: why"
    assert errors.said_by(ValueError("why\nThe IR with diagnostic is:\ncode")) == "ValueError: why"
    assert errors.said_by(KeyError()) == "KeyError"
    assert errors.said_by(errors.ModelError("why")) == "why"


@T.prim_func(s_tir=True)
def _nothing(x: T.Buffer((4,), "float32")) -> None:
    for i in range(4):
        with T.sblock("b"):
            v = T.axis.spatial(4, i)
            x[v] = 1.0


def test_tvms_errors_are_not_taken_for_ours() -> None:
    with (
        pytest.raises(errors.ModelError, match=r"^it cannot be compiled by TVM .*name: none\)$"),
        rewriter.compiling("it"),
    ):
        s_tir.Schedule(_nothing).get_sblock("none")
