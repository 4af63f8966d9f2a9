"""What a client knows of the models that an engine in another process serves; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from streamenc.errors import UsageError
from streamenc.spec import StreamSpec


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that an engine serves: what `RemoteEngine.open` takes.

    Attributes:
        name: By which the engine serves it.
        decode: Whether it is a decoder.
        public_name: What streams of it carry.
    """

    name: str
    decode: bool
    public_name: str
    spec: StreamSpec
    identity: str

    def fingerprint(self) -> str:
        """Identifies its weights, and all that it was configured with; see Model."""
        return self.identity

    def check_codebooks(self, codebooks: int, least: int = 1) -> int:
        """Raises InputError where the model has no such number of codebooks."""
        return self.spec.check_codebooks(codebooks, least)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """As Model's, without axes behind time: the first output tells how long they are."""
        return (shape[0], self.spec.output.channels, 0)

    def first_input(self, item: int) -> Fraction:
        """As Model's, where items lie evenly."""
        return self.spec.first_input(item)

    def warm_up(self, hops: int = 1) -> None:
        """Nothing: the engine does that."""


@dataclass(frozen=True, slots=True)
class RemoteCodec:
    """An encoder and a decoder that an engine serves by one name: what Encode and Decode take."""

    name: str
    public_name: str
    has_encoder: bool
    has_decoder: bool
    models: dict[bool, RemoteModel]  # by whether it decodes

    @property
    def spec(self) -> StreamSpec:
        """What the encoder promises."""
        return self.encoder.spec

    @property
    def encoder(self) -> RemoteModel:
        return self._model(False)

    @property
    def decoder(self) -> RemoteModel:
        return self._model(True)

    def _model(self, decode: bool) -> RemoteModel:
        model = self.models.get(decode)
        if model is None:
            what = "decoder" if decode else "encoder"
            raise UsageError(f"the engine serves {self.name} without its {what}")
        return model
