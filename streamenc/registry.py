"""The models by name: a table of strings, imported on demand.

A model from outside is a family as one of streamenc's own is, see streamenc.plugins: a module, or
an object, with

    load(name, checkpoint, part, **options)   (encoder or None, decoder or None), each a Model.
    recognises(checkpoint)                    Whether a checkpoint is one of its own. A family that
                                              lacks it has no weights that users name: it gets no
                                              checkpoint, and as `name` what stands behind "own:".
    published_spec(variant)                   StreamSpec without any weights, for `LISTED`.
    LISTED = {"own": ("", "a caption")}       Name -> (variant, caption) of what `streamenc models`
                                              shows; only `load` has to be there.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
import platform
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from streamenc import plugins
from streamenc.errors import CannotLower, CheckpointError, UsageError
from streamenc.models.families import (
    BUNDLED,
    DEFAULT,
    FAMILIES,
    LISTED,
    WITHOUT_WEIGHTS,
    Listed,
)
from streamenc.spec import StreamSpec

if TYPE_CHECKING:
    import torch

    from streamenc.checkpoints.checkpoint import Checkpoint
    from streamenc.codec import Codec
    from streamenc.models.model import Model

log = logging.getLogger(__name__)
Part = Literal["both", "encoder", "decoder"]
# backend -> the precisions that it has, the first as its default.
PRECISIONS = {"torch": ("float32",), "compiled": ("int16", "float32"), "onnx": ("float32",)}
BACKEND_VARIABLE = "STREAMENC_BACKEND"

_WEIGHTS = Path(__file__).parent / "weights"
plugins.reserve("models", (*FAMILIES, *LISTED))


class _Bare(SimpleNamespace):
    """A family that is nothing but its function `load`."""


def load(
    name: str | os.PathLike[str] = DEFAULT,
    *,
    part: Part = "both",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
    **options: Any,
) -> Codec:
    """Loads a model.

    Args:
        name: A listed name, a Hub name ("kyutai/mimi"), a folder, a checkpoint file, or any of
            these behind a family and a colon ("mimi:weights.safetensors") where the layout alone
            does not tell the family. The family is one of streamenc's own, one from outside by its
            name ("own"), or "package.module:load": that imports the module.
        part: "encoder" neither reads nor allocates the decoder, and the other way round.
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one that torch was built
            for and the model can run on, and else the CPU; see `compute_devices`.
        dtype: The weights' type; float32 where None. Codebooks stay in float32 at least.
        revision: Branch, tag or commit on the Hub.
        backend: What live steps on the CPU run in: "torch"; "compiled", programs of large
            instructions (the extra `cpu`); "onnx", ONNX Runtime. None is "compiled" where numba is
            installed, the dtype is float32 and the model's layers have instructions, and else
            "torch"; the environment variable STREAMENC_BACKEND=torch makes it "torch" everywhere.
        precision: Of the weights of large products in compiled steps: "int16", the default, each
            output with a scale of its own, or "float32".
        **options: What the family takes: `exact=False` for EnCodec 24 kHz, `tail="transformers"`
            for Mimi.

    Raises:
        UsageError: For an unknown family, option or device; where the model cannot run in the
            backend that was asked for, or an extra is missing.
        CheckpointError: For weights that do not fit.
        ExportError: For an ONNX step that does not compute what torch computes.
    """
    import torch

    from streamenc.codec import Codec, public_name
    from streamenc_kernels import FullFloat32

    if part not in ("both", "encoder", "decoder"):
        raise UsageError(f"part is 'both', 'encoder' or 'decoder'; got {part!r}")
    on_cpu = backend in ("compiled", "onnx")
    where = device_of("cpu" if device == "auto" and on_cpu else device)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"dtype is a floating type of torch, such as torch.float64; got {dtype!r}")
    run = _backend(backend, precision, where, dtype)
    name = os.fspath(name)
    family, module, given, checkpoint = _found(name, revision, part)
    _check_options(name if name in LISTED else family, family, module.load, options)
    encoder, decoder = _pair(family, module.load(given, checkpoint, part, **options))
    with FullFloat32(where.type):
        for model in filter(None, (encoder, decoder)):
            model.to(where, dtype or torch.float32).eval()
            model.prepare()
        encoder, decoder = (model and run.take(model) for model in (encoder, decoder))
    called = public_name(name, LISTED)
    return Codec(name, encoder, decoder, public_name=called, family=family)


def _found(name: str, revision: str | None, part: Part) -> tuple[str, Any, str, Checkpoint | None]:
    """What a name stands for: the family and its module, and what its loader gets."""
    from streamenc.checkpoints.checkpoint import open_checkpoint

    if not name:
        raise UsageError("a model has a name; `streamenc models` lists some")
    if name in BUNDLED:
        if revision is not None:
            raise UsageError(f"{name} comes with streamenc and has no revision {revision!r}")
        checkpoint = open_checkpoint(os.fspath(_WEIGHTS / name))
        family = family_of(checkpoint)
        return family, family_module(family), name, checkpoint
    family, _, rest = name.partition(":")
    named = family_by_path(name)
    if named is None and family not in families():
        checkpoint = open_checkpoint(name, revision=revision, part=part)
        family = family_of(checkpoint)
        return family, family_module(family), name, checkpoint
    if named is None:
        module = family_module(family)
    else:
        (plugin, rest), family = named, named[0].name
        module = _usable(plugin)
    # A bare function says nothing of itself: it gets a checkpoint where one is named.
    with_weights = bool(rest) if isinstance(module, _Bare) else _has_weights(family, module)
    if not with_weights:
        return family, module, rest, None
    if not rest:
        raise UsageError(f"{family!r} is a family; name its weights: {family}:PATH or a Hub name")
    checkpoint = open_checkpoint(rest, revision=revision, part=part)
    _keep_config(checkpoint, family)
    return family, module, name, checkpoint


def families() -> list[str]:
    """The names of all families, those from outside behind streamenc's own."""
    return [*FAMILIES, *(name for name in plugins.known("models") if name not in FAMILIES)]


