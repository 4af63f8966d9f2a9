"""`tokenize`: shares, errors that are too many, being asked to stop, and going on."""

from __future__ import annotations

import msgspec
import pytest

from streamenc.bulk.inputs.folder import FolderInput
from streamenc.bulk.items import Fault
from streamenc.bulk.manifest import Manifest, read_manifests
from streamenc.bulk.tokenizing import tokenize
from streamenc.bulk.workers import solo
from streamenc.bulk.workers.stop import Stop
from streamenc.errors import InputError, MediaError, UsageError
from tests.support.bulkoutputs import check_manifest, errors, keys, shards
from tests.support.bulkstub import StubTokenizer, stub_job, write_files


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    monkeypatch.setattr(solo, "Tokenizer", StubTokenizer)


def test_shares_make_the_set_that_one_makes(tmp_path):
    job = stub_job(write_files(tmp_path / "in", 20, {6: "broken wing"}))
    one, shared = tmp_path / "one", tmp_path / "shared"
    assert tokenize(job, one, workers=0).parts == 7
    counts = [tokenize(job, shared, workers=0, share=(at, 3)).parts for at in range(3)]
    assert counts == [3, 2, 2]
    assert shards(shared) == shards(one) and errors(shared) == errors(one)
    check_manifest(shared)
    assert list(read_manifests(shared)) == list(range(7))
    # Whoever goes on in another number of ways has nothing to do.
    assert tokenize(job, shared, workers=0, share=(0, 2)).parts_before == 4
    figures = tokenize(job, shared, workers=0)
    assert (figures.parts_before, figures.parts_done, figures.set_items) == (7, 0, 19)


def test_a_finished_set_is_left_as_it_is(tmp_path):
    job = stub_job(write_files(tmp_path / "in", 4))
    tokenize(job, tmp_path / "out", workers=0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    figures = tokenize(job, tmp_path / "out", workers=0)
    assert (figures.parts_before, figures.parts_done, figures.items) == (2, 0, 0)
    assert figures.eta_seconds == 0 and not figures.stopped
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    assert before == after


def test_another_job_is_refused(tmp_path):
    job = stub_job(write_files(tmp_path / "in", 4))
    tokenize(job, tmp_path / "out", workers=0)
    other = msgspec.structs.replace(job, items_per_shard=2)
    with pytest.raises(UsageError, match="another job.*items_per_shard: 3 there, 2 now"):
        tokenize(other, tmp_path / "out", workers=0)
    check_manifest(tmp_path / "out")


def test_two_runs_at_once_are_refused(tmp_path):
    job = stub_job(write_files(tmp_path / "in", 4))
    output = tmp_path / "out"
    output.mkdir()
    manifest = Manifest(output)
    with pytest.raises(UsageError, match="another run"):
        tokenize(job, output, workers=0)
    manifest.close()
    assert tokenize(job, output, workers=0).parts_done == 2


def test_too_many_errors_end_a_run(tmp_path):
    """From 100 items on; those that are finished stay, and a higher rate goes on with them."""
    folder = write_files(tmp_path / "in", 200, dict.fromkeys(range(90, 200, 2), "broken wing"))
    job = stub_job(folder, 10)
    words = r"1\d of 1\d\d items are errors, more than --max-error-rate 0.1: MediaError: ...: wing"
    with pytest.raises(InputError, match=words):
        tokenize(job, tmp_path / "out", workers=0, max_error_rate=0.1)
    assert 11 <= len(read_manifests(tmp_path / "out")) <= 13
    check_manifest(tmp_path / "out")
    with pytest.raises(InputError, match=words):  # it is no better now
        tokenize(job, tmp_path / "out", workers=0, max_error_rate=0.1)
    figures = tokenize(job, tmp_path / "out", workers=0, max_error_rate=0.3)
    assert figures.set_errors == 55 and figures.set_items == 145


def test_few_items_are_counted_at_the_end(tmp_path):
    folder = write_files(tmp_path / "in", 8, {0: "broken wing"})
    with pytest.raises(InputError, match="1 of 8 items"):
        tokenize(stub_job(folder), tmp_path / "out", workers=0, max_error_rate=0.1)
    assert len(shards(tmp_path / "out")) == 3
    assert (
        tokenize(stub_job(folder), tmp_path / "out", workers=0, max_error_rate=0.2).set_items == 7
    )


@pytest.mark.parametrize("times", [1, 2])
def test_asked_to_stop_in_this_process(tmp_path, times):
    job = stub_job(write_files(tmp_path / "in", 9), seconds=0.01)
    stop, output = Stop(), tmp_path / "out"

    told = []

    def tell(figures):
        told.append(figures.stage)
        if told.count("working") == 2:  # the first time is before the first part
            stop.ask() if times == 1 else stop.abandon()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamenc.bulk.tokenizing.TELL_SECONDS", 0.005)
        figures = tokenize(job, output, workers=0, tell=tell, stop=stop)
    assert figures.stopped and figures.parts_done == (1 if times == 1 else 0)
    assert not (output / "scratch").exists()
    assert tokenize(job, output, workers=0).parts_before == figures.parts_done
    assert len(keys(output)) == 9


def test_what_follows_a_signal_at_once_is_the_same_wish():
    stop = Stop()
    stop.ask()
    stop.ask()
    assert stop.asked and not stop.abandoned
    stop.abandon()
    assert stop.abandoned


def test_an_input_that_breaks_in_the_middle_of_a_part(tmp_path, monkeypatch):
    """Says so, and the other parts are done."""
    monkeypatch.setattr(FolderInput, "items", _breaking(FolderInput.items, MediaError("torn")))
    job = stub_job(write_files(tmp_path / "in", 6))
    figures = tokenize(job, tmp_path / "out", workers=0)
    assert (figures.items, figures.errors) == (4, 2)
    reasons = {line["reason"] for line in errors(tmp_path / "out").values()}
    assert reasons == {"torn; what comes behind it was not read"}


def test_an_input_that_is_not_there_now_ends_the_run(tmp_path, monkeypatch):
    """Rather than being an error for ever."""
    job = stub_job(write_files(tmp_path / "in", 6))
    with pytest.MonkeyPatch.context() as patch:
        error = OSError(5, "Input/output error")
        patch.setattr(FolderInput, "items", _breaking(FolderInput.items, error))
        with pytest.raises(MediaError, match="cannot read .*Input/output error; see to it"):
            tokenize(job, tmp_path / "out", workers=0)
    assert tokenize(job, tmp_path / "out", workers=0).parts_done == 2


def _breaking(items, error):
    def breaking(self, span):
        for number, item in enumerate(items(self, span)):
            if number == 2:
                raise error
            yield item

    return breaking


def test_names_and_reasons_are_text_of_a_length_that_is_read(tmp_path, monkeypatch):
    def items(self, span):
        yield Fault("caf\udce9.wav", "/in/caf\udce9.wav", "x" * 5000)

    monkeypatch.setattr(FolderInput, "items", items)
    tokenize(stub_job(write_files(tmp_path / "in", 3)), tmp_path / "out", workers=0)
    (line,) = errors(tmp_path / "out").values()
    assert line["key"] == "caf\\udce9.wav" and line["reason"] == "x" * 1000 + "..."
