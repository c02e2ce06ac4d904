"""Who takes part unless somebody says otherwise."""

from .base import IM2COL, Contestant
from .litert import LiteRt
from .mnn import Mnn
from .ncnn import Ncnn
from .onednn import OneDnn
from .onnxruntime import OnnxRuntime
from .openblas import Im2colSgemm, Sgemm
from .openvino import OpenVino
from .ours import Ours
from .pytorch import Nnpack, PyTorch
from .tvm import Tuned, Untuned

_NCNN = (Ncnn(), Ncnn(name="ncnn, no Winograd", algorithm=IM2COL, winograd=False))

LAYER_CONTESTANTS: tuple[Contestant, ...] = (
    Ours(),
    Im2colSgemm(),
    Sgemm(),
    OneDnn(),
    OneDnn(name="oneDNN, nChw16c", blocked=True),
    OnnxRuntime(),
    OpenVino(),
    PyTorch(),
    LiteRt(),
    *_NCNN,
    Mnn(),
    Nnpack(),
    Untuned(),
)
"""All that need no tuning, ours first."""

TUNED_CONTESTANTS: tuple[Contestant, ...] = (Ours(name="ours, tuned", blocking="auto"), Tuned())
"""Ours with block sizes of tuning logs, and TVM's own tuner, which takes minutes for a layer."""

NETWORK_CONTESTANTS: tuple[Contestant, ...] = (
    Ours(blocking="auto"),
    OnnxRuntime(),
    OpenVino(),
    PyTorch(name="PyTorch"),
    LiteRt(),
    *_NCNN,
    Mnn(),
)
"""All that can load networks, ours first."""
