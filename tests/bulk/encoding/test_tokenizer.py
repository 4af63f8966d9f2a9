"""Tokenizer: what a set says of several models."""

from __future__ import annotations

import pyarrow as pa
import pytest

from streamenc.bulk.encoding.tokenizer import Tokenizer, all_facts
from streamenc.bulk.outputs.rowcolumns import RowColumns
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.codec import Codec
from streamenc.errors import UsageError
from streamenc.registry import load


@pytest.fixture(scope="module")
def facts_named():
    """What is said of models of these names: features of those that end in mel."""
    nano, mel = (load(name, part="encoder", backend="torch") for name in ("nano", "mel"))

    def facts(*names: str):
        asks = tuple(ModelAsk(name=name) for name in names)
        models = [(mel if name.endswith("mel") else nano).encoder for name in names]
        codecs = [Codec(name, model, None) for name, model in zip(names, models, strict=True)]
        return all_facts(codecs, TokenizeJob(input="", models=asks))

    return facts


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["kyutai/mimi"], ["codes"]),
        (["kyutai/mimi", "nano"], ["mimi_codes", "nano_codes"]),
        (["kyutai/mimi", "mine/Mimi"], ["mimi_codes", "mimi_2_codes"]),
        (["a/x", "b/x", "x_2", "c/x"], ["x_codes", "x_2_codes", "x_2_2_codes", "x_3_codes"]),
        (["x_2", "a/x", "b/x"], ["x_2_codes", "x_codes", "x_3_codes"]),
        (["-", "nano", "a/.."], ["model_1_codes", "nano_codes", "model_2_codes"]),
        (["model_1", "--"], ["model_1_codes", "model_2_codes"]),
        # Of one word: codes and features have gaps that are called alike.
        (["a/x.mel", "b/x_mel", "x mel "], ["x_mel_features", "x_mel_2_features", "x_mel_3_codes"]),
        (["a/mel", "b/x.mel", "c/mel"], ["mel_features", "x_mel_features", "mel_2_features"]),
    ],
)
def test_each_model_has_a_column_of_its_own(names, columns, facts_named):
    facts = facts_named(*names)
    assert [one.column for one in facts] == columns
    assert [one.name for one in facts] == names
    schema = RowColumns(facts, pa.schema([])).schema
    assert len(set(schema.names)) == len(schema.names)


def test_two_models_of_one_name_in_one_run(job_of, sounds, tmp_path):
    job = job_of("nano", "nano")
    tokenizer = Tokenizer(job, tmp_path)
    assert [one.column for one in tokenizer.facts] == ["nano_codes", "nano_2_codes"]
    row = tokenizer.row(sounds[0])
    assert (row.tokens[0].data == row.tokens[1].data).all()


def test_layouts_that_codes_cannot_have(job_of, tmp_path):
    with pytest.raises(UsageError, match="a scale for each segment.*layout=flat"):
        Tokenizer(job_of("encodec-48k", layout="delay"), tmp_path)
    Tokenizer(job_of("encodec-48k", layout="flat"), tmp_path).close()
    with pytest.raises(UsageError, match="lie on a grid"):
        Tokenizer(job_of("vqgan", layout="flat"), tmp_path)