def family_module(family: str) -> Any:
    """What has the family's `load`; families from outside may be named "module:attribute" too.

    Raises UsageError where there is no such family, or where it cannot be used.
    """
    if family in FAMILIES:
        return import_module(FAMILIES[family])
    plugin = plugins.known("models").get(family)
    if plugin is None:
        named = plugins.by_path(family)
        if named is None or named[1]:
            raise UsageError(f"{family!r} is no family; known are {', '.join(families())}")
        plugin = named[0]
    return _usable(plugin)


def family_by_path(name: str) -> tuple[plugins.Plugin, str] | None:
    """What a user names as "module:attribute" or "module:attribute:WEIGHTS", and the weights; None
    where `name` is of a known family, or a file."""
    named = plugins.by_path(name)
    if named is None or name.partition(":")[0] in families() or os.path.exists(name):
        return None
    return named


def _usable(plugin: plugins.Plugin) -> Any:
    """Raises UsageError where what is there is no family."""
    found = plugin.load()
    if callable(getattr(found, "load", None)):
        return found
    if callable(found) and not isinstance(found, type):
        return _Bare(load=found, __doc__=found.__doc__)
    raise plugin.broken(
        f"{found!r} is no family; wanted a module or an object with "
        "load(name, checkpoint, part, **options), or that function"
    )


def _has_weights(family: str, module: Any) -> bool:
    """Whether a family's loader takes a checkpoint."""
    return family not in WITHOUT_WEIGHTS if family in FAMILIES else hasattr(module, "recognises")


def _pair(family: str, loaded: Any) -> tuple[Model | None, Model | None]:
    """Raises UsageError where a loader gave something else."""
    from streamenc.models.model import Model

    pair = loaded if isinstance(loaded, tuple) else ()
    models = [model for model in pair if model is not None]
    if len(pair) != 2 or not models or not all(isinstance(model, Model) for model in models):
        raise UsageError(
            f"{family!r} loaded {loaded!r}; wanted (encoder or None, decoder or None), each a "
            "streamenc.models.model.Model, and one of them at least"
        )
    return pair


def _check_options(
    known_as: str, family: str, loader: Callable[..., Any], options: dict[str, Any]
) -> None:
    """Raises UsageError where the loader has no such option; one that takes any checks them.

    known_as  What `streamenc models` knows it by.
    """
    parameters = inspect.signature(loader).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters][3:]  # after name, checkpoint and part
    for option in options:
        if option not in known:
            raise UsageError(
                f"{family} has no option {option!r}; it has {', '.join(known) or 'none'}; see "
                f"`streamenc models {known_as}`"
            )


