"""Rules for RNN, GRU and LSTM: all their rounds are written out, as their number is known.

What the inputs contribute to all rounds is one product; what is left in each is a product with the
state, and element-wise functions.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from .graph import Graph
from .nodes import Node, Refusal, rule

_MOST = 512
"""Rounds of the longest sequence that is written out."""

_DEFAULTS = {
    "RNN": ["Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
# What functions have for parameters, and their defaults.
_PARAMETERS: dict[str, dict[str, float | None]] = {
    "relu": {},
    "tanh": {},
    "sigmoid": {},
    "softsign": {},
    "softplus": {},
    "affine": {"alpha": None, "beta": None},
    "leakyrelu": {"alpha": 0.01},
    "thresholdedrelu": {"alpha": 1.0},
    "scaledtanh": {"alpha": None, "beta": None},
    "hardsigmoid": {"alpha": 0.2, "beta": 0.5},
    "elu": {"alpha": 1.0},
}
_OPERATORS = {
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softsign": "Softsign",
    "softplus": "Softplus",
    "leakyrelu": "LeakyRelu",
    "thresholdedrelu": "ThresholdedRelu",
    "hardsigmoid": "HardSigmoid",
    "elu": "Elu",
}

Function = Callable[[str], str]


class _Maker:
    """Adds nodes to a graph; numbers are constants of one type."""

    def __init__(self, graph: Graph, dtype: Any) -> None:
        self._graph = graph
        self._dtype = dtype

    def number(self, value: Any) -> str:
        return self._graph.constant(value, self._dtype)

    def __getattr__(self, kind: str) -> Callable[..., str]:
        return partial(self._graph.emit, kind)


@rule("RNN", "GRU", "LSTM")
def recurrent(graph: Graph, node: Node) -> list[str]:
    """Write all rounds one after the other, in each direction."""
    if node.get("input_forget"):
        raise Refusal("coupled gates (input_forget=1) are not supported")
    x, make = node.inputs[0], _Maker(graph, graph.dtype(node.inputs[0]))
    batch_first = bool(node.get("layout"))
    if batch_first:
        x = make.Transpose(x, perm=[1, 0, 2])
    rounds, batch, _ = graph.shape(x)
    if rounds > _MOST:
        raise Refusal(f"it has {rounds} rounds, which would all be written out: expected {_MOST}")
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    if (direction := node.get("direction")) not in directions:
        raise Refusal(f"its direction {direction!r} is unknown")
    functions = list(_functions(graph, node, make, len(directions[direction])))
    lengths = node.input(4)
    if lengths in graph.known and (graph.known[lengths] == rounds).all():
        lengths = ""
    alive = []  # Whether a round is one of the sequence, for each sequence of the batch.
    for number in range(rounds if lengths else 0):
        mask = make.Less(graph.constant(number, graph.dtype(lengths)), lengths)
        alive.append(make.Unsqueeze(mask, graph.constant([1], np.int64)))
    results = []
    for number, backwards in enumerate(directions[direction]):
        cell = _Cell(graph, node, make, number, functions[number])
        if batch_first and (node.input(5) or node.input(6)):
            cell.swap_states()
        order = range(rounds)[::-1] if backwards else range(rounds)
        results.append(cell.run(x, (rounds, batch), order, alive))
    first = graph.constant([0], np.int64)
    second = graph.constant([1], np.int64)
    # Those of all rounds are T, direction, N, H; the last ones direction, N, H.
    y = make.Concat(*(make.Unsqueeze(result[0], second) for result in results), axis=1)
    last = [
        make.Concat(*(make.Unsqueeze(state, first) for state in states), axis=0)
        for states in list(zip(*results, strict=True))[1:]
    ]
    if batch_first:
        y = make.Transpose(y, perm=[2, 0, 1, 3])
        last = [make.Transpose(state, perm=[1, 0, 2]) for state in last]
    return [y, *last]


def _functions(graph: Graph, node: Node, make: _Maker, directions: int) -> Iterator[list[Function]]:
    """Yield the functions of each direction."""
    defaults = _DEFAULTS[node.kind]
    names = node.attributes.get("activations") or defaults * directions
    if len(names) != len(defaults) * directions:
        raise Refusal(f"it has activations {names}: expected {len(defaults)} for each direction")
    # Parameters are for the functions that have some, one after the other.
    given = {
        f"activation_{name}": iter(node.attributes.get(f"activation_{name}") or [])
        for name in ("alpha", "beta")
    }
    made = []
    for name in names:
        kind = name.lower()
        if kind not in _PARAMETERS:
            raise Refusal(f"its activation {name!r} is unknown")
        values = {
            key: next(given[f"activation_{key}"], default)
            for key, default in _PARAMETERS[kind].items()
        }
        if None in values.values():
            raise Refusal(f"its activation {name!r} has no alpha or no beta")
        made.append(_function(make, kind, values))
    for direction in range(directions):
        yield made[direction * len(defaults) :][: len(defaults)]


def _function(make: _Maker, kind: str, values: dict[str, Any]) -> Function:
    if kind in _OPERATORS:
        return partial(getattr(make, _OPERATORS[kind]), **values)
    alpha, beta = (make.number(values[key]) for key in ("alpha", "beta"))
    if kind == "affine":
        return lambda x: make.Add(make.Mul(x, alpha), beta)
    return lambda x: make.Mul(make.Tanh(make.Mul(x, beta)), alpha)


class _Cell:
    """The rounds of one direction."""

    def __init__(
        self, graph: Graph, node: Node, make: _Maker, direction: int, functions: list[Function]
    ) -> None:
        self._graph, self._make, self._kind = graph, make, node.kind
        self._functions, self._clip = functions, node.attributes.get("clip")
        self._after = bool(node.get("linear_before_reset")) and node.kind == "GRU"
        self._w, self._r = (graph.value(node.inputs[i])[direction] for i in (1, 2))
        gates, self._size = _GATES[node.kind], self._r.shape[-1]
        bias = np.zeros((2, gates * self._size), self._w.dtype)
        if node.input(3):
            bias = graph.value(node.input(3))[direction].reshape(2, -1)
        self._bias = bias
        peepholes = graph.value(node.input(7))[direction] if node.input(7) else None
        self._peepholes = None if peepholes is None else np.split(peepholes, 3)
        self._initial = [
            self._state(node.input(index), direction) for index in (5, 6)[: 1 + self._is_lstm]
        ]
        self._given = [node.input(index) for index in (5, 6)[: 1 + self._is_lstm]]
        self._direction = direction

    @property
    def _is_lstm(self) -> bool:
        return self._kind == "LSTM"

    def _state(self, name: str, direction: int, axis: int = 0) -> str:
        """Return an initial state, empty if it is zero."""
        at = self._graph.constant(direction, np.int64)
        return self._make.Gather(name, at, axis=axis) if name else ""

    def swap_states(self) -> None:
        """Take initial states as N, direction, H."""
        self._initial = [self._state(name, self._direction, axis=1) for name in self._given]

    def run(
        self, x: str, sizes: tuple[int, int], order: range, alive: list[str]
    ) -> tuple[str, ...]:
        """Return the states of all rounds as one tensor, and the last ones."""
        make, (rounds, batch), size = self._make, sizes, self._size
        zeros = make.number(np.zeros((batch, size)))
        states = [state or zeros for state in self._initial]
        # All that is added to the gates without the state; what the reset gate scales is not.
        bias = self._bias.sum(0)
        if self._after:
            bias[2 * size :] -= self._bias[1, 2 * size :]
        inputs = make.Add(make.MatMul(x, make.number(self._w.T)), make.number(bias))
        made = [""] * rounds
        for number in order:
            at = self._graph.constant(number, np.int64)
            gates = make.Gather(inputs, at, axis=0)
            new = getattr(self, f"_{self._kind.lower()}")(gates, *states)
            made[number] = new[0]
            if alive:
                made[number] = make.Where(alive[number], new[0], zeros)
                new = [
                    make.Where(alive[number], after, before)
                    for after, before in zip(new, states, strict=True)
                ]
            states = new
        first = self._graph.constant([0], np.int64)
        y = make.Concat(*(make.Unsqueeze(name, first) for name in made), axis=0)
        return y, *states

    def _product(self, state: str, gates: slice) -> str:
        """Return the product of a state with the weights of some gates."""
        return self._make.MatMul(state, self._make.number(self._r[gates].T))

    def _parts(self, gates: str, count: int) -> list[str]:
        made = self._make.Split(gates, axis=1, num_outputs=count, outputs=count)
        return [made] if isinstance(made, str) else list(made)

    def _clipped(self, gate: str) -> str:
        if not self._clip:
            return gate
        low, high = (self._make.number(value) for value in (-self._clip, self._clip))
        return self._make.Clip(gate, low, high)

    def _rnn(self, gates: str, h: str) -> list[str]:
        (f,) = self._functions
        return [f(self._clipped(self._make.Add(gates, self._product(h, slice(None)))))]

    def _gru(self, gates: str, h: str) -> list[str]:
        make, size, (f, g) = self._make, self._size, self._functions
        update, reset, hidden = self._parts(gates, 3)
        both = self._product(h, slice(0, 2 * size))
        z, r = (
            f(self._clipped(make.Add(gate, part)))
            for gate, part in zip((update, reset), self._parts(both, 2), strict=True)
        )
        own = slice(2 * size, None)
        if self._after:
            biased = make.Add(self._product(h, own), make.number(self._bias[1, own]))
            scaled = make.Mul(r, biased)
        else:
            scaled = self._product(make.Mul(r, h), own)
        new = g(self._clipped(make.Add(hidden, scaled)))
        kept = make.Mul(make.Sub(make.number(1), z), new)
        return [make.Add(kept, make.Mul(z, h))]

    def _lstm(self, gates: str, h: str, c: str) -> list[str]:
        make, (f, g, last) = self._make, self._functions
        i, o, forget, cell = self._parts(make.Add(gates, self._product(h, slice(None))), 4)

        def seen(gate: str, state: str, index: int) -> str:
            if self._peepholes is None:
                return gate
            return make.Add(gate, make.Mul(state, make.number(self._peepholes[index])))

        i = f(self._clipped(seen(i, c, 0)))
        forget = f(self._clipped(seen(forget, c, 2)))
        new = make.Add(make.Mul(forget, c), make.Mul(i, g(self._clipped(cell))))
        o = f(self._clipped(seen(o, new, 1)))
        return [make.Mul(o, last(new)), new]
