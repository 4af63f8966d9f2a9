"""The Hub: what a model needs is fetched, and nothing else of a repository."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file

from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.errors import CheckpointError

WEIGHTS = {"a.weight": torch.arange(6.0)}


class Hub:
    """A repository, and a cache of it, behind the Hub library's two calls.

    Attributes:
        fetched: What was downloaded, in order.
        error: Raised by each call to the network.
    """

    def __init__(self, folder: Path) -> None:
        self.repo, self.cache = folder / "repo", folder / "cache"
        self.repo.mkdir()
        self.fetched: list[str] = []
        self.revisions: set[str | None] = set()
        self.error: Exception | None = None

    def put(self, name: str, content: Any = None) -> None:
        path = self.repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            save_file(WEIGHTS, path)
        else:
            path.write_text(json.dumps(content))

    def list_repo_files(self, repo: str, *, revision: str | None) -> list[str]:
        assert repo == "someone/model"
        self.revisions.add(revision)
        if self.error:
            raise self.error
        return [str(p.relative_to(self.repo)) for p in self.repo.rglob("*") if p.is_file()]

    def snapshot_download(
        self,
        repo: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        local_files_only: bool,
    ) -> str:
        if local_files_only or self.error:
            if not self.cache.exists():
                raise LocalEntryNotFoundError("nothing of it is in the cache")
            return str(self.cache)
        for name in self.list_repo_files(repo, revision=revision):
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                there = self.cache / name
                if not there.exists():
                    there.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(self.repo / name, there)
                    self.fetched.append(name)
        self.cache.mkdir(exist_ok=True)
        return str(self.cache)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    made = Hub(tmp_path)
    for name in ("list_repo_files", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(made, name))
    return made


def index(*files: str) -> dict[str, Any]:
    return {"weight_map": {f"tensor.{i}": file for i, file in enumerate(files)}}


CASES = {
    "other types beside": (
        ["model.safetensors"],
        [
            "model.fp32-00001-of-00002.safetensors",
            "model.fp32-00002-of-00002.safetensors",
            "model.safetensors.index.fp32.json",
            "pytorch_model.bin",
            "flax_model.msgpack",
        ],
    ),
    "shards": (
        [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ],
        ["model.fp16.safetensors", "pytorch_model-00001-of-00001.bin"],
    ),
    "both, whole and in shards": (
        ["model.safetensors"],
        ["model-00001-of-00001.safetensors", "model.safetensors.index.json"],
    ),
    "diffusers beside the author's": (
        ["diffusion_pytorch_model.safetensors"],
        ["taesd_encoder.safetensors", "taesd_decoder.safetensors"],
    ),
    "two parts": (["taesd_decoder.safetensors", "taesd_encoder.safetensors"], ["README.md"]),
    "one of any name": (["tokenizer-e351c8d8.safetensors"], ["README.md", "other/x.safetensors"]),
}


@pytest.mark.parametrize("inside", ["", "vqvae/"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_used_is_fetched_and_nothing_else(hub: Hub, case: str, inside: str) -> None:
    wanted, others = CASES[case]
    configs = ["config.json", "preprocessor_config.json", "processor_config.json"]
    shards = [name for name in wanted if "-of-" in name]
    for name in (*wanted, *others):
        is_index = name.endswith(".index.json")
        hub.put(inside + name, index(*shards) if is_index else None)
    for name in configs:
        hub.put(inside + name, {"from": name})
    open_checkpoint(f"someone/model/{inside}".rstrip("/"), revision="abc")
    assert sorted(hub.fetched) == sorted(inside + name for name in (*configs, *wanted))
    assert hub.revisions == {"abc"}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("part", ["both", "encoder", "decoder"])
def test_of_two_archives_the_part_that_is_wanted(hub: Hub, part: str) -> None:
    sides = ("encoder", "decoder")
    for side in sides:
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), hub.repo / f"{side}.jit")
    hub.put("tiny_encoder.safetensors")
    names = open_checkpoint("someone/model", part=part).names
    assert sorted(hub.fetched) == sorted(f"{s}.jit" for s in sides if part in ("both", s))
    assert names == {"weight", "bias"}


@pytest.mark.parametrize("part", ["both", "encoder", "decoder"])
def test_of_two_state_dicts_both(hub: Hub, part: str) -> None:
    for side in ("encoder", "decoder"):
        hub.put(f"tiny_{side}.safetensors")
    names = open_checkpoint("someone/model", part=part).names
    assert len(hub.fetched) == 2
    assert {name.split(".")[0] for name in names} == (
        {"encoder", "decoder"} if part == "both" else {part}
    )


def test_a_hub_name_is_a_checkpoint_by_that_name(hub: Hub) -> None:
    hub.put("model.safetensors")
    hub.put("config.json", {"model_type": "mimi"})
    hub.put("processor_config.json", {"feature_extractor": {"do_normalize": False}})
    checkpoint = open_checkpoint("someone/model")
    assert checkpoint.name == "someone/model"
    assert checkpoint.config == {"model_type": "mimi"}
    assert checkpoint.preprocessor == {"do_normalize": False}
    assert torch.equal(checkpoint.get("a.weight"), WEIGHTS["a.weight"])


def test_one_file_of_a_repository_comes_with_its_config(hub: Hub) -> None:
    for name in ("sub/w.safetensors", "sub/other.safetensors", "w.safetensors"):
        hub.put(name)
    hub.put("sub/config.json", {"model_type": "mimi"})
    hub.put("config.json", {"model_type": "other"})
    checkpoint = open_checkpoint("someone/model/sub/w.safetensors", revision="main")
    assert sorted(hub.fetched) == ["sub/config.json", "sub/w.safetensors"]
    assert checkpoint.config == {"model_type": "mimi"} and checkpoint.beside


def test_several_files_are_not_guessed_among_nor_fetched(hub: Hub) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        hub.put(name)
    with pytest.raises(CheckpointError, match="one.safetensors, two.safetensors.*name the file"):
        open_checkpoint("someone/model")
    assert not hub.fetched


def test_what_was_fetched_before_needs_no_network(hub: Hub) -> None:
    hub.put("model.safetensors")
    open_checkpoint("someone/model")
    hub.error = ConnectionError("network is unreachable")
    assert open_checkpoint("someone/model").names == set(WEIGHTS)
    with pytest.raises(CheckpointError, match="nothing of that name"):
        open_checkpoint("someone/model/other.safetensors")


@pytest.mark.parametrize("name", ["", "/w.safetensors", "/vqvae"])
@pytest.mark.parametrize("error", [ConnectionError("network is unreachable"), OSError()])
def test_an_unreachable_hub(hub: Hub, name: str, error: Exception) -> None:
    hub.error = error
    with pytest.raises(CheckpointError, match="could not be fetched.*local folder"):
        open_checkpoint(f"someone/model{name}")


def test_an_error_of_the_http_library(hub: Hub) -> None:
    """Its root is no OSError in every version of the Hub's library."""
    root = huggingface_hub.errors.HfHubHTTPError.__bases__[0]
    hub.error = root("timed out")
    with pytest.raises(CheckpointError, match="fetched.*timed out"):
        open_checkpoint("someone/model")