class _Backend(NamedTuple):
    """What steps run in.

    wanted  Whether it was asked for by name; if not, torch may stand in for it.
    """

    name: str
    precision: str
    wanted: bool

    def take(self, model: Model) -> Model:
        """The model as it runs there. Raises UsageError where it was asked for and cannot."""
        if self.name == "onnx":
            return _in_onnx(model)
        return model if self.name == "torch" else self._compiled(model)

    def _compiled(self, model: Model) -> Model:
        from streamenc.compiled.compiledmodel import CompiledModel, check_precision
        from streamenc_kernels.compiled.entry import CannotCompile

        name = model.spec.name
        try:
            return CompiledModel(model, check_precision(self.precision))
        except (CannotLower, CannotCompile) as error:
            if self.wanted:
                raise UsageError(
                    f"{name} cannot run as compiled steps: {error}; load it without backend="
                ) from error
            level = logging.WARNING if isinstance(error, CannotCompile) else logging.DEBUG
            log.log(level, "%s runs in torch: %s", name, error)
            return model


def _backend(
    backend: str | None, precision: str | None, where: torch.device, dtype: torch.dtype | None
) -> _Backend:
    """What the arguments of `load` ask for. Raises UsageError where they do not fit."""
    if backend not in (None, *PRECISIONS):
        raise UsageError(f"backend is 'torch', 'compiled' or 'onnx'; got {backend!r}")
    float32_on_cpu = where.type == "cpu" and str(dtype or "torch.float32") == "torch.float32"
    wanted = backend is not None
    if backend is None and precision in (None, "float32"):
        backend = "compiled" if _compiles_by_default() and float32_on_cpu else "torch"
    elif backend is None:
        backend, wanted = "compiled", True  # the precision says so
    known = PRECISIONS[backend]
    if precision not in (None, *known):
        raise UsageError(
            f"precision of backend={backend!r} is one of {', '.join(known)}; got {precision!r}"
        )
    if backend != "torch" and not float32_on_cpu:
        raise UsageError(
            f"{backend} steps run on the CPU and start from float32 weights; got device {where} "
            f"and dtype {dtype}"
        )
    return _Backend(backend, precision or known[0], wanted)


def _compiles_by_default() -> bool:
    choice = os.environ.get(BACKEND_VARIABLE) or "auto"
    if choice not in ("auto", "torch"):
        raise UsageError(f"{BACKEND_VARIABLE} is {choice!r}; wanted auto or torch")
    return choice == "auto"


def _in_onnx(model: Model) -> Model:
    """Raises UsageError where the model cannot run as ONNX steps."""
    from streamenc.onnx.export import missing_packages, why_not
    from streamenc.onnx.onnxmodel import OnnxModel

    if next(model.parameters(), None) is None:
        raise UsageError(f"{model.spec.name} has no weights: it would gain nothing as an ONNX step")
    if reason := why_not(model) or missing_packages():
        raise UsageError(reason)
    exported = OnnxModel(model)
    exported.warm_up()  # now, as loading is known to take time
    return exported


class ComputeDevice(NamedTuple):
    """What models can be loaded on.

    Attributes:
        name: "cuda:0", for `device`.
        description: "NVIDIA H100 80GB HBM3, 79 GiB".
        cannot: Why "auto" does not take it; "" where it can.
    """

    name: str
    description: str
    cannot: str


def compute_devices() -> list[ComputeDevice]:
    """What torch can compute on here: GPUs, and the CPU as the last one. "auto" is the first that
    it can take."""
    import torch

    from streamenc_kernels.compiled.entry import why_not_compiled

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name, memory = torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)[1]
        description = f"{name}, {memory / 2**30:.0f} GiB"
        found.append(ComputeDevice(f"cuda:{index}", description, _not_built_for(index)))
    threads = torch.get_num_threads()
    compiled = f"compiled steps: {reason}" if (reason := why_not_compiled()) else "compiled steps"
    description = f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}, {compiled}"
    return [*found, ComputeDevice("cpu", description, "")]


def _not_built_for(index: int) -> str:
    """Why torch has no code for a GPU; "" where it has."""
    import torch

    if torch.version.cuda is None:
        return ""  # ROCm names its architectures another way
    major, minor = torch.cuda.get_device_capability(index)
    for arch in torch.cuda.get_arch_list():
        kind, _, number = arch.partition("_")
        digits = int("".join(filter(str.isdigit, number)) or 0)
        # Machine code runs on later devices of its generation, what is compiled there on all later.
        machine = digits // 10 == major and digits % 10 <= minor
        if machine if kind == "sm" else digits <= 10 * major + minor:
            return ""
    return f"this torch was not built for its compute capability, {major}.{minor}"


