"""The version of this package, those it needs, and what to do when others are installed."""

from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

from .errors import DirectConvError

_PACKAGE = "tvm-directconv"
__version__ = version(_PACKAGE)

# TVM's interfaces change with every release, and some pairs of these two crash.
_EXACT = ("apache-tvm", "apache-tvm-ffi")


@cache
def pins() -> dict[str, str]:
    """Return the exact versions this package was installed with a demand for."""
    found = {}
    for requirement in requires(_PACKAGE) or ():
        name, _, wanted = requirement.partition("==")
        if name in _EXACT:
            found[name] = wanted.split(";")[0].strip()
    return found


def installed(name: str) -> str | None:
    """Return the installed version of a package, None if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check() -> None:
    """Raise if TVM is missing or of another version than this package was written for.

    Raises
    ------
    DirectConvError
        With the command that mends it.
    """
    wrong = {name: want for name, want in pins().items() if installed(name) != want}
    if wrong:
        found = ", ".join(f"{name} {installed(name) or 'missing'}" for name in wrong)
        fix = " ".join(f"{name}=={want}" for name, want in pins().items())
        raise DirectConvError(
            f"found {found}: this package works with exactly one version of TVM and its FFI. "
            f"Run: pip install {fix}"
        )
