"""Workloads: fields, figures, descriptors, specs and the files of shapes."""

import dataclasses
import itertools
import pickle
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_directconv.errors import WorkloadError
from tvm_directconv.precision import PRECISIONS
from tvm_directconv.specs import load_shapes, networks, workloads
from tvm_directconv.workload import ConvWorkload

VGG_CONV3_2 = "ic256ih56oc256oh56kh3ph1"


def conv(**fields):
    """A small valid workload with some fields changed."""
    small = dict(in_channels=4, in_height=8, in_width=8, out_channels=6, kernel=3)
    return ConvWorkload(**(small | fields))


@st.composite
def any_workload(draw, largest=12):
    """Any valid workload with small sizes."""
    size = st.integers(1, largest)
    groups = draw(st.integers(1, 3))
    axes = []
    for _ in "hw":
        kernel, dilation, stride = draw(size), draw(st.integers(1, 3)), draw(st.integers(1, 5))
        extent = (kernel - 1) * dilation + 1
        before = draw(st.integers(0, extent - 1))
        after = draw(st.one_of(st.just(before), st.integers(0, extent - 1)))
        least = max(1, extent - before - after)
        in_size = draw(st.integers(least, least + largest))
        axes.append((in_size, kernel, stride, dilation, before, after))
    (ih, kh, sh, dh, top, bottom), (iw, kw, sw, dw, left, right) = axes
    return ConvWorkload(
        batch=draw(st.integers(1, 3)),
        in_channels=groups * draw(st.integers(1, 3)),
        in_height=ih,
        in_width=iw,
        out_channels=groups * draw(st.integers(1, 3)),
        kernel=(kh, kw),
        stride=(sh, sw),
        padding=(top, left, bottom, right),
        dilation=(dh, dw),
        groups=groups,
    )


# ---- fields and figures


def test_integers_and_pairs_are_normalised():
    w = conv(kernel=3, stride=[2, 1], padding=(1, 2), dilation=np.int64(1), batch=np.int32(2))
    assert (w.kernel, w.stride, w.dilation) == ((3, 3), (2, 1), (1, 1))
    assert w.padding == (1, 2, 1, 2)
    assert conv(padding=1).padding == (1, 1, 1, 1)
    assert conv(padding=(0, 1, 2, 1)).padding == (0, 1, 2, 1)
    assert type(w.batch) is int and all(type(n) is int for n in w.dilation)


def test_name_and_count_are_not_compared():
    named = conv(name="vgg16:conv3_2", count=2)
    assert named == conv() and hash(named) == hash(conv())
    assert named != conv(batch=2)
    assert (named.network, named.layer) == ("vgg16", "conv3_2")
    assert (conv(name="mine").network, conv(name="mine").layer) == ("", "mine")
    assert (conv().network, conv().layer) == ("", "")


