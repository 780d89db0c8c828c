"""The LoRA adapter of a network: attach it, switch it off, save it, load it.

PEFT's layers are put into the network itself, which stays an AnyText2. PEFT's wrapper would hide it: the `model` of a
PeftModel is what it wraps, and AnyText2 has a `model` of its own. Next: `mix.py`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anytext_lcm.adapter.choices import MadeFor
from anytext_lcm.adapter.shipped import USUAL_STEPS, adapter_for, adapters_in
from anytext_lcm.adapter.stored import (
    CONFIG_FILE,
    KEY_PREFIX,
    WEIGHTS_FILE,
    check_alpha,
    check_rank,
    layer_names,
    read_adapter,
)
from anytext_lcm.adapter.targets import resolve_targets, unwrapped
from anytext_lcm.files import atomic_file, atomic_folder, follow_umask
from anytext_lcm.model.checkpoint import write_state_dict
from anytext_lcm.model.networks import ASSETS

if TYPE_CHECKING:  # peft takes seconds to import, so functions that need it import it
    from peft.tuners.lora import LoraLayer

ADAPTER_NAME = "default"  # PEFT's name for the only adapter
SHIPPED_ADAPTER = ASSETS / "adapter"


@dataclass(frozen=True, eq=False)
class Adapter:
    """The LoRA layers of a model, looked up once; at full size a search through its modules takes 10 ms.

    Valid for as long as the model keeps these layers, whatever their weights become.
    """

    model: nn.Module
    layers: Mapping[str, "LoraLayer"]  # by the name that the module has without an adapter, sorted

    @classmethod
    def of(cls, model: nn.Module) -> "Adapter":
        """Find the adapter of a model. Raises ValueError when there is none."""
        if layers := adapter_layers(model):
            return cls(model, layers)
        raise ValueError("The model has no adapter; attach or load one first.")

    @property
    def rank(self) -> int:
        return next(iter(self.layers.values())).r[ADAPTER_NAME]

    @property
    def alpha(self) -> float:
        return next(iter(self.layers.values())).lora_alpha[ADAPTER_NAME]

    def state(self) -> dict[str, nn.Parameter]:
        """The trained parameters by PEFT's keys, sorted: A (r, in, ...) and B (out, r, ...) of every layer.

        PEFT's get_peft_model_state_dict has the same keys, but searches the whole model and returns detached tensors,
        where an optimizer needs the parameters.
        """
        return {
            f"{KEY_PREFIX}{name}.lora_{matrix}.weight": getattr(layer, f"lora_{matrix}")[ADAPTER_NAME].weight
            for name, layer in self.layers.items()
            for matrix in "AB"
        }

    def touches(self, *prefixes: str) -> bool:
        """Whether a layer is one of these modules, named by their paths, or lies inside of one."""
        inside = tuple(f"{prefix}." for prefix in prefixes)
        return any(f"{name}.".startswith(inside) for name in self.layers)

    def norm(self) -> float:
        """The L2 norm of all parameters."""
        return float(torch.stack([parameter.detach().norm() for parameter in self.state().values()]).norm())

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """Inside, the model is the bare teacher, bit for bit. May be nested.

        Sets the flag that PEFT's layers look at. PEFT's disable_adapter_layers also sets requires_grad, which would
        unfreeze a loaded adapter on the way back, and takes ten times as long.
        """
        layers = list(self.layers.values())
        before = [layer._disable_adapters for layer in layers]
        try:
            for layer in layers:
                layer._disable_adapters = True
            yield self.model
        finally:
            for layer, flag in zip(layers, before, strict=True):
                layer._disable_adapters = flag

    @contextmanager
    def merged(self) -> Iterator[nn.Module]:
        """Inside, the adapter is part of the weights, which saves its own products. Not for training, not to be nested.

        Afterwards the model has its own weights again, bit for bit. PEFT's unmerge_adapter subtracts the update from
        the sum instead, which leaves rounding errors in the teacher.
        """
        weights = {name: layer.get_base_layer().weight for name, layer in self.layers.items()}
        before = {name: weight.data for name, weight in weights.items()}
        try:
            with torch.no_grad(), self.off():
                for name, weight in weights.items():
                    with torch.autocast(weight.device.type, enabled=False):  # it would round the update to half
                        update = self.layers[name].get_delta_weight(ADAPTER_NAME)
                        weight.data = (weight.float() + update).to(weight.dtype)
                yield self.model
        finally:
            for name, weight in weights.items():
                weight.data = before[name]


def adapter_layers(model: nn.Module) -> dict[str, "LoraLayer"]:
    """The adapted layers by the name that the module has without an adapter, sorted; empty without an adapter."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return dict(sorted(found.items()))


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[nn.Module]:
    """`Adapter.off` of a model that may have no adapter, and then is the bare teacher already."""
    with Adapter(model, adapter_layers(model)).off():
        yield model


