"""What `streamenc help` says of sources and sinks, and what a shell offers of them."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable

import pytest

from streamenc import io
from streamenc.cli.facts import schemes
from streamenc.cli.facts.completion import complete_model, complete_sink, complete_source
from streamenc.cli.facts.meanings import Option, class_options, meanings, summary
from streamenc.errors import UsageError
from streamenc.io import Entry
from tests.support.program import Done

ENTRIES = {
    entry.path: entry
    for entry in (*io.SOURCES.values(), *io.SINKS.values(), *io.MEDIA_KINDS.values())
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_every_option_of_every_kind_says_what_it_means(entry: Entry) -> None:
    cls = entry.load()
    options = class_options(cls, schemes._classes())
    assert [option.name for option in options] == list(inspect.signature(cls).parameters)[1:]
    for option in options:
        assert option.type and option.meaning, option
        assert not option.meaning.startswith("As of"), option
    assert summary(cls)[-1] in ".?!", summary(cls)


@pytest.mark.parametrize("what", ["source", "sink"])
def test_every_example_names_what_there_is(what: str) -> None:
    """And gives options that exist: the source or sink is made of it, though not opened."""
    table, make = (io.SOURCES, io.source) if what == "source" else (io.SINKS, io.sink)
    for key in (schemes._shown(key) for key in table):
        words = shlex.split(schemes.example(key, what))
        assert words[0] == "streamenc", key
        (target,) = (
            word
            for word in words[2:4]
            if (word.startswith(key) if key[0] != "." else word.partition("?")[0].endswith(key))
        )
        make(target)


def test_all_are_listed(call: Callable[..., Done]) -> None:
    done = call("help")
    assert done.code == 0
    rows = [line.split()[:2] for line in done.out.splitlines()]
    for what, table in (("source", io.SOURCES), ("sink", io.SINKS)):
        for key in table:
            assert [schemes._shown(key), what] in rows


@pytest.mark.parametrize("word", ["mic:", "mic", "mic:USB?rate=48000", "MIC:"])
def test_a_source(call: Callable[..., Done], word: str) -> None:
    done = call("help", word)
    assert done.code == 0
    assert "mic: as a source" in done.out and "as a sink" not in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert "channels whole number 1 How many to record.".split() in rows
    assert "Example: streamenc encode 'mic:USB?rate=48000'" in done.out


def test_a_source_and_a_sink(call: Callable[..., Done]) -> None:
    out = call("help", "zmq+tcp://127.0.0.1:5555").out
    source, sink = out.split("zmq+tcp: as a sink")
    assert "window" in source and "window" not in sink
    assert "wait_subscribers" in sink and "wait_subscribers" not in source


def test_a_file_of_media_has_three_readers(call: Callable[..., Done]) -> None:
    out = call("help", "film.mkv").out
    for kind in io.MEDIA_KINDS:
        assert f".mkv as a source of {kind}" in out
    assert ".mkv as a sink" in out
    assert "as a sink" not in call("help", "rtsp:").out


def test_what_has_no_options_says_so(call: Callable[..., Done]) -> None:
    assert "It has no options." in call("help", ".arrows").out


def test_an_unknown_one_names_near_ones(call: Callable[..., Done]) -> None:
    done = call("help", "micc:")
    assert done.code == 2 and "near are mic:" in done.error


@pytest.mark.parametrize(
    ("target", "word"), [("mic:?x=1", "mic:"), ("a.arrows?x=1", ".arrows"), ("-?x=1", "-")]
)
def test_an_unknown_option_says_where_to_look(
    call: Callable[..., Done], target: str, word: str
) -> None:
    with pytest.raises(UsageError, match=f"no option 'x'.*see `streamenc help {word}`"):
        io.source(target)
    assert call("help", word).code == 0


def test_a_docstring_in_either_style() -> None:
    class Aligned:
        """It does. More.

        rate, size  How much,
                    or how many.
        other       Not asked for.
        """

    class Google:
        """It does.

        Args:
            rate: How much,
                or how many.
            size: The same as above.

        Returns:
            nothing: at all.
        """

    class Referring:
        """As of Aligned.

        fps   As of Google.
        rate  Its own.
        """

    names = {"rate", "size"}
    assert meanings(Aligned, names, {}) == dict.fromkeys(names, "How much, or how many.")
    assert meanings(Google, names, {}) == {
        "rate": "How much, or how many.",
        "size": "The same as above.",
    }
    found = meanings(Referring, names, {"Aligned": Aligned})
    assert found == {"rate": "Its own.", "size": "How much, or how many."}
    assert summary(Aligned) == "It does."


def test_options_in_words() -> None:
    class Made:
        def __init__(
            self,
            address: str,
            rate: int | str = 8,
            flag: str | bool | None = None,
            latency: str | float = "low",
        ) -> None: ...

    assert class_options(Made, {}) == [
        Option("rate", "whole number", 8, ""),
        Option("flag", "true or false", None, ""),
        Option("latency", "text or number", "low", ""),
    ]
    assert Option("a", "true or false", True, "b").row() == ("a", "true or false", "true", "b")


def test_what_a_shell_offers() -> None:
    assert complete_model("kyutai/") == ["kyutai/mimi"]
    assert "hubert:" in complete_model("hub")
    assert complete_source("m") == ["mic:", "mqtt:", "mqtts:"]
    assert complete_source("rts") == ["rtsp://", "rtsps://"]
    assert complete_sink("sp") == ["speaker:"]
    # Then it offers files.
    assert complete_source("") == complete_sink("") == complete_source("talk.w") == []