def test_frozen_replaceable_and_picklable():
    w = conv(padding=(0, 1, 2, 1), name="a:b", count=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        w.batch = 2
    assert dataclasses.replace(w, batch=4).input_shape == (4, 4, 8, 8)
    copy = pickle.loads(pickle.dumps(w))
    assert dataclasses.asdict(copy) == dataclasses.asdict(w)


def test_figures_of_a_known_layer():
    w = ConvWorkload.parse(VGG_CONV3_2)
    assert w.input_shape == w.output_shape == (1, 256, 56, 56)
    assert w.weight_shape == (256, 256, 3, 3)
    assert w.flops == 2 * 256 * 256 * 9 * 56 * 56 == 3_699_376_128
    assert w.useful_flops == 2 * 256 * 256 * (3 * 56 - 2) ** 2
    assert w.input_bytes == w.output_bytes == 4 * 256 * 56 * 56
    assert w.weight_bytes == 4 * 256 * 256 * 9
    assert w.im2col_bytes == 9 * w.input_bytes
    for text, is_matrix in (("kh1", True), ("kh1sh2", False), ("kh3ph1", False)):
        pointwise = ConvWorkload.parse(f"ic8ih9oc4{text}")
        assert pointwise.is_matrix_product == is_matrix == (not pointwise.im2col_bytes)


def test_figures_with_batch_groups_stride_and_dilation():
    w = ConvWorkload(
        batch=2,
        in_channels=4,
        in_height=9,
        in_width=12,
        out_channels=6,
        kernel=(3, 2),
        stride=(1, 3),
        padding=(4, 0, 1, 1),
        dilation=(2, 1),
        groups=2,
    )
    assert w.dilated_kernel == (5, 2)
    assert (w.out_height, w.out_width) == (10, 4)
    assert w.weight_shape == (6, 2, 3, 2)
    assert w.output_shape == (2, 6, 10, 4)
    assert w.flops == 2 * (2 * 6 * 10 * 4) * (2 * 3 * 2)
    assert w.im2col_bytes == 4 * 2 * (4 * 3 * 2) * (10 * 4)


@given(any_workload(largest=6))
def test_useful_flops_counts_products_one_by_one(w):
    top, left, _, _ = w.padding
    # Whether a product is with padding follows from its row and its column apart.
    rows = columns = 0
    for y, r in itertools.product(range(w.out_height), range(w.kernel[0])):
        rows += 0 <= y * w.stride[0] + r * w.dilation[0] - top < w.in_height
    for x, s in itertools.product(range(w.out_width), range(w.kernel[1])):
        columns += 0 <= x * w.stride[1] + s * w.dilation[1] - left < w.in_width
    per_product = 2 * w.batch * w.out_channels * (w.in_channels // w.groups)
    assert w.useful_flops == per_product * rows * columns <= w.flops


WRONG_FIELDS = [
    (dict(in_channels=0), "in_channels is 0; expected a positive integer"),
    (dict(in_height=-8), "in_height is -8; expected a positive"),
    (dict(in_width=8.0), "in_width is 8.0; expected a positive"),
    (dict(out_channels="6"), "out_channels is '6'"),
    (dict(batch=True), "batch is True"),
    (dict(batch=np.True_), "batch is np.True_"),
    (dict(batch=None), "batch is None"),
    (dict(batch=2**31), "batch is 2147483648; expected at most 2147483647"),
    (dict(kernel=(3, 3, 3)), "kernel is (3, 3, 3); expected a positive integer or a pair"),
    (dict(kernel=(3, 0)), "kernel is 0"),
    (dict(kernel="33"), "kernel is '33'"),
    (dict(stride=0), "stride is 0"),
    (dict(stride=(1.5, 1)), "stride is 1.5"),
    (dict(dilation=()), "dilation is ()"),
    (dict(padding=-1), "padding is -1; expected an integer of 0 or more"),
    (dict(padding=(1, 1, 1)), "padding is (1, 1, 1); expected an integer, a pair"),
    (dict(padding=3), "the dilated kernel is 3x3; each padding must be smaller"),
    (dict(padding=(0, 0, 0, 3)), "padding is (0, 0, 0, 3)"),
    (dict(groups=4), "groups is 4, which does not divide out_channels = 6"),
    (dict(groups=3), "groups is 3, which does not divide in_channels = 4"),
    (
        dict(dtype="float61"),
        f"dtype is 'float61'; expected one of {', '.join(PRECISIONS)} (did you mean 'float16'?)",
    ),
    (dict(kernel=9), "the dilated kernel is 9x9 but the padded input is only 8x8"),
    (dict(dilation=(1, 4)), "the dilated kernel is 3x9"),
    (dict(in_height=2**16, in_width=2**16), "the input of shape (1, 4, 65536, 65536) has 171"),
    (dict(in_channels=2**16, out_channels=2**16, kernel=1), "the weight of shape"),
    (dict(out_channels=2**27), "the weight of shape (134217728, 4, 3, 3)"),
    (dict(batch=2**20, out_channels=100), "the output of shape"),
    (dict(name='a"b'), "name is 'a\"b'; expected printable text"),
    (dict(name="a,b"), "name is 'a,b'"),
    (dict(name="a\nb"), "name is 'a\\nb'"),
    (dict(name=None), "name is None"),
    (dict(count=0), "count is 0; expected a positive integer"),
]


@pytest.mark.parametrize("fields, message", WRONG_FIELDS, ids=str)
def test_wrong_fields(fields, message):
    with pytest.raises(WorkloadError) as error:
        conv(**fields)
    assert message in str(error.value)


# ---- descriptors


def test_canonical_descriptors():
    def vgg(**fields):
        sizes = dict(in_channels=256, in_height=56, in_width=56, out_channels=256, kernel=3)
        return str(ConvWorkload(**(sizes | dict(padding=1) | fields)))

    assert vgg() == VGG_CONV3_2
    assert vgg(batch=2, groups=4) == "g4mb2ic256ih56oc256oh56kh3ph1"
    assert vgg(in_width=28) == "ic256ih56iw28oc256oh56ow28kh3ph1"
    assert vgg(kernel=(3, 5), padding=(1, 2)) == "ic256ih56oc256oh56kh3kw5ph1pw2"
    assert vgg(stride=2, dilation=2, padding=2) == "ic256ih56oc256oh28kh3sh2ph2dh1"
    # The height is printed too where only the width is not the default.
    assert vgg(stride=(1, 2)) == "ic256ih56oc256oh56ow28kh3sh1sw2ph1"
    assert vgg(dilation=(1, 2), padding=(1, 2)) == "ic256ih56oc256oh56kh3ph1pw2dh0dw1"
    assert vgg(kernel=(1, 3), padding=(0, 1)) == "ic256ih56oc256oh56kh1kw3ph0pw1"
    assert vgg(padding=0) == "ic256ih56oc256oh54kh3"
    # Without ph0, a padding of 1 would be deduced from the output size.
    assert vgg(padding=(0, 0, 2, 2)) == "ic256ih56oc256oh56kh3ph0"


def test_what_a_descriptor_leaves_out():
    parse = ConvWorkload.parse
    w = parse("ic3ih9oc4kh3")
    assert (w.batch, w.groups, w.stride, w.padding, w.dilation) == (1, 1, (1, 1), (0,) * 4, (1, 1))
    assert (w.in_height, w.in_width, w.kernel) == (9, 9, (3, 3))
    assert parse("ic3iw9oc4kw3sw2pw1dw1") == parse("ic3ih9oc4kh3sh2ph1dh1")
    assert parse("ic3ih9iw7oc4kh3kw1sh2pw0ph1").padding == (1, 0, 1, 0)


def test_keys_in_any_order_with_underscores():
    w = ConvWorkload.parse("_dh1_ph2__kh3oh56_oc256ih56_ic256mb2_g4_")
    assert w == ConvWorkload.parse("g4mb2ic256ih56oc256oh56kh3ph2dh1")
    assert w.dilation == (2, 2)


@pytest.mark.parametrize(
    "descriptor, padding",
    [
        (VGG_CONV3_2, (1, 1, 1, 1)),
        # Symmetric padding is kept although the last row of it is not read.
        ("ic3ih224oc64oh112kh7sh2ph3", (3, 3, 3, 3)),
        # The padding at the bottom and right is the least that gives the output size.
        ("ic3ih224oc64oh112kh7sh2ph2", (2, 2, 3, 3)),
        ("ic3ih224oc32oh112kh3sh2ph0", (0, 0, 1, 1)),
        ("ic3ih8oc32oh8ow7kh3ph1", (1, 1, 1, 0)),
        # Without ph, half of what the output size needs.
        ("ic256ih56oc256oh56kh3", (1, 1, 1, 1)),
        ("ic3ih224oc64oh112kh7sh2", (2, 2, 3, 3)),
        ("ic256ih56oc512oh28kh1sh2", (0, 0, 0, 0)),
        ("ic1ih8oc1oh2kh1sh4", (0, 0, 0, 0)),
    ],
)
def test_padding_follows_from_the_output_size(descriptor, padding):
    assert ConvWorkload.parse(descriptor).padding == padding


@given(any_workload())
def test_descriptor_round_trip(w):
    parsed = ConvWorkload.parse(str(w))
    # The same computation: only padding that no output reads may differ.
    top, left, bottom, right = w.padding
    assert parsed.padding[:2] == (top, left)
    assert dataclasses.replace(parsed, padding=w.padding) == w
    assert parsed.output_shape == w.output_shape
    assert str(parsed) == str(w) == w.descriptor
    assert ConvWorkload.parse(str(parsed)) == parsed
    if (top, left) == (bottom, right):
        assert parsed == w


@given(
    any_workload(),
    st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters='"*,#')),
    st.integers(1, 2**31 - 1),
)
def test_line_round_trip(w, name, count):
    line = dataclasses.replace(w, name=name, count=count).to_line()
    parsed = ConvWorkload.parse(line)
    assert str(parsed) == str(w)
    assert (parsed.name, parsed.count) == ((name, count) if name else ("", 1))


