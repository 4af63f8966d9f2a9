import pytest
import torch

from streamenc_kernels import cannot_pack, pack_linear, packed_linear
from tests.support.packing import module, packs

__all__ = ["packs"]


@pytest.mark.parametrize(("rows", "out", "into"), [(1, 5, 123), (2, 512, 64), (64, 33, 7)])
def test_packed_is_plain(packs: None, rows: int, out: int, into: int) -> None:
    weight, x = torch.randn(out, into), torch.randn(3, rows, into)
    packed = pack_linear(weight)
    assert packed is not None
    plain = packed_linear(x, weight)
    torch.testing.assert_close(packed_linear(x, weight, packed), plain, rtol=1e-5, atol=1e-5)
    transposed = pack_linear(weight.t().contiguous().t())
    torch.testing.assert_close(packed_linear(x, weight, transposed), plain, rtol=1e-5, atol=1e-5)
    bias = torch.randn(out)
    biased = packed_linear(x, weight, packed, bias)
    torch.testing.assert_close(biased, plain + bias, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed_linear(x, weight, bias=bias), plain + bias)


def test_what_cannot_be_packed_says_why(packs: None) -> None:
    assert cannot_pack(torch.ones(2, 2)) == ""
    assert "float64" in cannot_pack(torch.ones(2, 2, dtype=torch.float64))
    assert "meta" in cannot_pack(torch.ones(2, 2, device="meta"))
    assert pack_linear(torch.ones(2, 2, dtype=torch.float64)) is None


def test_packing_is_left_out_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_missing_ops", lambda: "")
    monkeypatch.setattr(module, "_no_gain", lambda rows: "the plain product is as fast here")
    assert pack_linear(torch.ones(2, 2)) is None


@pytest.mark.parametrize(
    ("packed_seconds", "pays"),
    [(0.5, True), (module.GAIN - 0.01, True), (module.GAIN, False), (1.0, False), (2.0, False)],
)
def test_packing_pays_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, packed_seconds: float, pays: bool
) -> None:
    if module._missing_ops():
        pytest.skip(module._missing_ops())
    seconds = iter([1.0, packed_seconds])  # the plain product is timed first
    monkeypatch.setattr(module, "_fastest", lambda run: run() and next(seconds))
    reason = module._no_gain.__wrapped__(2)
    assert reason == ("" if pays else "the plain product is as fast here")


def test_the_choice_can_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    if module._missing_ops():
        pytest.skip(module._missing_ops())
    monkeypatch.setattr(module, "_no_gain", lambda rows: pytest.fail("it was timed"))
    weight = torch.ones(2, 2)
    monkeypatch.setenv("STREAMENC_PACKED_LINEAR", "always")
    assert pack_linear(weight, 1000) is not None
    assert "float64" in cannot_pack(weight.double())
    monkeypatch.setenv("STREAMENC_PACKED_LINEAR", "never")
    assert cannot_pack(weight) == "STREAMENC_PACKED_LINEAR is never"
    monkeypatch.setattr(module, "_missing_ops", lambda: "this torch has none")
    monkeypatch.setenv("STREAMENC_PACKED_LINEAR", "always")
    assert pack_linear(weight) is None


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMENC_PACKED_LINEAR", "yes")
    with pytest.raises(ValueError, match="is 'yes'; wanted one of auto, always, never"):
        cannot_pack(torch.ones(2, 2))


@pytest.mark.parametrize("choice", ["", "auto", "always", "never"])
def test_the_choice_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, choice: str
) -> None:
    if module._missing_ops():
        pytest.skip(module._missing_ops())
    monkeypatch.setenv("STREAMENC_PACKED_LINEAR", choice)
    seconds = iter([0.016, 0.008])
    monkeypatch.setattr(module, "_fastest", lambda run: next(seconds))
    module._no_gain.cache_clear()
    module._log_once.cache_clear()
    with caplog.at_level("INFO", logger=module.__name__):
        for _ in range(3):
            assert bool(cannot_pack(torch.ones(2, 2))) == (choice == "never")
    module._no_gain.cache_clear()
    (record,) = caplog.records
    if choice in ("", "auto"):
        assert "are packed: a product takes 1.000 ms" in record.getMessage()
        assert "2.000 ms on plain" in record.getMessage()
    else:
        assert f"STREAMENC_PACKED_LINEAR={choice}" in record.getMessage()
