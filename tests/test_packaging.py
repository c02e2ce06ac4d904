"""The package as it is installed: what is in it, and which versions it insists on."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tvm_directconv import versions
from tvm_directconv.errors import DirectConvError

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_of_python_files_is_a_package() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in ("tvm_directconv", "schedules", "tuning_logs")
        for path in (ROOT / folder).rglob("*.py")
    }
    found = {
        name if name.startswith("tvm_directconv") else f"tvm_directconv.{name}" for name in found
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_from_the_sdist_works(tmp_path: Path) -> None:
    # The files that git would give, so that nothing else in this folder helps.
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    source = tmp_path / "source"
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    (source / "tuning_logs" / "some-device.jsonl").touch()
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", cwd=source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "tvm_directconv/schedules/x86.py",
        "tvm_directconv/schedules/devices/znver4.toml",
        "tvm_directconv/shapes/vgg16.txt",
        "tvm_directconv/deploy/counter.c",
        "tvm_directconv/deploy/runner.c",
        "tvm_directconv/deploy/tvm_example.cc",
        "tvm_directconv/py.typed",
        "tvm_directconv/tuning_logs/__init__.py",
        "tvm_directconv/tuning_logs/some-device.jsonl",
    } <= names

    site = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    run(*pip, cwd=tmp_path)
    # The folder comes before the installed (editable) package, and TVM is found behind it.
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import tvm_directconv as dc, tvm_directconv.schedules.x86 as x86\n"
        f"assert x86.__file__.startswith({str(site)!r}) and dc.__file__.startswith({str(site)!r})\n"
        "conv = dc.build('ic8ih7oc16oh7kh3ph1')\n"
        "data = dc.random_tensors(conv.workload, seed=0, integers=True)\n"
        "print(dc.max_error(conv(*data), dc.conv2d_reference(*data, conv.workload)))\n"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(sys.executable, "-c", code, cwd=empty) == "0.0\n"


def test_the_command_is_installed() -> None:
    (script,) = (
        point
        for point in importlib.metadata.entry_points(group="console_scripts")
        if point.name == "tvm-directconv"
    )
    assert callable(script.load())


def test_the_pins_are_those_installed() -> None:
    assert set(versions.pins()) == {"apache-tvm", "apache-tvm-ffi"}
    versions.check()


@pytest.mark.parametrize("other", ["0.28.0", None])
def test_other_versions_are_refused(other: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda name: other)
    with pytest.raises(DirectConvError, match=r"Run: pip install apache-tvm==[\d.a-z]+ apache-tvm"):
        versions.check()