def test_name_and_count_in_a_descriptor():
    for ending in ('n"conv3_2*3"', 'n"conv3_2"*3', '_n"conv3_2*3"'):
        w = ConvWorkload.parse(VGG_CONV3_2 + ending)
        assert (w.name, w.count) == ("conv3_2", 3)
        assert w.to_line() == VGG_CONV3_2 + 'n"conv3_2*3"'
    w = ConvWorkload.parse(VGG_CONV3_2 + 'n"vgg16:conv3_2"')
    assert (w.name, w.count, str(w)) == ("vgg16:conv3_2", 1, VGG_CONV3_2)
    assert w.to_line() == VGG_CONV3_2 + 'n"vgg16:conv3_2"'
    assert ConvWorkload.parse(VGG_CONV3_2).to_line() == VGG_CONV3_2


WRONG_DESCRIPTORS = [
    ("", "the descriptor is empty; expected one such as 'ic256ih56oc256oh56kh3ph1'"),
    ("_", "missing 'ic', 'oc', 'ih', 'kh'"),
    ("ic3oc4kh3", "missing 'ih'; ic, ih, oc and kh are needed, as in"),
    ("g1_mb1", "missing 'ic'"),
    ("ic3ih8oc4kh3zz1", "unknown key 'zz' at character 13; keys are g, mb, ic"),
    ("IC3ih8oc4kh3", "unknown key 'IC' at character 1; keys are"),
    ("IC3ih8oc4kh3", "did you mean 'ic'"),
    ("ic3ih8oc4kkh3", "did you mean 'kh'"),
    ("ic3ih8oc4kh3ic3", "key 'ic' at character 13 is given twice"),
    ("icih8oc4kh3", "key 'ic' at character 1 has no value"),
    ("ic3ih8oc4kh", "key 'kh' at character 10 has no value but ''"),
    ("ic-3ih8oc4kh3", "key 'ic' at character 1 has no value but '-3ih8oc4kh3'"),
    ("ic3 ih8oc4kh3", "unexpected ' ih8oc4kh3' at character 4"),
    ("ic3.5ih8oc4kh3", "unexpected '.5ih8oc4kh3' at character 4"),
    ("3ic3ih8oc4kh3", "unexpected '3ic3ih8oc4kh3' at character 1"),
    ("ic٣ih8oc4kh3", "key 'ic' at character 1 has no value"),
    ("ic3id8ih8oc4kh3", "'id' at character 4 belongs to 3-D convolutions; only 2-D"),
    ("ic3ih8oc4kh3kd3", "'kd' at character 13 belongs to 3-D"),
    ("ic0ih8oc4kh3", "ic is 0; expected a positive integer"),
    ("ic3ih8oc4kh3sh0", "sh is 0; expected a positive integer"),
    ("ic3ih8oc4oh0kh3", "oh is 0"),
    ("ic3ih8oc4kh3" + "0" * 5000 + "9" * 5000, "kh is 3000"),
    ("ic3ih8oc4kh2147483648", "kh is 2147483648; expected at most 2147483647"),
    ("ic3ih8oc4kh9", "the dilated kernel is 9x9 but the padded input is only 8x8"),
    ("ic3ih8oc4kh3dh3", "the dilated kernel is 9x9"),
    ("ic3ih8oc4kh3ph3", "padding is (3, 3, 3, 3)"),
    ("g2ic3ih8oc4kh3", "groups is 2, which does not divide in_channels = 3"),
    ("ic3ih8oc4oh5kh3ph1", "oh5 is impossible: ih8 with a dilated kernel of 3, sh1 and ph1 can "),
    ("ic3ih8oc4oh5kh3ph1", "can give oh7 to oh9; correct oh or leave it out"),
    ("ic3ih8oc4oh11kh3", "oh11 is impossible: ih8 with a dilated kernel of 3, sh1 can give oh6 to"),
    ("ic3ih8iw9oc4oh8kh1", "ow8 is impossible: iw9 with a dilated kernel of 1, sw1 can give ow9;"),
    (VGG_CONV3_2 + "n", "the name 'n' at character 25 is malformed"),
    (VGG_CONV3_2 + "nconv1", "the name 'nconv1' at character 25 is malformed"),
    (VGG_CONV3_2 + 'n""', "the name"),
    (VGG_CONV3_2 + 'n"a', "the name"),
    (VGG_CONV3_2 + 'n"a*"', "the name"),
    (VGG_CONV3_2 + 'n"a*b"', "the name"),
    (VGG_CONV3_2 + 'n"a*2"*2', "the name"),
    (VGG_CONV3_2 + 'n"a"mb2', "the name"),
    (VGG_CONV3_2 + 'n"a*0"', "count is 0; expected a positive integer"),
    (VGG_CONV3_2 + 'n"a#b"', "name is 'a#b'"),
    (7, "expected a descriptor such as 'ic256ih56oc256oh56kh3ph1', got 7"),
]


