"""What a shell offers while one types: names of models, and schemes of sources and sinks.

Names from outside are offered without an import of what they stand for, so each of their schemes as
a source and as a sink. Schemes come once a letter is there; without one, and where none fits, the
shell offers files.
"""

from __future__ import annotations

from collections.abc import Iterable


def complete_model(incomplete: str) -> list[str]:
    """Listed models, and families before a colon; families from outside also by themselves."""
    from streamenc import plugins
    from streamenc.models.families import LISTED
    from streamenc.registry import families

    outside = plugins.known("models")
    return _starting(incomplete, (*LISTED, *outside, *(f"{family}:" for family in families())))


def complete_source(incomplete: str) -> list[str]:
    """Schemes of sources, of media among them."""
    from streamenc.io import MEDIA_SCHEMES, SOURCES

    schemes = _schemes(SOURCES)
    addresses = [f"{scheme}://" for scheme in sorted(MEDIA_SCHEMES)]
    return _starting(incomplete, (*schemes, *addresses)) if incomplete else []


def complete_sink(incomplete: str) -> list[str]:
    """Schemes of sinks."""
    from streamenc.io import SINKS

    return _starting(incomplete, _schemes(SINKS)) if incomplete else []


def _schemes(own: Iterable[str]) -> list[str]:
    from streamenc import plugins

    return [f"{key}:" for key in (*own, *plugins.known("io")) if key[0] not in "-."]


def _starting(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
