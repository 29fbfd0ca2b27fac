"""Recurrent layers: the input is contracted, and one hidden unit is the same row of every gate, layer and direction.

A dropped unit stays at its initial state times a factor, and that state is zero where it is dropped: cutting is exact.
"""

from __future__ import annotations

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
    if call["data"] is not None or len(call["params"]) != per_cell * call["num_layers"] * directions:
        return call.lock_all()  # packed sequences; LSTM with projections
    x = call["input"]
    labels, hidden = call.labels(x), call.shape(call["params"][1])[1]
    for label in labels[:-1]:
        call.lock(label, "steps of a sequence")
    unit: Label = call.fresh(hidden)
    gates = merge_labels([(None, GATES[call.name]), (unit, hidden)])
    steps = [Dim(None, size) for size in call.symbolic(x)[:-1]]
    entering = labels[-1]
    for layer in range(call["num_layers"]):
        for cell in range(directions):
            start = (layer * directions + cell) * per_cell
            w_ih, w_hh, *biases = call["params"][start : start + per_cell]
            call.equate(call.labels(w_ih)[1], entering)
            call.equate(call.labels(w_hh)[1], unit)
            for tensor in (w_ih, w_hh, *biases):
                call.equate(call.labels(tensor)[0], gates)
            call.consume("params", 1, start)
            call.consume("params", 1, start + 1)
            for weight, inner in ((w_ih, entering), (w_hh, unit)):
                rows, columns = dims_of([gates, inner], call.shape(weight))
                call.macs(*steps, rows, columns)
        entering = stack_labels([(unit, hidden)] * directions)
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    for state in states:
        call.equate(call.labels(state)[-1], unit)
    lead: Labels = [None] * (len(labels) - 1)
    return [[*lead, entering], *[[*lead, unit] for _ in states]]