@pytest.mark.parametrize("text, message", WRONG_DESCRIPTORS, ids=lambda v: repr(v)[:50])
def test_wrong_descriptors(text, message):
    with pytest.raises(WorkloadError) as error:
        ConvWorkload.parse(text)
    assert message in str(error.value)


@given(st.text('gmbicohwksphd_n"*0123456789 ', max_size=40))
def test_any_text_is_a_descriptor_or_a_workload_error(text):
    try:
        parsed = ConvWorkload.parse(text)
    except WorkloadError as error:
        assert not text or repr(text) in str(error)
    else:
        assert str(ConvWorkload.parse(str(parsed))) == str(parsed)


# ---- specs


def names(spec):
    return [w.name for w in workloads(spec)]


def test_a_network():
    vgg = workloads("vgg16")
    assert [w.layer for w in vgg] == [
        "conv1_1",
        "conv1_2",
        "conv2_1",
        "conv2_2",
        "conv3_1",
        "conv3_2",
        "conv4_1",
        "conv4_2",
        "conv5_1",
    ]
    assert [w.count for w in vgg] == [1, 1, 1, 1, 1, 2, 1, 2, 3]
    assert {w.network for w in vgg} == {"vgg16"}
    assert str(vgg[5]) == VGG_CONV3_2
    assert workloads("vgg16:*") == vgg


