"""Models, nodes, sources and sinks from outside, without a change to streamenc.

Three ways lead here, and the object is the same on each of them:

- An installed package names it in an entry point, `[project.entry-points."streamenc.models"]` of
  its pyproject.toml, or "streamenc.nodes", "streamenc.io". It is then known by its name everywhere.
- Whoever types a command or writes a pipeline file names it as "package.module:attribute".
- A program says `streamenc.register("nodes", "gate", Gate)`, for its own process.

Nothing is imported before it is needed. streamenc's own names win over those from outside. What is
broken says whose it is, and leaves the others as they are. What comes over a network or out of a
checkpoint is never taken for such a name: only what the user types, writes or installs is.

What the object is:

    models  A module, or an object, with `load(name, checkpoint, part, **options)`, as the modules
            of streamenc.models.families.FAMILIES have it; or that function by itself.
    nodes   A class of Transform or AsyncTransform, which takes its options by name.
    io      A class of Source or Sink, by its scheme ("tone") or file ending (".tone"); or an object
            with one of each as `source` and `sink`. See streamenc.io.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, get_args

from streamenc.errors import UsageError

Group = Literal["models", "nodes", "io"]

log = logging.getLogger(__name__)

_PATH = re.compile(r"(?P<path>[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*)(:(?P<rest>.*))?", re.DOTALL)
# What names may look like: a family stands before a colon, a scheme is one word.
_NAMES = {"models": r"\w[\w.-]*", "nodes": r"\w[\w.-]*", "io": r"\.[\w.]+|[a-z0-9+]{2,}"}


@dataclass(frozen=True, slots=True)
class Plugin:
    """Something from outside, not yet imported.

    path    "module" or "module:attribute", imported when it is used.
    origin  Whose it is, for people: "own-model 0.1"; "" where the user named the path.
    made    The object itself, where a program registered it as such.
    """

    name: str
    path: str
    origin: str = ""
    made: object = None

    def load(self) -> Any:
        """The object. Raises UsageError that says whose it is and what failed."""
        if self.made is not None:
            return self.made
        module, _, attributes = self.path.partition(":")
        try:
            found: Any = import_module(module)
            for attribute in filter(None, attributes.split(".")):
                found = getattr(found, attribute)
        except Exception as error:  # of others' code, which may raise anything
            raise self.broken(_explained(module, error)) from error
        return found

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls what is part of it. Raises UsageError in place of whatever that raises."""
        try:
            return function(*arguments)
        except Exception as error:  # as above
            raise self.broken(f"{type(error).__name__}: {error}") from error

    def broken(self, what: str) -> UsageError:
        """The error for something that is wrong with it."""
        whose = f" of {self.origin}" if self.origin else ""
        return UsageError(f"{self.name!r}{whose} cannot be used: {what}")


_own: dict[Group, set[str]] = {group: set() for group in get_args(Group)}
_registered: dict[Group, dict[str, Plugin]] = {group: {} for group in get_args(Group)}
_left_out: set[str] = set()


def register(group: Group, name: str, what: object) -> None:
    """Makes something known by name in this process, as an entry point would in all.

        streamenc.register("models", "own", own_model)      # streamenc.load("own")
        streamenc.register("nodes", "gate", Gate)           # node = "gate" in a pipeline file
        streamenc.register("io", "tone", "own_model:Tone")  # tone:440, imported when it is used

    Args:
        group: "models", "nodes" or "io".
        name: Of models a family; of io a scheme or a file ending. What was registered by the same
            name is replaced.
        what: The object, or "module:attribute"; see streamenc.plugins for what it has to be.

    Raises:
        UsageError: For another group, and for a name that cannot be used or is streamenc's own.
    """
    if group not in _NAMES:
        raise UsageError(f"a group is one of {', '.join(_NAMES)}; got {group!r}")
    if not re.fullmatch(_NAMES[group], name):
        raise UsageError(f"{name!r} cannot be a name of {group}: wanted {_NAMES[group]}")
    if name in _own[group]:
        raise UsageError(f"{name!r} is streamenc's own among {group}; choose another name")
    path, made = (what, None) if isinstance(what, str) else ("", what)
    _registered[group][name] = Plugin(name, path, "streamenc.register", made)


def reserve(group: Group, names: Iterable[str]) -> None:
    """Says which names are streamenc's own."""
    _own[group].update(names)


def known(group: Group) -> dict[str, Plugin]:
    """What there is from outside by name, without importing any of it."""
    found = {**_installed(group), **_registered[group]}
    return {name: plugin for name, plugin in found.items() if name not in _own[group]}


def leave_out(error: UsageError) -> None:
    """Says in the log why one is left out of a list: once, however often the list is made."""
    if str(error) not in _left_out:
        _left_out.add(str(error))
        log.warning("%s", error)


def by_path(text: str) -> tuple[Plugin, str] | None:
    """What "module:attribute" or "module:attribute:REST" names, and the rest; None where `text`
    does not look like it."""
    match = _PATH.fullmatch(text)
    if match is None:
        return None
    path = match["path"]
    return Plugin(path, path), match["rest"] or ""


@cache
def _installed(group: Group) -> dict[str, Plugin]:
    """Of installed packages, by name. Of two with one name, the first package's counts."""
    found: dict[str, Plugin] = {}
    points = entry_points(group=f"streamenc.{group}")
    for point in sorted(points, key=lambda point: (point.name, _origin(point.dist))):
        plugin = Plugin(point.name, point.value.partition("[")[0].strip(), _origin(point.dist))
        if point.name in _own[group]:
            winner = "streamenc's own"
        elif point.name in found:
            winner = f"that of {found[point.name].origin}"
        elif not re.fullmatch(_NAMES[group], point.name):
            log.warning("%s", plugin.broken(f"a name of {group} is {_NAMES[group]}"))
            continue
        else:
            found[point.name] = plugin
            continue
        log.warning(
            "%r of %s is not used: %s has that name; say %s for it",
            *(point.name, plugin.origin, winner, plugin.path),
        )
    return found


def _origin(distribution: Any) -> str:
    if distribution is None:
        return "an unknown package"
    return f"{distribution.name} {distribution.version}"


def _explained(module: str, error: Exception) -> str:
    """What failed while `module` was imported, or an attribute of it looked up."""
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return (
            f"Python finds no module {error.name}; install the package that has it, or put its "
            "folder into PYTHONPATH"
        )
    return f"{type(error).__name__}: {error}"
