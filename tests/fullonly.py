"""What the full profile alone runs, and what stands for it in every run.

Of a test with parameters, each of which starts processes or steps through a whole model, one is
enough for each commit.
"""

from __future__ import annotations

# Node ids from `tests/` on -> the ones that are always run.
FULL_ONLY = {
    "bulk/encoding/test_manyitems.py::test_lanes_give_the_codes_of_each_item_alone": (
        "nano",
        "encodec",
    ),
    "bulk/encoding/test_manyitems.py::test_layouts_are_those_of_each_item_alone": ("delay",),
    "bulk/encoding/test_verifier.py::test_nothing_differs": ("0",),
    "bulk/decoding/test_segments.py::test_of_a_damaged_flac_only_what_is_damaged_is_missing": (
        "bit",
    ),
    "bulk/test_exactly_once.py::test_a_signal_ends_at_the_edge_of_a_shard": ("15",),
    "bulk/test_exactly_once.py::test_killed_between_a_shard_and_its_line": ("1-False",),
    "bulk/workers/test_workforce.py::test_an_item_of_which_a_process_dies_twice_is_skipped": ("1",),
    "campaign/test_peers.py::test_for_a_moment": (
        "pub: messages unpaced",
        "credit: never takes",
        "sub: parts without end",
    ),
    "cli/test_main.py::test_the_threads_of_the_process": ("options0-3-3",),
    "cli/test_tokenize.py::test_a_signal_ends_it_at_a_shards_edge": ("SIGTERM",),
    "onnx/test_onnxmodel.py::test_equals_torch_in_any_pieces": ("nano-encoder",),
    "serve/processes/test_supervisor.py::test_draining": ("True",),
}


def is_full_only(nodeid: str) -> bool:
    name, _, parameters = nodeid.removeprefix("tests/").partition("[")
    always = FULL_ONLY.get(name)
    return always is not None and parameters.removesuffix("]") not in always
