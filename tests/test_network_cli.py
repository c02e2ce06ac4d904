"""The command line with models and compiled networks."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import FOREIGN, Command
from onnx_models import Graph, by_onnxruntime, random_inputs, saved
from PIL import Image
from quantized_models import QDQ, Quantized

import tvm_directconv as dc
from tvm_directconv import compile_network, manifest
from tvm_directconv.bench import peak
from tvm_directconv.cli import main
from tvm_directconv.network.network import load_network

SMALL = "ic16ih9oc16oh9kh3ph1"
STEP_KEYS = {
    "step",
    "kernel",
    "workload",
    "epilogue",
    "seconds_p50",
    "share",
    "gflops",
    "of_peak",
    "blocking_source",
}


def picture() -> Graph:
    """Make a network that takes an image."""
    return Graph(image=(1, 3, 8, 10))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models, and libraries of them."""
    folder = tmp_path_factory.mktemp("networks")
    g = picture()
    y = g.node("Relu", g.conv("image", 16, 3, 3, 3, bias=True, pads=[1] * 4))
    y = g.node("Flatten", g.node("GlobalMaxPool", g.conv(y, 16, 16, 3, 3, pads=[1] * 4)))
    models = {"net": g.model(y)}
    g = Graph(a=(1, 3, 4), b=(2, 3, 4))
    models["two"] = g.model(g.node("Add", "a", "b"), g.node("Neg", "a"))
    g = Graph(x=("batch", 3, None, 10))
    models["open"] = g.model(g.conv("x", 8, 3, 3, 3))
    g = picture()
    models["same"] = g.model(g.node("Identity", "image"))
    g = picture()
    models["strange"] = g.model(g.node("Mystery", "image", domain="com.acme"), domains=["com.acme"])
    for name, model in models.items():
        shutil.move(saved(model, folder), folder / f"{name}.onnx")
    for name in ("net", "two", "same"):
        assert (
            main(["compile", str(folder / f"{name}.onnx"), "-o", str(folder / f"{name}.so")]) == 0
        )
    command = ["compile", str(folder / "net.onnx"), "--device", FOREIGN]
    assert main([*command, "-o", str(folder / "foreign.so")]) == 0
    assert main(["compile", SMALL, "-o", str(folder / "conv.so")]) == 0
    inputs = random_inputs(load_network(folder / "net.so").manifest.inputs)
    np.save(folder / "x.npy", inputs[0])
    np.savez(folder / "x.npz", image=inputs[0], more=np.zeros(3))
    (expected,) = by_onnxruntime(models["net"], inputs)
    np.save(folder / "y.npy", expected)
    np.save(folder / "wrong.npy", expected + 1)
    np.savez(folder / "named.npz", **{models["net"].graph.output[0].name: expected})
    np.save(folder / "shape.npy", np.zeros((1, 3, 8, 9), np.float32))
    np.save(folder / "double.npy", inputs[0].astype(float))
    np.savez(folder / "other.npz", other=inputs[0])
    (folder / "folder.onnx").mkdir()
    (folder / "bad.npy").write_text("nothing")
    (folder / "bad.png").write_text("nothing")
    (folder / "bad.onnx").write_text("nothing")
    (folder / "stale.so").write_bytes((folder / "net.so").read_bytes())
    shutil.copy(folder / "two.so.json", folder / "stale.so.json")
    pixels = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
    Image.fromarray(pixels).save(folder / "image.png")
    Image.fromarray(pixels[..., 0]).save(folder / "gray.png")
    Image.fromarray(np.full((50, 70, 3), 128, np.uint8)).save(folder / "large.bmp")
    return folder


@pytest.fixture
def run(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Command) -> Command:
    """Run the command line in a folder with these files."""
    for path in shared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return run


# --- compile ----------------------------------------------------------------------------------