def device_of(device: str | torch.device) -> torch.device:
    """The device that `load` takes by that name. Raises UsageError where there is none."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = next(found.name for found in compute_devices() if not found.cannot)
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UsageError(f"got device {device!r}; wanted cpu, cuda, cuda:1, or auto") from None
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise UsageError(
            f"got device {device!r}; torch sees {gpus} GPUs here. auto takes one where there is one"
        )
    return found


def listed_models() -> dict[str, Listed]:
    """What `streamenc models` lists: streamenc's own, then those that families from outside list.

    It imports the latter; one that cannot be used is named in the log.
    """
    found = dict(LISTED)
    for family, plugin in plugins.known("models").items():
        try:
            listed = _listed_by(family, plugin)
        except UsageError as error:
            plugins.leave_out(error)
            continue
        for name, entry in listed.items():
            if name in found:
                what = f"it lists {name!r}, which is the name of another model"
                plugins.leave_out(plugin.broken(what))
            else:
                found[name] = entry
    return found


def _listed_by(family: str, plugin: plugins.Plugin) -> dict[str, Listed]:
    """The models that a family from outside lists. Raises UsageError."""
    module = _usable(plugin)
    table = getattr(module, "LISTED", {})
    try:
        listed = {name: Listed(family, *entry) for name, entry in table.items()}
    except (AttributeError, TypeError) as error:
        raise plugin.broken(
            f"its LISTED is {table!r}; wanted name -> (variant, caption)"
        ) from error
    if listed and not callable(getattr(module, "published_spec", None)):
        raise plugin.broken("it has LISTED, but no published_spec(variant)")
    return listed


def published_spec(name: str) -> StreamSpec:
    """What the encoder of a listed model promises, without its weights. Raises UsageError."""
    listed = LISTED.get(name) or listed_models().get(name)
    if listed is None:
        raise UsageError(
            f"{name!r} is not among the listed models; `streamenc models` shows them. What another "
            "one promises is known once it is loaded: streamenc.load(name).spec"
        )
    module = family_module(listed.family)
    if listed.family in FAMILIES:
        spec: StreamSpec = module.published_spec(listed.variant)
        return spec
    plugin = plugins.known("models")[listed.family]
    promised = plugin.call(module.published_spec, listed.variant)
    if not isinstance(promised, StreamSpec):
        raise plugin.broken(f"published_spec gave {promised!r}; wanted a StreamSpec")
    return promised


def family_of(checkpoint: Checkpoint) -> str:
    """The family that a checkpoint's config or tensors tell. Raises CheckpointError.

    One from outside only where none of streamenc's own recognises the checkpoint. Of a file that
    was named by itself the tensors tell, and a config beside it that is of another model is left.
    """
    if checkpoint.beside:
        bare = copy.copy(checkpoint)
        bare.config, bare.beside = {}, False
        family = family_of(bare)
        _keep_config(checkpoint, family)
        stated = _stated(checkpoint)
        return stated if stated in FAMILIES else family
    stated = _stated(checkpoint)
    if stated in FAMILIES:
        return stated
    # In the table's order: families of one module recognise the same tensors.
    with_weights = [family for family in FAMILIES if family not in WITHOUT_WEIGHTS]
    for family in with_weights:
        if import_module(FAMILIES[family]).recognises(checkpoint):
            return family
    for family, plugin in plugins.known("models").items():
        try:
            module = _usable(plugin)
            if not _has_weights(family, module):
                continue
            recognised = plugin.call(module.recognises, checkpoint)
        except UsageError as error:
            plugins.leave_out(error)
            continue
        with_weights.append(family)
        if recognised:
            return family
    known = ", ".join(sorted(with_weights))
    what = f"its config says {stated!r}" if stated else "its tensors have none of their names"
    raise CheckpointError(
        f"{checkpoint.name} is of no known family ({known}): {what}. "
        "Where you know better, put the family before it: mimi:PATH"
    )


def _stated(checkpoint: Checkpoint) -> str:
    """What a config says of its model's kind; "" where it says nothing."""
    stated = checkpoint.config.get("model_type", checkpoint.config.get("_class_name"))
    return stated if isinstance(stated, str) else ""


def _keep_config(checkpoint: Checkpoint, family: str) -> None:
    """Of a file that was named by itself, keeps the config beside it if it is of its family."""
    if not checkpoint.beside or not checkpoint.config:
        return
    stated, module = _stated(checkpoint), FAMILIES.get(family)
    if stated == family or (module is not None and FAMILIES.get(stated) == module):
        return
    named = getattr(import_module(module), "CLASS_NAME", ()) if module is not None else ()
    if stated not in (named if isinstance(named, tuple) else (named,)):
        checkpoint.leave_config(family, stated)