def test_layers():
    assert names("vgg16:conv3_*") == ["vgg16:conv3_1", "vgg16:conv3_2"]
    assert names("*:conv1") == [f"{n}:conv1" for n in networks() if n != "vgg16"]
    assert len(names("googlenet:3a_*")) == 6
    # conv3_3 is the same convolution as conv3_2, under its own name.
    (alias,) = workloads("vgg16:conv3_3")
    assert (alias.name, alias.count) == ("vgg16:conv3_3", 1)
    assert alias == workloads("vgg16:conv3_2")[0]
    assert names("vgg16:*_3") == ["vgg16:conv3_3", "vgg16:conv4_3", "vgg16:conv5_3"]


def test_several_specs():
    three = ["alexnet:conv1", "", "vgg16:conv1_1"]
    assert names("alexnet:conv1 , ic3ih8oc4kh3,vgg16:conv1_1") == three
    assert names(["alexnet:conv1,ic3ih8oc4kh3", "vgg16:conv1_1"]) == three
    mine = conv(name="mine")
    assert workloads(mine) == [mine]
    assert names((mine, "alexnet:conv2", conv(name="other"))) == ["mine", "alexnet:conv2", "other"]


def test_repeated_convolutions_come_once():
    assert names("alexnet:conv2,alexnet,alexnet") == [f"alexnet:conv{i}" for i in (2, 1, 3, 4, 5)]
    assert len(workloads("ic3ih8oc4kh3,ic3ih8oc4oh6kh3")) == 1
    # The largest count wins: the layer alone is one, in its network it stands for two.
    assert [w.count for w in workloads("vgg16:conv3_2")] == [1]
    assert {w.name: w.count for w in workloads("vgg16:conv3_2,vgg16")}["vgg16:conv3_2"] == 2


