"""Codecs of the DAC family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support import dac_references
from tests.support.zoo.row import Promise, Row, other


def save_dac(folder: Path) -> None:
    dac_references.dac().save_pretrained(folder)


def save_snac(folder: Path) -> None:
    dac_references.save_snac(folder, plain=False)


def save_snac_attention(folder: Path) -> None:
    dac_references.save_snac(folder, plain=False, **dac_references.ATTENTION)


ROWS = [
    Row("dac", "dac", save_dac, [(145, 10, 1, 1, 135, 0), (16, 1, 3, 10, 15, 0)]),
    Row("snac", "snac", save_snac, [(165, 24, 4, 4, 141, 0), (24, 1, 1, 6, 23, 0)]),
    Row(
        "snac-attention",
        "snac",
        save_snac_attention,
        [(195, 48, 3, 3, 147, 0), (10, 3, 21, 48, 7, 0)],
        options={"layout": "groups", "seed": 5},
    ),
]
PUBLISHED: dict[str, Promise] = {
    "descript/dac_16khz": (2813, 320, 1, 1, 2493, 0),
    "descript/dac_24khz": (2813, 320, 1, 1, 2493, 0),
    "descript/dac_44khz": (4245, 512, 1, 1, 3733, 0),
    "hubertsiuzdak/snac_24khz": (6805, 2048, 4, 4, 4757, 0),
    "hubertsiuzdak/snac_32khz": (14733, 12288, 24, 32, 2445, 0),
    "hubertsiuzdak/snac_44khz": (14733, 12288, 24, 32, 2445, 0),
}
FIELDS = {
    "descript/dac_16khz": 5314,
    "descript/dac_24khz": 5314,
    "descript/dac_44khz": 7978,
    "hubertsiuzdak/snac_24khz": 10026,
    "hubertsiuzdak/snac_32khz": 29468,
    "hubertsiuzdak/snac_44khz": 29468,
}
CONFIGURED = [
    ("dac", other("sampling_rate", 24_000)),
    ("snac", other("sampling_rate", 32_000)),
    ("snac-attention", other("attn_window_size", 12)),
]
ASKED: list[tuple[str, dict[str, Any]]] = [("snac", {"layout": "groups"})]