def test_compile_tells_where_memory_goes(run: Command) -> None:
    status, out, err = run("compile", "net.onnx", "-o", "a.so")
    assert (status, err) == (0, "")
    manifest = load_network("a.so").manifest
    assert f"{len(manifest.layers)} steps with 2 convolutions" in out
    for name, size in manifest.memory().items():
        assert name in out and f"{size:,}" in out
    assert f"{manifest.unshared_bytes:,}" in out and f"{manifest.im2col_bytes:,}" in out


def test_compile_with_a_size(run: Command) -> None:
    status, _, err = run("compile", "open.onnx", "-o", "a.so", "--input-shape", "x:2,3,7,10")
    assert (status, err) == (0, "")
    assert load_network("a.so").manifest.inputs[0].shape == (2, 3, 7, 10)


def test_compile_with_a_value(run: Command, tmp_path: Path) -> None:
    g = Graph(x=(2, 3), factor=(1,))
    onnx.save(g.model(g.node("Mul", "x", "factor")), "scaled.onnx")
    assert run("compile", "scaled.onnx", "-o", "a.so", "--input-value", "factor=2.5")[0] == 0
    network = load_network("a.so")
    assert [port.name for port in network.manifest.inputs] == ["x"]
    np.testing.assert_array_equal(network.run(np.ones((2, 3), np.float32)), np.full((2, 3), 2.5))


def test_compile_with_options(run: Command) -> None:
    words = ("--threads", "2", "--blocking", "model")
    assert run("compile", "net.onnx", "-o", "a.so", *words)[0] == 0
    manifest = load_network("a.so").manifest
    assert manifest.threads == 2
    assert {x.blocking_source for x in manifest.layers if x.workload} == {"model"}
    assert run("run", "a.so", "--input", "x.npy", "--expect", "y.npy")[0] == 0


# --- run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("emulate", [[], ["--emulate"]], ids=["here", "emulated"])
@pytest.mark.parametrize("expected", ["y.npy", "named.npz"])
@pytest.mark.parametrize("given", ["x.npy", "x.npz"])
def test_run_compares(run: Command, given: str, expected: str, emulate: list[str]) -> None:
    status, out, err = run("run", "net.so", "--input", given, "--expect", expected, *emulate)
    assert (status, err) == (0, "")
    assert "max_error 0\n" in out and "seconds " in out


@pytest.mark.parametrize("emulate", [[], ["--emulate"]], ids=["here", "emulated"])
def test_run_notices_wrong_results(run: Command, emulate: list[str]) -> None:
    status, out, _ = run("run", "net.so", "--input", "x.npy", "--expect", "wrong.npy", *emulate)
    assert status == 1
    assert "expected up to 0.0001" in out


def test_run_for_another_processor(run: Command) -> None:
    words = ("run", "foreign.so", "--input", "x.npy", "--expect", "y.npy")
    status, out, _ = run(*words, "--emulate")
    assert status == 0 and "qemu" in out
    status, _, err = run(*words)
    assert status == 2 and f"built for {FOREIGN}" in err and "run --emulate" in err