def test_a_file(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(
        '# my layers\n\nic3ih8oc4kh3n"first*2"  # a comment\n  alexnet:conv1\nvgg16:conv3_*\n'
    )
    assert names(f"@{file}") == ["first", "alexnet:conv1", "vgg16:conv3_1", "vgg16:conv3_2"]
    assert names(f"alexnet:conv2,@{file}")[:2] == ["alexnet:conv2", "first"]


WRONG_SPECS = [
    ("", "'' is not a convolution; expected a network (alexnet, googlenet, mobilenetv1, resnet50"),
    ("alexnet,", "'' is not a convolution"),
    ([], "no convolution is given; expected a network"),
    (None, "cannot use None as a convolution"),
    ([3], "cannot use 3 as a convolution"),
    ("resnet5", "unknown network 'resnet5'; expected a network (alexnet"),
    ("resnet5", "did you mean 'resnet50'"),
    ("VGG16", "did you mean 'vgg16'"),
    ("mobilenet:dw1", "did you mean 'mobilenetv1'"),
    ("lenet*", "unknown network 'lenet*'"),
    ("alexnet vgg16", "unknown network 'alexnet vgg16'"),
    ("vgg16:conv3_9", "no layer of vgg16 matches 'conv3_9'"),
    ("vgg16:conv3_9", "did you mean 'conv3_3' or 'conv3_2' or 'conv3_1'?"),
    ("vgg16:", "no layer of vgg16 matches ''; use a layer's name, conv1_1 to conv5_3, a pattern"),
    ("vgg16:", "a pattern such as 'conv5_*', or '*' for all"),
    ("*:nothing", "no layer of alexnet, googlenet, mobilenetv1, resnet50, vgg16 matches"),
    ("ic3ih8oc4", "descriptor 'ic3ih8oc4': missing 'kh'"),
    ('alexnet:conv1n"a"', "descriptor 'alexnet:conv1n\"a\"': "),
    ("@", "cannot read the shapes file '.'"),
    ("@no/such/file.txt", "cannot read the shapes file 'no/such/file.txt': No such file"),
    ("@a\0b", "cannot read the shapes file"),
]


@pytest.mark.parametrize("spec, message", WRONG_SPECS, ids=repr)
def test_wrong_specs(spec, message):
    with pytest.raises(WorkloadError) as error:
        workloads(spec)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"# one\nic3ih8oc4kh3\nic3ih8\n", "mine.txt:3: descriptor 'ic3ih8': missing 'oc', 'kh'"),
        (b"vgg16:conv9\n", "mine.txt:1: no layer of vgg16 matches 'conv9'"),
        (b"@mine.txt\n", "mine.txt:1: '@mine.txt' is not a convolution"),
        (b"alexnet,vgg16\n", "mine.txt:1: unknown network 'alexnet,vgg16'"),
        (b"# nothing\n", "mine.txt' holds no convolution"),
        (b"\xff\xfe", "it is not UTF-8 text: invalid start byte at byte 0"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    file = tmp_path / "mine.txt"
    file.write_bytes(content)
    with pytest.raises(WorkloadError) as error:
        workloads(f"@{file}")
    assert message in str(error.value)


# ---- files of shapes


def test_load_shapes_merges_equal_convolutions(tmp_path):
    file = tmp_path / "mine.txt"
    lines = [conv(name="a").to_line(), conv(batch=2, name="b").to_line()]
    lines.append(conv(name="c", count=3).to_line())
    file.write_text("\n".join(lines))
    assert [(w.name, w.count) for w in load_shapes(file)] == [("a", 4), ("b", 1)]
    assert load_shapes(str(file)) == [conv(), conv(batch=2)]
    file.write_text("alexnet:conv1\n")
    with pytest.raises(WorkloadError, match=r"mine\.txt:1: descriptor 'alexnet:conv1'"):
        load_shapes(file)


NETWORKS = {
    # network: different convolutions, layers, weights and nominal FLOPs of all layers
    "alexnet": (5, 5, 3_745_824, 2_153_268_288),
    "googlenet": (49, 57, 5_966_272, 3_163_295_744),
    "mobilenetv1": (19, 27, 3_185_088, 1_135_432_704),
    "resnet50": (23, 53, 23_454_912, 8_174_272_512),
    "vgg16": (9, 13, 14_710_464, 30_693_261_312),
}


def test_networks():
    assert networks() == sorted(NETWORKS)
    assert sum(different for different, *_ in NETWORKS.values()) == 105


@pytest.mark.parametrize("network", NETWORKS)
def test_totals_of_networks(network):
    found = workloads(network)
    weights = sum(w.count * w.weight_bytes // 4 for w in found)
    flops = sum(w.count * w.flops for w in found)
    layers = sum(w.count for w in found)
    assert (len(found), layers, weights, flops) == NETWORKS[network]


@pytest.mark.parametrize("network", NETWORKS)
def test_shapes_files_are_canonical(network):
    """Each line is what to_line prints, and each layer has one name, with its network's name."""
    text = resources.files("tvm_directconv.shapes").joinpath(f"{network}.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [ConvWorkload.parse(line) for line in lines]
    assert [w.to_line() for w in found] == lines
    assert {w.network for w in found} == {network}
    assert len({w.layer for w in found}) == len(found)
