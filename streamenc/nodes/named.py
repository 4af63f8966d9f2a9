"""Nodes from outside by name: one that a package or a program made known, or "module:Class"."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from streamenc import plugins
from streamenc.errors import UsageError
from streamenc.graph.node import AsyncTransform, Transform

NodeClass = type[Transform] | type[AsyncTransform]


def named_node(name: str, options: Mapping[str, Any]) -> Transform | AsyncTransform:
    """Imports the class, and makes the node. Raises UsageError for what is none, or no option."""
    cls = node_class(name)
    parameters = inspect.signature(cls).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for option in () if takes_any else options:
        if option not in parameters:
            raise UsageError(
                f"node {name!r} has no option {option!r}; it has "
                f"{', '.join(parameters) or 'none'}; see `streamenc help {name}`"
            )
    missing = [
        each.name
        for each in parameters.values()
        if each.default is each.empty
        and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        and each.name not in options
    ]
    if missing:
        raise UsageError(f"node {name!r} lacks the options {', '.join(missing)}, which it must get")
    return cls(**options)


def node_class(name: str) -> NodeClass:
    """Raises UsageError where there is none of that name, or where it is no node."""
    outside = plugins.known("nodes")
    named = plugins.by_path(name)
    if name in outside:
        plugin = outside[name]
    elif named is not None and not named[1]:
        plugin = named[0]
    else:
        raise UsageError(
            f"no node is called {name!r}; known are {', '.join(sorted(outside)) or 'none'}, and "
            "any class as package.module:Class"
        )
    found = plugin.load()
    if not (isinstance(found, type) and issubclass(found, Transform | AsyncTransform)):
        raise plugin.broken(f"{found!r} is no class of Transform or AsyncTransform")
    return found
