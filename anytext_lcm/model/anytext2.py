"""AnyText2 as one module whose state dict is the published checkpoint's, and the calls made on it.

Imports torch, OmegaConf and this room. No call leaves anything behind in the model: what upstream caches in
fields (control residuals, line embeddings, the sampler's toggle) is returned to the caller here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from anytext_lcm.model.checkpoint import load_strict, read_state_dict
from anytext_lcm.model.embedding_manager import EmbeddingManager
from anytext_lcm.model.recogniser import Recogniser
from anytext_lcm.model.text_encoder import TextEncoder, Tokenizer
from anytext_lcm.model.unet import UNetModel
from anytext_lcm.model.vae import AutoencoderKL, sample_posterior
from anytext_lcm.model.writenet import WriteNet

PARAMETERIZATIONS = ("eps", "v")
SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
)


@dataclass(frozen=True)
class Conditioning:
    """Everything the two networks are told about a picture.

    image_context (B, 77k, D) feeds the UNet, text_context (B, 77, D) WriteNet; glyphs (B, 1, H, W) 0/1;
    positions (B, 1, H, W) summed over lines, so 2 where two overlap; masked_latents (B, C, H/8, W/8), scaled.
    """

    image_context: Tensor
    text_context: Tensor
    glyphs: Tensor
    positions: Tensor
    masked_latents: Tensor

    def __len__(self) -> int:
        return self.glyphs.shape[0]

    def __getitem__(self, rows) -> "Conditioning":
        return Conditioning(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def chunk(self, parts: int) -> list["Conditioning"]:
        """Splits the batch evenly: undoes `cat` of conditionings of one size."""
        split = {name: getattr(self, name).chunk(parts) for name in self.__dataclass_fields__}
        return [Conditioning(**{name: values[i] for name, values in split.items()}) for i in range(parts)]

    @staticmethod
    def cat(parts: list["Conditioning"]) -> "Conditioning":
        """Joins batches. Image contexts of different length are tiled to a common one, which is exact: a
        softmax over keys that are all repeated equally often gives the same average of values.
        """
        length = math.lcm(*(p.image_context.shape[1] for p in parts))
        parts = [
            replace(p, image_context=p.image_context.repeat(1, length // p.image_context.shape[1], 1)) for p in parts
        ]
        names = Conditioning.__dataclass_fields__
        return Conditioning(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


class _Wrapper(nn.Module):
    """Upstream's DiffusionWrapper: only here for the name `model.diffusion_model`."""

    def __init__(self, unet: UNetModel):
        super().__init__()
        self.diffusion_model = unet