def adapter_state(model: nn.Module) -> dict[str, nn.Parameter]:
    """`Adapter.state` of a model; empty without an adapter."""
    return Adapter(model, adapter_layers(model)).state()


def attach(model: nn.Module, rank: int = 64, alpha: float = 64, targets: Sequence[str] | None = None) -> nn.Module:
    """Put a fresh adapter into the model, in place, and freeze everything else. Return the model.

    W becomes W + (alpha / rank) B A; B starts at zero, so nothing changes yet (arXiv:2106.09685). A is drawn from
    torch's global generator. targets: group names of `find_targets` or module names, None for all groups. Raises
    ValueError for a rank outside 1..MAX_RANK, an alpha that is not positive and finite, an unknown target, or a model
    that has an adapter already.
    """
    from peft import LoraConfig
    from peft.functional import cast_adapter_dtype, inject_adapter_in_model

    check_rank(rank, "The LoRA rank")
    check_alpha(alpha, "LoRA alpha")
    if adapter_layers(model):
        raise ValueError("The model has an adapter already; merge it or build the model anew.")
    names = resolve_targets(model, targets)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=names)
    model.requires_grad_(False)
    inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
    attached = list(adapter_layers(model))
    if attached != names:  # PEFT matches names by their ends as well
        raise ValueError(f"PEFT adapted {len(attached)} modules instead of the {len(names)} named ones.")
    cast_adapter_dtype(model, ADAPTER_NAME)  # to fp32: an Adam step of 1e-4 is lost in half precision
    return model


def attach_weights(
    model: nn.Module, rank: int, alpha: float, state: Mapping[str, Tensor], trainable: bool = False
) -> nn.Module:
    """Put an adapter with these weights, by PEFT's keys, into the model, in place. Return the model.

    An attached adapter of the same layers and rank gets the weights. Raises ValueError as `attach` does. The random
    numbers that `attach` draws are not missing from the global generator afterwards.
    """
    from peft.functional import set_peft_model_state_dict

    if not adapter_layers(model):
        with torch.random.fork_rng(devices=[]):
            attach(model, rank, alpha, layer_names(state))
    set_peft_model_state_dict(model, dict(state), ADAPTER_NAME)
    for parameter in Adapter.of(model).state().values():
        parameter.requires_grad_(trainable)
    return model


