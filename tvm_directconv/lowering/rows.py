"""Words of rows: pixels below each other, for instructions that add up several products.

A depthwise convolution has no input channels to add up, but rows of the kernel. Pixels of as many
rows as a word has are loaded as vectors of neighbouring channels, and interleaved in registers.
What comes of it serves all columns of the kernel: products are taken in the order of the words that
they share, not of the sums that they go into.
"""

from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import sym, tirx
from tvm.ir.expr import Call, TensorLoad
from tvm.tirx import AllocBuffer, AttrStmt, BufferStore, Evaluate, For, IfThenElse, IntImm, PrimFunc

from .groups import of_lane
from .registers import ROWS_MARK, after_marks, pinned
from .statements import importing, product_of, sequence, tir_pass, uses, whole, with_body

# Of vectors of 8 bits, words of some channels. Pairs first: these serve several vectors of sums.
_INTERLEAVED = """
define <{bytes} x i8> @{name}({parameters}) alwaysinline {{
{pairs}
  %r = shufflevector <{paired} x i16> %p0, <{paired} x i16> %p1, <{twice} x i32> <{words}>
  %b = bitcast <{twice} x i16> %r to <{bytes} x i8>
  ret <{bytes} x i8> %b
}}
"""
_PAIR = """
  %b{n} = shufflevector <{width} x i8> {upper}, <{width} x i8> {lower}, <{size} x i32> <{pairs}>
  %p{n} = bitcast <{size} x i8> %b{n} to <{paired} x i16>
"""
_BORDERS = "directconv.borders"  # Around products, of rows inside the image and of others.
_DEPTH = 4  # rows in a word
_MOST_BYTES = 16  # of pixels that are loaded as one vector
_PAIRED = 8  # channels, at least, where as many are loaded


def _places(first: int, count: int, distance: int) -> str:
    """Return the elements of two vectors by turns, the second of which begins at a distance."""
    found = [n for at in range(first, first + count) for n in (at, at + distance)]
    return ", ".join(f"i32 {n}" for n in found)


def _function(
    width: int, lanes: int, part: int, places: tuple[int, ...], used: int
) -> tuple[str, str]:
    """Return name and code of what makes words of a part of the channels.

    Rows have these places in words. Others are in the padding: zeros; but from `used` on, where
    weights are zeros, they may be anything.
    """
    name = f"directconv_words{width}_{lanes}_{part}_{used}_" + "".join(map(str, places))
    rows = [f"%x{place}" if place in places else "zeroinitializer" for place in range(used)]
    rows += [rows[-1]] * (_DEPTH - used)
    paired = max(lanes, min(_PAIRED, width))
    begin = part * lanes // paired * paired
    pairs = ""
    for n in range(2):
        pairs += _PAIR.format(
            n=n,
            width=width,
            upper=rows[2 * n],
            lower=rows[2 * n + 1],
            size=2 * paired,
            paired=paired,
            pairs=_places(begin, paired, width),
        )
    code = _INTERLEAVED.format(
        name=name,
        parameters=", ".join(f"<{width} x i8> %x{row}" for row in places),
        pairs=pairs,
        paired=paired,
        words=_places(part * lanes - begin, lanes, paired),
        twice=2 * lanes,
        bytes=_DEPTH * lanes,
    )
    return name, code


@dataclass(frozen=True)
class _Row:
    """A row of a word: at which place, what is loaded, and on which condition."""

    place: int
    load: TensorLoad
    inside: Any  # None: always

    @property
    def first(self) -> Any:
        """The index of its first element. The others follow it: no vector begins within a block."""
        return of_lane(self.load.indices[0], 0)


