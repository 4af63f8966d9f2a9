"""Small models that a job names by their folders."""

from __future__ import annotations

import warnings

import pytest

from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from tests.support import zoo


@pytest.fixture(scope="package")
def job_of(tmp_path_factory):
    """A job of some models, by their names or by those of small ones of the zoo."""
    saved: dict[str, str] = {}

    def asked(name: str) -> ModelAsk:
        if name in ("nano", "mel"):
            return ModelAsk(name=name)
        row = zoo.row(name)
        if name not in saved:
            folder = tmp_path_factory.mktemp(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row.save(folder)
            saved[name] = str(folder)
        return ModelAsk(name=saved[name], options=row.options)

    def job(*names: str, **more) -> TokenizeJob:
        return TokenizeJob(input="", models=tuple(map(asked, names)), **more)

    return job