def update_shapes(model: nn.Module, names: Sequence[str], rank: int) -> dict[str, tuple[int, ...]]:
    """PEFT's keys and the shapes that an adapter of this rank has on these modules."""
    shapes = {}
    for name in names:
        layer = unwrapped(model.get_submodule(name))
        if isinstance(layer, nn.Linear):
            down, up = (rank, layer.in_features), (layer.out_features, rank)
        else:
            down, up = (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
        shapes[f"{KEY_PREFIX}{name}.lora_A.weight"], shapes[f"{KEY_PREFIX}{name}.lora_B.weight"] = down, up
    return shapes


# -- files ------------------------------------------------------------------------------------------------


def save_adapter(model: nn.Module, directory: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write adapter_config.json and adapter_model.safetensors (fp32), in PEFT's own format. Return the directory.

    PeftModel.from_pretrained and `load_adapter` both read it. A new directory appears complete or not at all; in an
    existing one each file is replaced at once. metadata goes into the header of the weights. Raises ValueError when
    there is no adapter.
    """
    directory, adapter = Path(directory), Adapter.of(model)
    if not directory.exists():
        with atomic_folder(directory) as temporary:
            _write_weights(adapter, temporary / WEIGHTS_FILE, metadata)
            _write_config(adapter, temporary / CONFIG_FILE)
        return directory
    with atomic_file(directory / WEIGHTS_FILE) as temporary:
        _write_weights(adapter, temporary, metadata)
    with atomic_file(directory / CONFIG_FILE) as temporary:
        _write_config(adapter, temporary)
    return directory


def _write_weights(adapter: Adapter, path: Path, metadata: Mapping[str, str] | None) -> None:
    state = {key: value.detach().float().cpu().contiguous() for key, value in adapter.state().items()}
    write_state_dict(state, path, {"format": "pt", **(metadata or {})})
    follow_umask(path)


def _write_config(adapter: Adapter, path: Path) -> None:
    # PEFT keeps the targets as a set, shortened to name endings; the file gets every name, in an order that stays.
    config = adapter.model.peft_config[ADAPTER_NAME].to_dict()
    config |= {"target_modules": list(adapter.layers), "inference_mode": True}
    path.write_text(json.dumps(config, indent=2, sort_keys=True, default=sorted) + "\n", encoding="utf-8")


def shipped_adapters() -> dict[Path, MadeFor]:
    """The adapters of the package, see `adapters_in`; all have the same layers and rank, so one loads over another."""
    return adapters_in(SHIPPED_ADAPTER.parent)


def resolve_adapter(name: str | Path, steps: int = USUAL_STEPS) -> Path | None:
    """A folder, "shipped" (for so many steps) or "none" -> where the adapter is, None for none.

    Raises FileNotFoundError, and ValueError as `adapters_in`.
    """
    if str(name) == "none":
        return None
    folder = adapter_for(shipped_adapters(), steps) if str(name) == "shipped" else Path(name)
    if not (folder / CONFIG_FILE).is_file():
        hint = (
            "make one with `python -m anytext_lcm.demo` or `python -m anytext_lcm.train`, or say none for the teacher"
        )
        raise FileNotFoundError(f"There is no adapter in {folder}; {hint}.")
    return folder


def load_adapter(model: nn.Module, directory: str | Path, trainable: bool = False) -> nn.Module:
    """Put a saved adapter into the model, in place; over the attached one where both adapt the same modules. Return
    the model.

    Which modules are adapted is read off the weights, so adapters that PEFT wrote itself load as well. Raises as
    `read_fitting`, and ValueError for an adapter of another rank than the attached one; the model is unchanged then.
    """
    config, state = read_fitting(model, directory)
    rank, alpha = config["r"], config["lora_alpha"]
    if adapter_layers(model):
        attached = Adapter.of(model)
        if (_shapes(attached.state()), attached.alpha) != (_shapes(state), alpha):
            raise ValueError(
                f"The adapter in {directory} differs from the attached one in targets, rank or alpha; "
                "use a fresh model."
            )
    return attach_weights(model, rank, alpha, state, trainable)


def read_fitting(model: nn.Module, directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`read_adapter` for this network, which may be on the meta device.

    Raises FileNotFoundError for missing files and ValueError for an adapter of another network.
    """
    config, state = read_adapter(directory)
    rank, shapes = config["r"], _shapes(state)
    try:
        wanted = update_shapes(model, resolve_targets(model, layer_names(state)), rank)
    except ValueError as error:
        raise ValueError(f"The adapter in {directory} does not fit this network: {error}") from error
    if wrong := {key for key, _ in wanted.items() ^ shapes.items()}:
        raise ValueError(
            f"The adapter in {directory} does not fit this network: "
            f"{len(wrong)} weights differ in shape, like {min(wrong)}."
        )
    return config, state


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}
