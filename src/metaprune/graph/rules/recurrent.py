"""Recurrent layers: the input is contracted, and one hidden unit is the same row of every gate, layer and direction.

A dropped unit stays at its initial state times a factor, and that state is zero where it is dropped: cutting is exact.
"""

from __future__ import annotations

from torch import fx

from metaprune.graph.call import Call, Dim, Labels
from metaprune.graph.labels import Label, merge_labels, stack_labels
from metaprune.graph.rules.contraction import dims_of
from metaprune.graph.rules.registry import rule

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*GATES)
def recurrent(call: Call) -> list[Labels | None]:
    """input [T, B, I], hx [L * D, B, H] (LSTM: two), params: w_ih, w_hh (and biases) per layer and direction."""
    per_cell = 4 if call["has_biases"] else 2
    directions = 2 if call["bidirectional"] else 1
    cells = call["num_layers"] * directions
    projected = call.name == "lstm" and len(call["params"]) == (per_cell + 1) * cells
    if call["data"] is not None or len(call["params"]) != (per_cell + projected) * cells:
        return call.lock_all()  # packed sequences
    per_cell += projected
    x = call["input"]
    labels, hidden = call.labels(x), call.shape(call["params"][0])[0] // GATES[call.name]
    for label in labels[:-1]:
        call.lock(label, "steps of a sequence")
    unit = call.fresh(hidden)
    given = call.fresh(call.shape(call["params"][1])[1]) if projected else unit  # what a cell hands on
    gates = merge_labels([(None, GATES[call.name]), (unit, hidden)])
    steps = [Dim(None, size) for size in call.symbolic(x)[:-1]]
    entering = labels[-1]
    for layer in range(call["num_layers"]):
        for cell in range(directions):
            start = (layer * directions + cell) * per_cell
            w_ih, w_hh, *biases = call["params"][start : start + per_cell]
            if projected:
                call.macs(*steps, *_projection(call, biases.pop(), given, unit, start + per_cell - 1))
            call.equate(call.labels(w_ih)[1], entering)
            call.equate(call.labels(w_hh)[1], given)
            for tensor in (w_ih, w_hh, *biases):
                call.equate(call.labels(tensor)[0], gates)
            call.consume("params", 1, start)
            call.consume("params", 1, start + 1)
            for weight, inner in ((w_ih, entering), (w_hh, given)):
                rows, columns = dims_of([gates, inner], call.shape(weight))
                call.macs(*steps, rows, columns)
        entering = stack_labels([(given, len(given))] * directions)
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    kinds = [given, unit][: len(states)]
    for state, label in zip(states, kinds, strict=True):
        call.equate(call.labels(state)[-1], label)
    lead: Labels = [None] * (len(labels) - 1)
    return [[*lead, entering], *[[*lead, label] for label in kinds]]


def _projection(call: Call, weight: fx.Node, given: Label, unit: Label, position: int) -> list[Dim]:
    """Tie the projection [P, H] of an LSTM's units; returns the sizes of its product."""
    rows, columns = call.labels(weight)
    call.equate(rows, given)
    call.equate(columns, unit)
    call.consume("params", 1, position)
    return dims_of([given, unit], call.shape(weight))


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(call: Call) -> Labels | list[Labels | None]:
    """input [B, I], hx [B, H] (LSTM: two), w_ih [G * H, I], w_hh [G * H, H]."""
    x, w_ih, w_hh = call["input"], call["w_ih"], call["w_hh"]
    labels, hidden = call.labels(x), call.shape(w_hh)[1]
    unit = call.fresh(hidden)
    gates = merge_labels([(None, GATES[call.name.removesuffix("_cell")]), (unit, hidden)])
    call.equate(call.labels(w_ih)[1], labels[-1])
    call.equate(call.labels(w_hh)[1], unit)
    biases = [call[name] for name in ("b_ih", "b_hh") if call[name] is not None]
    for tensor in (w_ih, w_hh, *biases):
        call.equate(call.labels(tensor)[0], gates)
    for weight, inner in ((w_ih, labels[-1]), (w_hh, unit)):
        rows, columns = dims_of([gates, inner], call.shape(weight))
        call.macs(*[Dim(label, n) for label, n in zip(labels[:-1], call.symbolic(x)[:-1], strict=True)], rows, columns)
    call.consume("w_ih", 1)
    call.consume("w_hh", 1)
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    for state in states:
        call.equate(call.labels(state)[-1], unit)
    out = [*labels[:-1], unit]
    return [list(out) for _ in states] if call.name == "lstm_cell" else out