def test_run_reads_the_library_once(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's library has its weights in it, so its SHA-256 takes a while."""
    digest, read = manifest.digest_of, []
    monkeypatch.setattr(manifest, "digest_of", lambda path: read.append(path) or digest(path))
    for emulate in ([], ["--emulate"]):
        assert run("run", "net.so", *emulate)[0] == 0
        assert read == [Path("net.so")]
        read.clear()


def test_run_on_random_input(run: Command) -> None:
    status, out, _ = run("run", "net.so")
    assert status == 0
    assert "index" in out and "value" in out  # The five largest of the classes.
    assert run("run", "net.so", "--output", "a.npy")[0] == 0
    assert run("run", "net.so", "--expect", "a.npy")[0] == 0
    assert run("run", "net.so", "--seed", "1", "--expect", "a.npy")[0] == 1


def test_run_writes_outputs(run: Command) -> None:
    assert run("run", "net.so", "--input", "x.npy", "--output", "a.npy")[0] == 0
    np.testing.assert_array_equal(np.load("a.npy"), np.load("y.npy"))
    manifest = load_network("two.so").manifest
    assert run("run", "two.so", "--output", "a.npz")[0] == 0
    found = np.load("a.npz")
    assert set(found.files) == {port.name for port in manifest.outputs}
    assert found[manifest.outputs[0].name].shape == (2, 3, 4)
    assert run("run", "two.so", "--expect", "a.npz")[0] == 0


@pytest.mark.parametrize("emulate", [[], ["--emulate"]], ids=["here", "emulated"])
def test_run_on_an_image(run: Command, emulate: list[str]) -> None:
    pixels = np.asarray(Image.open("image.png"), np.float32).transpose(2, 0, 1)[np.newaxis] / 255

    def given(*words: str) -> np.ndarray:
        assert run("run", "same.so", "--output", "a.npy", *emulate, *words)[0] == 0
        return np.load("a.npy")

    np.testing.assert_allclose(given("--input", "image.png"), pixels, rtol=1e-6)
    mean, std = (
        np.array([0.5, 0.25, 0]).reshape(1, 3, 1, 1),
        np.array([1, 2, 4]).reshape(1, 3, 1, 1),
    )
    words = ("--input", "image.png", "--mean", "0.5,0.25,0", "--std", "1,2,4")
    np.testing.assert_allclose(given(*words), (pixels - mean) / std, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(given("--input", "image.png", "--bgr"), pixels[:, ::-1], rtol=1e-6)
    halved = given("--input", "image.png", "--std", "0.5")
    np.testing.assert_allclose(halved, 2 * pixels, rtol=1e-6)
    gray = given("--input", "gray.png")
    np.testing.assert_array_equal(gray, np.repeat(gray[:, :1], 3, axis=1))
    resized = given("--input", "large.bmp")
    np.testing.assert_allclose(resized, np.full((1, 3, 8, 10), 128 / 255), rtol=1e-6)


# --- profile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "csv"])
def test_profile_can_be_read_back(run: Command, form: str) -> None:
    status, out, err = run("profile", "net.so", "--repeat", "3", "--format", form)
    assert (status, err) == (0, "")
    rows = json.loads(out) if form == "json" else list(csv.DictReader(io.StringIO(out)))
    layers = load_network("net.so").manifest.layers
    assert [row["kernel"] for row in rows] == [layer.kernel for layer in layers]
    assert all(row.keys() == STEP_KEYS for row in rows)
    assert 0.2 < sum(float(row["share"]) for row in rows) < 5
    assert [bool(row["gflops"]) for row in rows] == [bool(layer.workload) for layer in layers]
    assert run("profile", "net.so", "--repeat", "1", "--format", form, "-o", "a")[:2] == (0, "")
    assert len(Path("a").read_text()) > 100


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_profile_for_people(run: Command, form: str) -> None:
    status, out, _ = run("profile", "net.so", "--repeat", "1", "--format", form)
    assert status == 0
    assert "ms a run" in out and "in 2 convolutions" in out and "of the FMA peak" in out
    for layer in load_network("net.so").manifest.layers:
        assert layer.workload in out


def test_profile_compares_with_bursts_of_the_same_number_types(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = Quantized(QDQ, np.uint8, 1, 8, 9, 9)
    whole = g.real(g.conv(g.image(), 16, 8, 3, 3))
    weight = g.constant(g.rng.standard_normal((8, 16, 1, 1)))
    model = g.made(g.node("Conv", whole, weight))
    compile_network(saved(model, tmp_path), tmp_path / "both.so", blocking="model", check=False)
    speeds = {"uint8": 1000.0, "float32": 10.0}
    monkeypatch.setattr(peak, "Burst", lambda _d, _t, precision: lambda: speeds[precision.name])
    _, out, _ = run("profile", str(tmp_path / "both.so"), "--repeat", "1", "--format", "json")
    layers = {row["workload"].split("_")[0]: row for row in json.loads(out) if row["workload"]}
    first, second = layers["uint8"], layers["ic16ih7oc8oh7kh1"]
    assert first["gflops"] == pytest.approx(1000 * first["of_peak"])
    assert second["gflops"] == pytest.approx(10 * second["of_peak"])


def test_profile_without_convolutions(run: Command) -> None:
    status, out, _ = run("profile", "two.so", "--repeat", "1")
    assert status == 0 and "in 0 convolutions" in out


# --- tune -------------------------------------------------------------------------------------


def test_tune_takes_the_convolutions_of_a_model(run: Command) -> None:
    words = ("tune", "net.onnx", "--trials", "2", "--logs", "logs", "--strategy", "random")
    status, out, err = run(*words, "--format", "json")
    assert status == 0
    rows = json.loads(out)
    assert [row["network"] for row in rows] == ["net.onnx", "net.onnx"]
    assert [row["layer"] for row in rows] == ["0", "1"]
    assert "log: " in err
    assert run("compile", "net.onnx", "-o", "a.so", "--logs", "logs")[0] == 0
    layers = [layer for layer in load_network("a.so").manifest.layers if layer.workload]
    assert all(layer.blocking_source != "model" for layer in layers)
    assert run("run", "a.so", "--input", "x.npy", "--expect", "y.npy")[0] == 0


def test_networks_are_compiled_and_run_with_json(run: Command) -> None:
    status, out, err = run("compile", "net.onnx", "-o", "json.so", "--format", "json")
    assert (status, err) == (0, "")
    (made,) = json.loads(out)
    manifest = dc.load_network("json.so").manifest
    assert made["memory"] == manifest.memory() and made["bytes"] == Path("json.so").stat().st_size
    assert [layer["kernel"] for layer in made["layers"]] == [x.kernel for x in manifest.layers]
    status, out, _ = run("run", "json.so", "--format", "json")
    found = json.loads(out)
    assert status == 0 and found["max_error"] is None and found["seconds"] > 0
    assert [port["name"] for port in found["outputs"]] == [p.name for p in manifest.outputs]
    assert all(port["min"] <= port["max"] for port in found["outputs"])


# --- Layers of models wherever convolutions are ------------------------------------------------


def test_names_of_a_model_s_layers_are_specs_of_all_commands(run: Command, tmp_path: Path) -> None:
    _, out, _ = run("layers", "net.onnx", "--format", "markdown")
    names = [line.split(" | ")[0].strip("| ") for line in out.splitlines()[2:]]
    assert names == ["net.onnx:0", "net.onnx:1"]
    (_, second) = dc.workloads("net.onnx")
    assert run("explain", names[1])[1].startswith(f"net.onnx:1: {second} on ")
    assert run("compile", names[1], "-o", "one.so")[0] == 0
    assert dc.load("one.so").workload == second
    assert run("compile", "net.onnx:*", "-o", "all")[0] == 0
    assert sorted(path.name for path in tmp_path.glob("all/*.so")) == [
        "net.onnx_0.so",
        "net.onnx_1.so",
    ]
    status, out, _ = run("bench", names[1], "--repeat", "1", "--format", "json")
    assert status == 0 and json.loads(out)[0]["workload"] == str(second)
    words = ("tune", names[1], "--trials", "1", "--logs", "logs", "--strategy", "random")
    status, out, _ = run(*words)
    assert status == 0 and names[1] in out
    _, out, _ = run("logs", "show", names[1], "--logs", "logs", "--format", "json")
    assert {row["workload"] for row in json.loads(out)} == {str(second)}
    _, out, err = run("logs", "show", names[0], "--logs", "logs")
    assert out == "" and "nothing found" in err
    _, out, _ = run("logs", "best", "net.onnx", "--logs", "logs", "--format", "json")
    assert [row["layer"] for row in json.loads(out)] == ["0", "1"]


@pytest.mark.parametrize("words", [["layers"], ["explain"], ["logs", "best"], ["logs", "show"]])
def test_sizes_that_models_leave_open(run: Command, words: list[str]) -> None:
    status, _, err = run(*words, "open.onnx")
    assert status == 2 and "--input-shape x:1,3,224,10" in err
    status, _, err = run(*words, "open.onnx:0", "--input-shape", "x:1,3,7,10")
    assert status == 0, err
    status, _, err = run(*words, "--input-shape", "x:1,3,7,10")
    assert status == 2 and ("a size of input 'x' is given" in err or "required: SPEC" in err)


# --- Errors -----------------------------------------------------------------------------------

ERRORS = {
    "missing model": (["compile", "none.onnx", "-o", "a.so"], "model 'none.onnx' does not exist"),
    "missing model, tuned": (["tune", "none.onnx"], "model 'none.onnx' does not exist"),
    "corrupt model": (["compile", "bad.onnx", "-o", "a.so"], "'bad.onnx' is corrupt or no ONNX"),
    "strange operator": (["compile", "strange.onnx", "-o", "a.so"], "com.acme.Mystery (mystery0)"),
    "open size": (["compile", "open.onnx", "-o", "a.so"], "--input-shape x:1,3,224,10"),
    "open size, tuned": (["tune", "open.onnx"], "--input-shape x:1,3,224,10"),
    "wrong size": (
        ["compile", "open.onnx", "-o", "a.so", "--input-shape", "x:1,4,7,10"],
        "size of input 'x' is 1x4x7x10: expected batchx3x?x10",
    ),
    "unknown input": (
        ["compile", "open.onnx", "-o", "a.so", "--input-shape", "y:1,3,7,10"],
        "there is no input 'y': expected a size of 'x'",
    ),
    "no size": (
        ["compile", "open.onnx", "-o", "a.so", "--input-shape", "1,3,7,10"],
        "'1,3,7,10' is no size of an input: expected its name and whole numbers from 1",
    ),
    "size of 0": (
        ["compile", "open.onnx", "-o", "a.so", "--input-shape", "x:0,3,7,10"],
        "'x:0,3,7,10' is no size of an input",
    ),
    "size of no model": (
        ["compile", SMALL, "-o", "a.so", "--input-shape", "x:1,3"],
        "a size of input 'x' is given, but no model: expected",
    ),
    "size of no model, tuned": (
        ["tune", SMALL, "--input-shape", "x:1,3"],
        "a size of input 'x' is given, but no model: expected",
    ),
    "value of no model": (
        ["compile", SMALL, "-o", "a.so", "--input-value", "x=1"],
        "a value of input 'x' is given, but no model: expected",
    ),
    "value of no input": (
        ["compile", "net.onnx", "-o", "a.so", "--input-value", "sr=1"],
        "there is no input 'sr': expected a value of 'image'",
    ),
    "value that is no number": (
        ["compile", "net.onnx", "-o", "a.so", "--input-value", "x=fast"],
        "'x=fast' is no value of an input: expected its name and numbers, such as sr=16000",
    ),
    "value of no name": (
        ["tune", "net.onnx", "--input-value", "16000"],
        "'16000' is no value of an input",
    ),
    "two models": (["compile", "net.onnx", "two.onnx", "-o", "a.so"], "2 specs are given"),
    "epilogue": (
        ["compile", "net.onnx", "--epilogue", "relu", "-o", "a.so"],
        "--epilogue is 'relu': expected none",
    ),
    "layout": (["compile", "net.onnx", "--input-layout", "NHWC", "-o", "a.so"], "is 'NHWC'"),
    "schedule": (["compile", "net.onnx", "--schedule", "s.py", "-o", "a.so"], "is 's.py'"),
    "ending": (["compile", "net.onnx", "-o", "a.o"], "'a.o': expected a name ending in .so"),
    "no folder": (["compile", "net.onnx", "-o", "none/a.so"], "the folder does not exist"),
    "blocking": (["compile", "net.onnx", "--blocking", "modle", "-o", "a.so"], "'modle'"),
    "weight": (["run", "net.so", "--weight", "x.npy"], "--weight is given, but 'net.so' is a net"),
    "expect of a convolution": (["run", "conv.so", "--expect", "y.npy"], "--expect is given, but"),
    "mean of a convolution": (["run", "conv.so", "--mean", "1"], "is a single convolution"),
    "mean of an array": (["run", "net.so", "--input", "x.npy", "--mean", "1"], "'x.npy': expected"),
    "mean of nothing": (["run", "net.so", "--mean", "1"], "expected an image"),
    "mean of 0": (["run", "same.so", "--input", "image.png", "--mean", "a"], "'a' is not one numb"),
    "two means": (["run", "same.so", "--input", "image.png", "--mean", "1,2"], "'1,2' is not one"),
    "std of 0": (["run", "same.so", "--input", "image.png", "--std", "0,1,1"], "'0,1,1'"),
    "missing image": (["run", "net.so", "--input", "none.png"], "cannot read image 'none.png'"),
    "no image": (["run", "net.so", "--input", "bad.png"], "cannot read image 'bad.png'"),
    "image of two": (["run", "two.so", "--input", "image.png"], "expected one of shape 1x3xHxW"),
    "missing input": (["run", "net.so", "--input", "none.npy"], "cannot read array file"),
    "no array": (["run", "net.so", "--input", "bad.npy"], "cannot read array file 'bad.npy'"),
    "other shape": (
        ["run", "net.so", "--input", "shape.npy"],
        "shape (1, 3, 8, 9): expected image",
    ),
    "doubles": (["run", "net.so", "--input", "double.npy"], "float64"),
    "doubles, emulated": (["run", "net.so", "--input", "double.npy", "--emulate"], "float64"),
    "names": (["run", "net.so", "--input", "other.npz"], "has other: expected 'image' as well"),
    "one of two": (["run", "two.so", "--input", "x.npy"], "is one array: expected a .npz file"),
    "missing expectation": (["run", "net.so", "--expect", "none.npy"], "cannot read array file"),
    "not writable": (["run", "net.so", "--output", "x/y.npy"], "cannot write 'x/y.npy'"),
    "two in .npy": (
        ["run", "two.so", "--output", "a.npy"],
        "there are 2 outputs: expected a name ending in .npz",
    ),
    "stale": (["run", "stale.so"], "was written for another library"),
    "profile of none": (["profile", "none.so"], "library 'none.so' does not exist"),
    "profile of a convolution": (["profile", "conv.so"], "'conv.so' is a single convolution"),
    "profile elsewhere": (["profile", "foreign.so"], f"built for {FOREIGN}"),
    "profile of stale": (["profile", "stale.so"], "was written for another library"),
    "a size twice": (
        ["compile", "open.onnx", "-o", "a.so", *["--input-shape", "x:1,3,9,10"] * 2],
        "--input-shape is given 2 times for input 'x': expected once",
    ),
    "a value twice": (
        ["layers", "net.onnx", *["--input-value", "image=1"] * 3],
        "--input-value is given 3 times for input 'image': expected once",
    ),
    "a folder": (["run", "."], "library '.' is no file: expected"),
    "a path without a name": (["run", "/"], "library '/' is no file: expected"),
    "no path": (["run", ""], "library '.' is no file: expected"),
    "a folder, emulated": (["run", ".", "--emulate"], "cannot read library '.' (Is a directory)"),
    "profile of a folder": (["profile", "/"], "library '/' is no file: expected"),
    "model is a folder": (["compile", "folder.onnx", "-o", "a.so"], "'folder.onnx' is no file"),
    "no repeats": (["profile", "net.so", "--repeat", "0"], "'0' is not a whole number from 1"),
    "profile to nowhere": (["profile", "net.so", "-o", "none/p.csv"], "cannot write 'none/p.csv'"),
    "negative seed": (["run", "net.so", "--seed", "-1"], "'-1' is not a whole number from 0"),
}


@pytest.mark.parametrize("mistake", ERRORS)
def test_mistakes_end_with_an_error(run: Command, tmp_path: Path, mistake: str) -> None:
    words, message = ERRORS[mistake]
    before = sorted(tmp_path.iterdir())
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert "error: " in err and message in err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before
