"""Who takes part unless somebody says otherwise, in the order of tables and legends."""

from .base import ALL_PRODUCTS, IM2COL, Contestant
from .litert import LiteRt
from .mnn import Mnn
from .ncnn import Ncnn
from .onednn import OneDnn
from .onnxruntime import OnnxRuntime
from .openblas import Im2colSgemm, Sgemm
from .openvino import OpenVino
from .ours import TUNED, Ours
from .pytorch import Nnpack, PyTorch
from .tvm import Tuned, Untuned

_SUFFIX = ", defaults"
"""Of names of those that are given networks as users of the library run them."""

_NCNN = (
    Ncnn(name="ncnn, no Winograd", algorithm=IM2COL, winograd=False, colour="#c49c94"),
    Ncnn(),
)

LAYER_CONTESTANTS: tuple[Contestant, ...] = (
    Ours(),
    Ours(name=TUNED, blocking="auto", colour="#ff8c00", marker="D"),
    Im2colSgemm(),
    Sgemm(),
    OneDnn(),
    OneDnn(name="oneDNN, nChw16c", blocked=True, colour="#74a9cf"),
    OnnxRuntime(),
    OpenVino(),
    PyTorch(),
    LiteRt(),
    Untuned(),
    Tuned(),
    *_NCNN,
    Mnn(),
    Nnpack(),
)
"""All that compute layers, ours first."""

NETWORK_CONTESTANTS: tuple[Contestant, ...] = (
    Ours(blocking="auto"),
    OnnxRuntime(),
    OpenVino(),
    PyTorch(name="PyTorch", colour="#c51b7d"),
    LiteRt(),
    *_NCNN,
    Mnn(),
    OnnxRuntime(name=f"onnxruntime{_SUFFIX}", defaults=True, colour="#9edae5"),
    OpenVino(name=f"OpenVINO{_SUFFIX}", defaults=True, colour="#cab2d6"),
    PyTorch(name=f"PyTorch{_SUFFIX}", defaults=True, colour="#f1b6da"),
    LiteRt(name=f"XNNPACK{_SUFFIX}", defaults=True, colour="#98df8a"),
    Ncnn(name=f"ncnn{_SUFFIX}", defaults=True, colour="#b15928"),
    Mnn(name=f"MNN{_SUFFIX}", defaults=True, colour="#525252"),
)
"""All that can load networks, ours first.

All but ours twice: in the number type that is asked for, and as users run the library, which may
choose another one.
"""

_ALL = (*LAYER_CONTESTANTS, *NETWORK_CONTESTANTS)
_CLASSES = [*dict.fromkeys(map(type, _ALL))]

KNOWN = {each.name: each for each in sorted(_ALL, key=lambda each: _CLASSES.index(type(each)))}
"""By name, in the order of tables: forms of one library stand together."""

CHOOSING = tuple(
    name
    for name, each in KNOWN.items()
    if each in LAYER_CONTESTANTS and each.algorithm not in ALL_PRODUCTS
)
"""Names of those that need not compute all products of layers, whether they say so or not."""
