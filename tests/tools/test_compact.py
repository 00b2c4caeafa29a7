"""JSON that reads as a table."""

import json

import pytest

from sparsedrop.tools import compact


def test_plain_values_stand_on_a_line():
    text = compact.dumps({"rows": [{"a": 1, "b": [1, 2]}, {"a": 2.5, "c": None}], "name": "x"})
    assert text.splitlines() == [
        "{",
        ' "rows": [',
        "  {",
        '   "a": 1,',
        '   "b": [1, 2]',
        "  },",
        '  {"a": 2.5, "c": null}',
        " ],",
        ' "name": "x"',
        "}",
    ]


@pytest.mark.parametrize(
    "data",
    [{}, [], 3, None, {"a": {}}, ["a ]", "{ b"], {"s": "x \n ] [ {", "t": " } "}, [[], [[1]]]],
    ids=str,
)
def test_it_is_the_same_data(data):
    assert json.loads(compact.dumps(data)) == data
