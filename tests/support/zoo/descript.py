"""Codecs of the DAC family."""

from __future__ import annotations

from pathlib import Path

from tests.support import dac_references
from tests.support.zoo.row import Promise, Row, other


def save_dac(folder: Path) -> None:
    dac_references.dac().save_pretrained(folder)


ROWS = [Row("dac", "dac", save_dac, [(145, 10, 1, 1, 135, 0), (16, 1, 3, 10, 15, 0)])]
PUBLISHED: dict[str, Promise] = {
    "descript/dac_16khz": (2813, 320, 1, 1, 2493, 0),
    "descript/dac_24khz": (2813, 320, 1, 1, 2493, 0),
    "descript/dac_44khz": (4245, 512, 1, 1, 3733, 0),
}
FIELDS = {"descript/dac_16khz": 5314, "descript/dac_24khz": 5314, "descript/dac_44khz": 7978}
CONFIGURED = [("dac", other("sampling_rate", 24_000))]