def test_messages_hold_neither_tokens_nor_passwords(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.error = OSError("401 for a request with Bearer hf_secret")
    with pytest.raises(CheckpointError, match=r"Bearer \*\*\*"):
        open_checkpoint("someone/model")
    with pytest.raises(CheckpointError, match=r"token=\*\*\*"):
        open_checkpoint("someone/model/vqvae?token=hf_other")
    with pytest.raises(CheckpointError, match=r"https://\*\*\*@"):
        open_checkpoint("https://me:hf_other@huggingface.co/someone/model")


@pytest.mark.parametrize("name", ["org/..", "org/repo/../../etc", "~nobody_at_all/x", "x" * 5000])
def test_names_that_lead_elsewhere_are_not_asked_for(hub: Hub, name: str) -> None:
    hub.error = AssertionError("it was asked for")
    with pytest.raises(CheckpointError, match="is neither a file|is no name of"):
        open_checkpoint(name)


def test_a_cache_of_configs_alone_is_not_taken_for_a_model(hub: Hub) -> None:
    hub.put("config.json", {})
    hub.snapshot_download(
        "someone/model", revision=None, allow_patterns=["*"], local_files_only=False
    )
    hub.error = ConnectionError("network is unreachable")
    with pytest.raises(CheckpointError, match="fetched.*network is unreachable"):
        open_checkpoint("someone/model")


def test_an_unknown_repository_is_not_looked_for_in_the_cache(hub: Hub) -> None:
    hub.put("model.safetensors")
    open_checkpoint("someone/model")
    hub.error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    with pytest.raises(CheckpointError, match="someone/model.*fetched"):
        open_checkpoint("someone/model")


@pytest.mark.parametrize("name", ["mimi", "./gone/model", "/gone/model", "~/gone", "a//b", ""])
def test_a_name_that_is_no_path_is_not_asked_of_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(CheckpointError):
        open_checkpoint(name)
    assert not hub.revisions
