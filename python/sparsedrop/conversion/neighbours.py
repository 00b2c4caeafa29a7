"""What stands before and behind a dropout, for the sentence that says why it stays."""

from __future__ import annotations

from sparsedrop.conversion import kinds
from sparsedrop.conversion.flow import Call, Value

ATTENTION = "it drops attention probabilities, which no linear layer makes or reads"

FUNCTIONAL_LINEAR = "a call of F.linear cannot be swapped on an instance: make it an nn.Linear"


def why_it_stays(call: Call) -> str | None:
    """Why a dropout cannot hand its work over, whatever is around it; None where it can."""
    assert call.module is not None
    value = call.inputs[0] if call.inputs else None
    if value is not None and value.overwritten_by is not None:
        return (
            f"what it drops is written in place later, by {value.overwritten_by.what}, and what it "
            "leaves would be the same memory"
        )
    return kinds.why_not_dropout(call.module)


def behind(call: Call) -> list[Call]:
    """What reads a result, also in another shape."""
    found: list[Call] = []
    values = list(call.outputs)
    while values:
        for reader in values.pop().consumers:
            if reader.kind in ("reshape", "rearrangement"):
                values += reader.outputs
            else:
                found.append(reader)
    return found


def before(call: Call) -> Call | None:
    """What makes the value that is dropped."""
    value: Value | None = call.inputs[0] if call.inputs else None
    while value is not None and value.producer is not None and value.producer.kind == "reshape":
        value = value.producer.inputs[0]
    return None if value is None else value.producer


def linears_beside(call: Call) -> list[Call]:
    """The linear layers, modules and functions, among these."""
    maker = before(call)
    beside = [*behind(call), *([maker] if maker is not None else [])]
    return [other for other in beside if other.kind in ("linear", "functional linear")]


def drops_attention(call: Call) -> bool:
    """Whether what is dropped comes from a softmax, with no linear layer next to it."""
    maker = before(call)
    return maker is not None and maker.what == "softmax" and not linears_beside(call)


def why_no_way(call: Call) -> str:
    """Why no linear layer can do what a dropout does, from what is around it."""
    maker, readers = before(call), behind(call)
    made = "an input of the model" if maker is None else maker.what
    names = list(dict.fromkeys(other.what for other in readers)) or ["nobody"]
    linears = [other for other in readers if other.kind == "linear"]
    if linears:
        others = [name for name in names if name != linears[0].what]
        return f"what {linears[0].what} reads is used elsewhere, too: by {_some(others)}"
    if maker is not None and maker.kind == "linear":
        whats = [reader.what for value in maker.outputs for reader in value.consumers]
        others = list(dict.fromkeys(what for what in whats if what != call.what))
        return f"the output of {made} is used elsewhere, too: by {_some(others)}"
    for other in (*readers, *([maker] if maker is not None else [])):
        if other.kind == "functional linear":
            why = None if other.module is None else kinds.why_not_linear(other.module)
            return why or FUNCTIONAL_LINEAR
        if other.kind == "block":
            return f"{other.what} is next to it, which is {kinds.CONVERTED}"
    if drops_attention(call):
        return ATTENTION
    return (
        f"no linear layer before it or behind it: it drops what {made} makes, and "
        f"{_some(names)} {'reads' if len(names) == 1 else 'read'} it"
    )


def _some(names: list[str]) -> str:
    """The first few; without any it is the same layer that reads a value twice."""
    if len(names) > 3:
        names = [*names[:2], f"{len(names) - 2} others"]
    *first, last = names or ["itself"]
    return f"{', '.join(first)} and {last}" if first else last
