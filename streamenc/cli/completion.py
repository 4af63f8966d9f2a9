"""What a shell offers while one types: names of models, and schemes of sources and sinks.

Schemes come once a letter is there; without one, and where none fits, the shell offers files.
"""

from __future__ import annotations

from collections.abc import Iterable


def complete_model(incomplete: str) -> list[str]:
    """Listed models, and families before a colon."""
    from streamenc.registry import FAMILIES, LISTED

    return _starting(incomplete, (*LISTED, *(f"{family}:" for family in FAMILIES)))


def complete_source(incomplete: str) -> list[str]:
    """Schemes of sources, of media among them."""
    from streamenc.io import MEDIA_SCHEMES, SOURCES

    schemes = [f"{key}:" for key in SOURCES if key[0] not in "-."]
    addresses = [f"{scheme}://" for scheme in sorted(MEDIA_SCHEMES)]
    return _starting(incomplete, (*schemes, *addresses)) if incomplete else []


def complete_sink(incomplete: str) -> list[str]:
    """Schemes of sinks."""
    from streamenc.io import SINKS

    schemes = [f"{key}:" for key in SINKS if key[0] not in "-."]
    return _starting(incomplete, schemes) if incomplete else []


def _starting(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