class AnyText2(nn.Module):
    """The whole network (upstream `cldm/cldm.py`, ControlLDM). Build it with `from_config`."""

    def __init__(self, params: Mapping, tokenizer_root: Path = Path(".")):
        super().__init__()
        self.scale_factor = float(params["scale_factor"])
        self.parameterization = params.get("parameterization", "eps")
        if self.parameterization not in PARAMETERIZATIONS:
            raise ValueError(f"parameterization must be one of {PARAMETERIZATIONS}, not {self.parameterization!r}.")
        self.latent_channels = int(params["channels"])
        self._schedule = (int(params["timesteps"]), params["linear_start"], params["linear_end"])
        for name, value in schedule_buffers(*self._schedule).items():
            self.register_buffer(name, value)
        text = dict(params["cond_stage_config"]["params"])
        self._tokenizer_folder = _resolve(Path(text["version"]), tokenizer_root)
        self._tokenizer: Tokenizer | None = None
        manager = dict(params["embedding_manager_config"]["params"])
        recogniser = dict(manager.pop("recogniser", {}))
        unet = UNetModel(only_mid_control=params.get("only_mid_control", False), **params["unet_config"]["params"])
        self.model = _Wrapper(unet)
        self.control_model = WriteNet(**params["control_stage_config"]["params"])
        self.first_stage_model = AutoencoderKL(**params["first_stage_config"]["params"])
        self.cond_stage_model = TextEncoder(**text)
        self.embedding_manager = EmbeddingManager(recogniser=recogniser, **_known(manager))
        self.text_predictor = Recogniser(**recogniser)

    @classmethod
    def from_config(cls, config: str | Path | DictConfig | Mapping, device: str | torch.device = "cpu") -> "AnyText2":
        """Builds the network from upstream's yaml format, with fresh weights, in eval mode.

        config: a path, or what OmegaConf.load gives. device "meta" builds without memory.
        Raises FileNotFoundError for a missing file and ValueError for one that does not describe a model.
        """
        root, where = Path("."), "The configuration"
        if isinstance(config, str | Path):
            path, where = Path(config), f"Configuration {config}"
            if not path.is_file():
                raise FileNotFoundError(
                    f"{where} is not a file; use models_yaml/anytext2_sd15.yaml or anytext2_tiny.yaml."
                )
            root = path.resolve().parent.parent
            try:
                config = OmegaConf.load(path)
            except Exception as error:
                raise ValueError(f"{where} is not valid yaml ({str(error).splitlines()[0]}).") from error
        if OmegaConf.is_config(config):
            config = OmegaConf.to_container(config, resolve=True)
        model = config.get("model") if isinstance(config, Mapping) else None
        params = model.get("params") if isinstance(model, Mapping) else None
        if not isinstance(params, Mapping):
            raise ValueError(f"{where} has no model.params; models_yaml/anytext2_sd15.yaml shows the format.")
        try:
            with torch.device(device):
                return cls(params, tokenizer_root=root).eval()
        except KeyError as error:
            raise ValueError(f"{where} does not describe an AnyText2 model: {error} is missing.") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{where} does not describe an AnyText2 model: {error}.") from error

    def load_checkpoint(self, path: str | Path) -> "AnyText2":
        """Loads a `.ckpt` or `.safetensors` file strictly (see `checkpoint.py`); fp16 or fp32. Returns self.

        A half-precision file has rounded the schedule too, 1 - abar at t = 1 by 15 %; there the yaml's exact
        one stays.
        """
        state = read_state_dict(path)
        for name, exact in schedule_buffers(*self._schedule, device="cpu").items():
            stored = state.get(name)
            if stored is None or stored.dtype == torch.float32 or stored.shape != exact.shape:
                continue
            if torch.allclose(stored.float(), exact, rtol=1e-2, atol=1e-4):
                state[name] = exact
        load_strict(self, state, source=f"Checkpoint {path}")
        return self

    def _apply(self, fn, recurse: bool = True) -> "AnyText2":
        """As any module's, but `.half()` and `.to(torch.bfloat16)` leave the schedule in fp32."""
        exact = {name: self._buffers[name] for name in SCHEDULE_BUFFERS}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            if self._buffers[name].dtype != value.dtype:
                self._buffers[name] = value.to(self._buffers[name].device)
        return self

    # -- properties ------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.betas.device

    @property
    def dtype(self) -> torch.dtype:
        """The networks' dtype; schedule arithmetic is fp32 whatever it is."""
        return self.control_model.fuse_block_za.weight.dtype

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            tokenizer = Tokenizer(self._tokenizer_folder)
            if tokenizer.placeholder_id != self.embedding_manager.placeholder_id:
                raise ValueError(
                    f"The tokenizer in {self._tokenizer_folder} gives '*' the id {tokenizer.placeholder_id}, "
                    f"the embedding manager waits for {self.embedding_manager.placeholder_id}; use the "
                    "vocabulary these weights were trained with."
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    # -- conditioning ----------------------------------------------------------------------------------------

    def condition(
        self,
        batch: Mapping,
        generator: torch.Generator | None = None,
        blank: tuple[Tensor, Tensor] | None = None,
    ) -> Conditioning:
        """A batch (fields of `anytext_lcm.data.batch`) -> Conditioning.

        `masked_latents` in the batch spares the encoder; `glyph_features` and `font_features` spare the
        recognisers. generator draws the posterior noise of the masked picture. blank: as in `masked_moments`. Raises
        ValueError when a field is missing or a caption has more placeholders than the picture has lines (unless it has
        one line).
        """
        needed = {"positions", "glyphs", "color", "n_lines", "img_caption", "text_caption"}
        needed |= set() if "masked_latents" in batch else {"masked_img"}
        if missing := sorted(needed - set(batch)):
            raise ValueError(f"The batch lacks {', '.join(missing)}; anytext_lcm.data.batch makes complete batches.")
        on_device = {k: v.to(self.device) for k, v in batch.items() if isinstance(v, Tensor)}
        embeddings = self.embedding_manager.line_embeddings(
            self.text_predictor,
            gly_line=on_device.get("gly_line"),
            positions=on_device["positions"],
            font_hint=on_device["font_hint"].float() / 255 if "font_hint" in on_device else None,
            color=on_device["color"],
            n_lines=batch["n_lines"],
            glyph_features=on_device.get("glyph_features"),
            font_features=on_device.get("font_features"),
        )
        masked = on_device.get("masked_latents")
        if masked is None:
            moments = self.masked_moments(batch["masked_img"], blank)
            masked = self.scale_factor * sample_posterior(*moments, generator)
        return Conditioning(
            image_context=self.image_context(self.tokenizer.image_ids(batch["img_caption"]), embeddings),
            text_context=self.text_context(self.tokenizer.text_ids(batch["text_caption"]), embeddings),
            glyphs=(on_device["glyphs"] != 0).any(dim=1, keepdim=True).to(self.dtype),
            positions=on_device["positions"].sum(dim=1, keepdim=True).to(self.dtype),
            masked_latents=masked.to(self.dtype),
        )

    def uncondition(self, conditioning: Conditioning, negative_prompt: str = "") -> Conditioning:
        """The branch that guidance pushes away from: the negative prompt as image caption and an empty text
        caption, with glyphs, positions and masked latents kept, as upstream deploys it.
        """
        size = len(conditioning)
        image = self.image_context(self.tokenizer.image_ids([negative_prompt]), None)
        text = self.text_context(self.tokenizer.text_ids([""]), None)
        return replace(conditioning, image_context=image.expand(size, -1, -1), text_context=text.expand(size, -1, -1))

    def image_context(self, ids: Tensor, embeddings: list[Tensor] | None) -> Tensor:
        """ids (B, T) of whole image captions -> (B, 77k, D); '*' takes line embeddings, across chunks too."""
        chunks = self.cond_stage_model.chunk(ids.to(self.device))
        counters, contexts = [0] * len(ids), []
        for chunk in chunks.unbind(1):
            context, counters = self._encode(chunk, embeddings, counters)
            contexts.append(context)
        return torch.cat(contexts, dim=1)

    def text_context(self, ids: Tensor, embeddings: list[Tensor] | None) -> Tensor:
        """ids (B, 77) of text captions -> (B, 77, D); the placeholder counter starts at 0 again."""
        return self._encode(ids.to(self.device), embeddings, [0] * len(ids))[0]

    def _encode(self, ids: Tensor, embeddings: list[Tensor] | None, counters: list[int]) -> tuple[Tensor, list[int]]:
        tower = self.cond_stage_model.text_model
        embeds = tower.embed(ids)
        if embeddings is not None:
            embeds, counters = self.embedding_manager.replace(ids, embeds, embeddings, counters)
        return tower(embeds), counters

    # -- networks --------------------------------------------------------------------------------------------

    def control(
        self,
        conditioning: Conditioning,
        strength: float = 1.0,
        latents: Tensor | None = None,
        timesteps: Tensor | None = None,
    ) -> list[Tensor]:
        """WriteNet's residuals times strength: one per input block, one for the middle (13 at full size).

        With `fast_control` (shipped) they depend on the conditioning alone: compute them once a picture and
        branch. latents and timesteps are needed only without it.
        """
        c = conditioning
        residuals = self.control_model(
            c.glyphs, c.positions, c.masked_latents, c.text_context, x=latents, timesteps=timesteps
        )
        return residuals if strength == 1.0 else [r * strength for r in residuals]

    def predict_noise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        control: list[Tensor] | None,
        attnx_scale: float = 1.0,
        encoded: list[Tensor] | None = None,
    ) -> Tensor:
        """latents (B, C, h, w), timesteps int64 (B,), residuals of `control` -> eps (B, C, h, w) in fp32. encoded: what
        the UNet's input blocks answer to these latents, timesteps and captions, when that is known already.

        A network trained on v (Salimans & Ho 2022, appendix D) is converted here, eps = sqrt(abar) v + sqrt(1
        - abar) x, so that every caller meets eps.
        """
        output = self.model.diffusion_model(
            latents.to(self.dtype),
            timesteps,
            conditioning.image_context,
            control=control,
            attnx_scale=attnx_scale,
            encoded=encoded,
        ).float()
        if self.parameterization == "eps":
            return output
        abar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return abar.sqrt() * output + (1 - abar).sqrt() * latents.float()

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """images (B, 3, H, W) in -1..1 -> a sample of the posterior times scale_factor, fp32 (never the mean,
        as upstream).
        """
        mean, logvar = self.first_stage_model.encode(images.to(self.device, self.dtype))
        return self.scale_factor * sample_posterior(mean.float(), logvar.float(), generator)

    @torch.no_grad()
    def blank_moments(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Mean and log variance, (1, C, h, w) each, unscaled, of the posterior of a picture that is -1 everywhere: the
        masked picture of all that is drawn from nothing.

        At full size they cost more than a call of the UNet, so a run computes them once and hands them on as `blank`.
        They hold as long as the autoencoder's weights, device and precision stay.
        """
        return self.first_stage_model.encode(
            torch.full((1, 3, height, width), -1.0, device=self.device, dtype=self.dtype)
        )

    def masked_moments(self, images: Tensor, blank: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """masked pictures (B, 3, H, W) -> mean and log variance of their latents' posterior, fp32, unscaled.

        Pictures to be drawn from nothing are all -1 and share their moments: blank, what `blank_moments` returns for
        this size, or else one of them is encoded here.
        """
        empty = is_blank(images)
        drawn, edited = (rows.nonzero().flatten() for rows in (empty, ~empty))
        parts = []
        if len(drawn):
            blank = self.blank_moments(*images.shape[-2:]) if blank is None else blank
            parts += [moment.expand(len(drawn), -1, -1, -1) for moment in blank]
        if len(edited):
            parts += self.first_stage_model.encode(images[edited].to(self.device, self.dtype))
        back = torch.cat([drawn, edited]).argsort().to(self.device)
        return tuple(torch.cat(kind).float()[back] for kind in (parts[::2], parts[1::2]))

    def decode(self, latents: Tensor) -> Tensor:
        """scaled latents (B, C, h, w) -> images (B, 3, 8h, 8w), about -1..1, fp32."""
        return self.first_stage_model.decode((latents / self.scale_factor).to(self.dtype)).float()


def is_blank(images: Tensor) -> Tensor:
    """masked pictures (B, 3, H, W) -> bool (B,): those that are -1 everywhere, so to be drawn from nothing."""
    return (images == -1).flatten(1).all(dim=1)


def schedule_buffers(
    timesteps: int, start: float, end: float, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """The 13 buffers upstream stores (`ldm/models/diffusion/ddpm.py`), each (timesteps,): fp64 kept as
    fp32.
    """
    betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64, device=device) ** 2
    abar = torch.cumprod(1 - betas, dim=0)
    previous = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    variance = betas * (1 - previous) / (1 - abar)
    buffers = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * previous.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - previous) * (1 - betas).sqrt() / (1 - abar),
        "logvar": torch.zeros_like(betas),
    }
    return {name: value.float() for name, value in buffers.items()}


def _resolve(folder: Path, root: Path) -> Path:
    """A relative folder is looked for in the working directory first, as upstream does, then in root."""
    return folder if folder.is_absolute() or folder.exists() else root / folder


def _known(manager: dict) -> dict:
    """Upstream's yaml carries settings of branches that its checkpoint does not use; only ours go on."""
    ours = ("token_dim", "enable_flag", "position_widths", "placeholder_id")
    return {k: manager[k] for k in ours if k in manager}