def _rows_of(word: Any, place: int = 0) -> list[_Row]:
    """Return the rows of what stands for a word, see :func:`.compute.conv2d`."""
    if isinstance(word, tirx.BitwiseOr):
        return _rows_of(word.a, place) + _rows_of(word.b, place)
    if isinstance(word, tirx.LShift):
        bits = of_lane(word.b, 0)
        return _rows_of(word.a, place + int(bits) * _DEPTH // word.ty.dtype.bits)
    inside = None
    if isinstance(word, Call) and word.op.name == "prim.if_then_else":
        inside, word, _ = word.args
    if isinstance(word, tirx.Cast) and isinstance(word.value, TensorLoad):
        return [_Row(place, word.value, inside)]
    assert isinstance(word, tirx.Broadcast), f"no word of rows: {word}"
    return []


class _Words:
    """The words that some products multiply."""

    def __init__(self, used: int) -> None:
        self._used = used
        self._analyzer = sym.Analyzer()
        self._bases: list[Any] = []
        self.functions: dict[str, str] = {}
        self.conditions: dict[Any, Any] = {}

    def place(self, index: Any) -> tuple[int, int]:
        """Return the number of an index that is known, and the distance from it."""
        for number, base in enumerate(self._bases):
            distance = self._analyzer.simplify(index - base)
            if isinstance(distance, IntImm):
                return number, int(distance)
        self._bases.append(index)
        return len(self._bases) - 1, 0

    def interleaved(self, products: list[BufferStore]) -> list[Any]:
        """Return products in the order of their words, each of which is made once."""
        of_word: dict[Any, tuple[list[_Row], list[BufferStore]]] = {}
        for product in products:
            rows = _rows_of(product.value.b.a)
            if not rows:  # All are in the padding.
                continue
            key = tuple((row.place, *self.place(row.first)) for row in rows)
            of_word.setdefault(key, (rows, []))[1].append(product)
        for rows, _ in of_word.values():
            for row in rows:
                if row.inside is not None:
                    self.conditions.setdefault(tvm_ffi.StructuralKey(row.inside), row.inside)
        left = sorted(of_word)
        if not left:
            return [Evaluate(0)]
        fast: list[Any] = []
        masked: list[Any] = []
        while left:
            first = left[0]
            rows, stores = of_word[first]
            lanes = stores[0].value.ty.dtype.lanes
            keys = [first]
            while True:
                following = tuple((p, n, d + lanes * len(keys)) for p, n, d in first)
                if following not in of_word or (len(keys) + 1) * lanes > _MOST_BYTES:
                    break
                keys.append(following)
            while len(keys) & (len(keys) - 1):
                keys.pop()
            left = [key for key in left if key not in keys]
            for into, always in ((fast, True), (masked, False)):
                into += self._multiplied(rows, [of_word[key][1] for key in keys], always)
        if not self.conditions:
            return fast
        inside = tirx.all(*self.conditions.values())
        parted = IfThenElse(inside, sequence(fast), sequence(masked))
        return [AttrStmt(tirx.const(0, "int32"), _BORDERS, tirx.const(1, "int32"), parted)]

    def _multiplied(
        self, rows: list[_Row], stores: list[list[BufferStore]], always: bool
    ) -> list[Any]:
        """Return what makes neighbouring words, and the products of each."""
        lanes = stores[0][0].value.ty.dtype.lanes
        width = lanes * len(stores)
        pixels = [self._pixels(row, width, always) for row in rows]
        found: list[Any] = []
        for part, products in enumerate(stores):
            name, code = _function(width, lanes, part, tuple(row.place for row in rows), self._used)
            self.functions[name] = code
            words = tirx.call_extern(f"uint8x{_DEPTH * lanes}", name, *pixels)
            kind = str(products[0].value.ty.dtype)
            register = tirx.decl_buffer((lanes,), products[0].buffer.dtype, name="words")
            value = BufferStore(register, tirx.reinterpret(kind, words), whole(register))
            found += [AllocBuffer(register), value]
            for product in products:
                total = product.value
                word = tirx.BufferLoad(register, whole(register))
                value = total.a + word * total.b.b
                found.append(BufferStore(product.buffer, value, product.indices))
        sums = {product.buffer: None for products in stores for product in products}
        return found + [pinned(register) for register in sums]

    def _pixels(self, row: _Row, width: int, always: bool) -> Any:
        source, first = row.load.source, row.first
        if always or row.inside is None:
            return tirx.BufferLoad(source, [tirx.Ramp(first, 1, width)])
        # Padding adds nothing to the sums. Another place is read in its stead.
        first = tirx.Select(row.inside, first, tirx.const(0, first.ty.dtype))
        pixels = tirx.BufferLoad(source, [tirx.Ramp(first, 1, width)])
        ones = tirx.const(-1 if str(source.dtype) == "int8" else 255, source.dtype)
        mask = tirx.Select(row.inside, ones, tirx.const(0, source.dtype))
        return pixels & tirx.Broadcast(mask, width)


@tir_pass
def interleave_rows(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Make the words of rows that products read."""
    functions: dict[str, str] = {}

    def made(statements: list[Any], used: int) -> list[Any]:
        done: list[Any] = []
        run: list[BufferStore] = []

        def end_run() -> None:
            if run:
                words = _Words(used)
                done.extend(words.interleaved(run))
                functions.update(words.functions)
                run.clear()

        def alone(store: BufferStore) -> Any:
            return sequence(made([store], used)) if product_of(store) else store

        for statement in statements:
            if product_of(statement):
                run.append(statement)
            else:
                end_run()
                done.append(tvm_ffi.structural_map(statement, (BufferStore, alone)))
        end_run()
        return done

    found = after_marks(func, ROWS_MARK, made)
    if found.same_as(func):
        return func
    body = tvm_ffi.structural_map(found.body, (For, _parted))
    for code in functions.values():
        body = importing(code, body)
    module = tvm.IRModule({"main": found.with_body(body)})
    return tirx.transform.ConvertSSA()(module)["main"]


def _parted(loop: For) -> For:
    """Give rows of the output that read padding code of their own, where a loop counts them."""
    conditions: dict[Any, Any] = {}

    def note(border: AttrStmt) -> None:
        if border.attr_key == _BORDERS:
            condition = border.body.condition
            conditions.setdefault(tvm_ffi.StructuralKey(condition), condition)

    tvm_ffi.structural_walk(loop.body, (AttrStmt, note))
    if not any(uses(condition, loop.loop_var) for condition in conditions.values()):
        return loop

    def chosen(inside: bool) -> Any:
        def of(border: AttrStmt) -> Any:
            if border.attr_key != _BORDERS:
                return border
            return border.body.then_case if inside else border.body.else_case

        return tvm_ffi.structural_map(loop.body, (AttrStmt, of))

    body = IfThenElse(tirx.all(*conditions.values()), chosen(True), chosen(False))
    return with_body(loop, body)
