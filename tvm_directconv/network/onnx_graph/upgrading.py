"""Old nodes to today's version of their operators, one version after the other.

Most versions only allow more: other types, an attribute whose default is what was before. That is
seen by comparing their schemas. What else changed is in the table of ``upgrades``.
"""

from collections.abc import Callable
from typing import Any

from .nodes import FORM, VERSIONS, Node, Refusal, default_of, schema_of

Upgrade = Callable[[Any, Node], None]
"""Takes a graph and a node, and makes that one of the version it is registered for."""

UPGRADES: dict[tuple[str, int], Upgrade] = {}
"""By the type of the operator, and the version in which it is otherwise than before."""


def upgrade_to(version: int, *kinds: str) -> Callable[[Upgrade], Upgrade]:
    """Register what brings nodes of the version before to this one."""

    def register(function: Upgrade) -> Upgrade:
        for kind in kinds:
            assert (kind, version) not in UPGRADES and version in VERSIONS[kind], (kind, version)
            UPGRADES[kind, version] = function
        return function

    return register


def upgrade(graph: Any, node: Node) -> None:
    """Bring a node to today's version.

    Raises
    ------
    Refusal
        If it cannot be.
    """
    while "." not in node.kind:
        newer = next((v for v in VERSIONS[node.kind] if v > node.version), None)
        if newer is None:
            node.version = FORM
            return
        old, new = (schema_of(node.kind, version) for version in (node.version, newer))
        change = UPGRADES.get((node.kind, newer))
        if change is None and old is not None and (what := change_of(old, new, node.attributes)):
            raise Refusal(
                f"it is of version {old.since_version}, and since version {newer} {what}: bring "
                "the model to a newer version of ONNX, as onnx.version_converter does"
            )
        for name in old.attributes if old is not None else ():
            default = default_of(node.kind, node.version, name)
            if default is not None and default != default_of(node.kind, newer, name):
                node.attributes.setdefault(name, default)
        node.version = newer
        if change is not None:
            change(graph, node)


def change_of(old: Any, new: Any, given: Any) -> str:
    """Return what keeps a node of one version from being one of the next, empty if nothing does.

    Parameters
    ----------
    old, new : onnx.defs.OpSchema
        The two versions.
    given : container of str
        Names of the attributes that the node has.
    """
    if new.deprecated:
        return "it is no operator any more"
    for name, attribute in old.attributes.items():
        if name not in new.attributes:
            if name in given:
                return f"it has no attribute {name!r}"
        elif attribute.type != new.attributes[name].type:
            return f"its attribute {name!r} has another type"
    for name, attribute in new.attributes.items():
        if attribute.required and name not in given:
            return f"its attribute {name!r} is required"
    if [p.name for p in old.inputs] != [p.name for p in new.inputs[: len(old.inputs)]]:
        return "its inputs are others"
    return ""
