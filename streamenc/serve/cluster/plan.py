"""Plan: what an application on a cluster consists of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from streamenc.errors import UsageError
from streamenc.serve.limits import Limits


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is deployed, and on how many replicas.

    Attributes:
        models: That each replica serves.
        device: Each replica's; "auto" is the GPU that it was given, and else the CPU.
        num_cpus: That a replica takes of its node.
        num_gpus: That a replica takes of its node; a part of one, too.
        replicas: At least so many.
        max_replicas: At most so many; 0 for as many as `replicas`, always.
        limits: Of each replica; `sessions` are its streams.
        target_sessions: Connected streams of a replica, above which another one is started, and
            below which one is ended; 0 for three quarters of `limits.sessions`.
        upscale_seconds: For how long there must be too many streams for that.
        downscale_seconds: For how long there must be too few.
        drain_seconds: Within which a replica that ends has written its streams down, and told its
            clients to go.
        store: A folder that all nodes share, where streams are written to; "" for the memory of an
            actor on the head node.
        store_bytes: What that actor keeps at most.
        key_file: Of the keys of which a client needs one; read where the application is built, and
            sent to replicas as hashes.
        open: Nobody needs a key.
        origins: Of pages that may connect, beside those of the server itself.
    """

    models: tuple[str, ...] = ("nano",)
    device: str = "auto"
    num_cpus: Annotated[float, Meta(ge=0)] = 1.0
    num_gpus: Annotated[float, Meta(ge=0)] = 0.0
    replicas: Annotated[int, Meta(ge=1)] = 1
    max_replicas: Annotated[int, Meta(ge=0)] = 0
    limits: Limits = Limits()
    target_sessions: Annotated[float, Meta(ge=0)] = 0.0
    upscale_seconds: Annotated[float, Meta(ge=0)] = 15.0
    downscale_seconds: Annotated[float, Meta(ge=0)] = 300.0
    drain_seconds: Annotated[float, Meta(gt=0)] = 10.0
    store: str = ""
    store_bytes: Annotated[int, Meta(gt=0)] = 2**30
    key_file: str = ""
    open: bool = False
    origins: tuple[str, ...] = ()

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Plan:
        """From words, as a command line or a file in YAML has them; fields of limits may stand
        among them, and several models with commas between.

        Raises:
            UsageError: For an unknown name, or a value out of range.
        """
        words = dict(arguments)
        for name in ("models", "origins"):
            if isinstance(words.get(name), str):
                words[name] = [word for word in words[name].split(",") if word]
        of_limits = {name: words.pop(name) for name in Limits.__struct_fields__ if name in words}
        if of_limits:
            words["limits"] = {**words.get("limits", {}), **of_limits}
        try:
            plan = msgspec.convert(words, cls, strict=False)
        except msgspec.ValidationError as error:
            raise UsageError(f"this is no application for a cluster: {error}") from None
        plan.check()
        return plan

    def check(self) -> None:
        """Raises UsageError for what does not fit together."""
        if not self.models:
            raise UsageError("an application serves models; got none (models=nano)")
        if self.max_replicas and self.max_replicas < self.replicas:
            raise UsageError(
                f"got replicas={self.replicas} and max_replicas={self.max_replicas}; wanted at "
                "least as many"
            )
        if bool(self.key_file) == self.open:
            raise UsageError(
                "Ray's proxies may be reached from other machines: say either key_file=FILE, with "
                "keys of which a client needs one, or open=true"
            )

    @property
    def target(self) -> float:
        return self.target_sessions or 0.75 * self.limits.sessions
