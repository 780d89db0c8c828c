"""AnyText2 as one module whose state dict is the published checkpoint's, and the calls made on it.

No call leaves anything behind in the model: what upstream caches in fields (control residuals, line embeddings, the
sampler's toggle) is returned to the caller. The tokenizer alone is read on first use and kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from anytext_lcm.model.checkpoint import check_fits, copy_out, kind_of, load_strict, read_state_dict
from anytext_lcm.model.conditioning import Conditioning, check_fields, is_blank, line_inputs
from anytext_lcm.model.config import read_configs
from anytext_lcm.model.embedding_manager import EmbeddingManager
from anytext_lcm.model.networks import find_config
from anytext_lcm.model.recogniser import Recogniser
from anytext_lcm.model.stored_schedule import SCHEDULE_BUFFERS, schedule_buffers
from anytext_lcm.model.text_encoder import TextEncoder, Tokenizer, find_tokenizer
from anytext_lcm.model.unet import Stem, UNetModel
from anytext_lcm.model.vae import AutoencoderKL, sample_posterior
from anytext_lcm.model.writenet import WriteNet

PARAMETERIZATIONS = ("eps", "v")


class _Wrapper(nn.Module):
    """Upstream's DiffusionWrapper, for the name `model.diffusion_model` in the state dict."""

    def __init__(self, unet: UNetModel):
        super().__init__()
        self.diffusion_model = unet


class AnyText2(nn.Module):
    """The whole network (upstream `cldm/cldm.py`, ControlLDM). Build it with `from_config`.

    B pictures of H x W pixels have latents of C channels and h x w = H/8 x W/8.
    """

    def __init__(self, params: Mapping, roots: Sequence[Path] = ()):
        super().__init__()
        self.scale_factor = float(params["scale_factor"])
        self.parameterization = params.get("parameterization", "eps")
        if self.parameterization not in PARAMETERIZATIONS:
            raise ValueError(f"parameterization must be one of {PARAMETERIZATIONS}, not {self.parameterization!r}.")
        self.latent_channels = int(params["channels"])
        self._schedule = (int(params["timesteps"]), params["linear_start"], params["linear_end"])
        for name, value in schedule_buffers(*self._schedule).items():  # 13 for the checkpoint; one is computed with
            self.register_buffer(name, value)
        text = dict(params["cond_stage_config"]["params"])
        self.tokenizer_folder = find_tokenizer(text["version"], roots)
        self._tokenizer: Tokenizer | None = None
        manager = dict(params["embedding_manager_config"]["params"])
        recogniser = dict(manager.pop("recogniser", {}))
        trunk, own = read_configs(params["unet_config"]["params"], params["control_stage_config"]["params"])
        self.model = _Wrapper(UNetModel(trunk, params.get("only_mid_control", False)))
        self.control_model = WriteNet(trunk, own)
        self.first_stage_model = AutoencoderKL(**params["first_stage_config"]["params"])
        self.cond_stage_model = TextEncoder(**text)
        self.embedding_manager = EmbeddingManager(recogniser=recogniser, **_known(manager))
        self.text_predictor = Recogniser(**recogniser)

    @classmethod
    def from_config(cls, config: str | Path | DictConfig | Mapping, device: str | torch.device = "cpu") -> "AnyText2":
        """Build the network from upstream's yaml format, with fresh weights, in eval mode.

        config: a path, or what OmegaConf.load returns. The device "meta" builds without memory.
        Raises FileNotFoundError for a missing file and ValueError for one that does not describe a model.
        """
        roots, where = (), "The configuration"
        if isinstance(config, str | Path):
            path, where = find_config(config), f"Configuration {config}"
            roots = tuple(path.resolve().parents)[:3]
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
                return cls(params, roots).eval()
        except KeyError as error:
            raise ValueError(f"{where} does not describe an AnyText2 model: {error} is missing.") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{where} does not describe an AnyText2 model: {error}.") from error

    def load_checkpoint(self, path: str | Path, device: str | torch.device = "cpu") -> "AnyText2":
        """Load a `.ckpt` or `.safetensors` file strictly (see `checkpoint.py`), fp16 or fp32, and return self.

        A model on the meta device gets its tensors on `device`, in its own dtypes and with channels last; at no time
        is there more in memory than these and a piece of the file. Raises FileNotFoundError or ValueError; nothing is
        loaded then.
        """
        state = read_state_dict(path)
        replaced = self._exact_schedule(state)
        own = self.state_dict()
        if not any(value.is_meta for value in own.values()):
            load_strict(self, state | replaced, source=f"Checkpoint {path}")
            return self
        check_fits(self, state, source=f"Checkpoint {path}")

        def copy(name: str, value: Tensor) -> Tensor:
            # Convolutions read and write pixels with their channels beside each other: nothing is reordered in between.
            layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
            value = replaced.get(name, value)
            return value.to(device, own[name].dtype, copy=True, memory_format=layout)

        self.load_state_dict(copy_out(path, state, list(own), copy), strict=True, assign=True)
        return self

    def _exact_schedule(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The yaml's schedule where a file holds it rounded: half precision changes 1 - abar at t = 1 by 15 %."""
        found = {}
        for name, exact in schedule_buffers(*self._schedule, device="cpu").items():
            stored = state.get(name)
            if stored is None or kind_of(stored) or stored.dtype == torch.float32 or stored.shape != exact.shape:
                continue
            if torch.allclose(stored.float(), exact, rtol=1e-2, atol=1e-4):
                found[name] = exact
        return found

    def _apply(self, fn, recurse: bool = True) -> "AnyText2":
        """Convert as any module does, but leave the schedule in fp32."""
        exact = {name: self._buffers[name] for name in SCHEDULE_BUFFERS}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            if self._buffers[name].dtype != value.dtype:
                self._buffers[name] = value.to(self._buffers[name].device)
        return self

    # -- properties ------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the schedule, and so of the whole model."""
        return self.betas.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the networks; the schedule is fp32 whatever it is."""
        return self.control_model.fuse_block_za.weight.dtype

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the yaml's folder, read on first use; FileNotFoundError or ValueError if it does not fit."""
        if self._tokenizer is None:
            tokenizer = Tokenizer(self.tokenizer_folder)
            if tokenizer.placeholder_id != self.embedding_manager.placeholder_id:
                raise ValueError(
                    f"The tokenizer in {self.tokenizer_folder} gives '*' the id {tokenizer.placeholder_id}, "
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
        """Encode a batch (fields of `anytext_lcm.data.batch`).

        `masked_latents` in the batch spares the encoder; `glyph_features` and `font_features` spare the recognisers.
        generator draws the posterior noise of the masked picture. blank: as in `masked_moments`.
        Raises ValueError when a field is missing, or when a caption has more placeholders than the picture has lines
        and it has more than one line.
        """
        check_fields(batch)
        on_device = {k: v.to(self.device) for k, v in batch.items() if isinstance(v, Tensor)}
        # n_lines is read as numbers, so it stays where it is.
        lines = line_inputs(on_device | {"n_lines": batch["n_lines"]})
        embeddings = self.embedding_manager.line_embeddings(lines, self.text_predictor)
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
        """Make the branch that guidance pushes away from, as upstream does.

        The negative prompt is its image caption and the text caption is empty; glyphs, positions and masked latents
        stay.
        """
        size = len(conditioning)
        image = self.image_context(self.tokenizer.image_ids([negative_prompt]), None)
        text = self.text_context(self.tokenizer.text_ids([""]), None)
        return replace(conditioning, image_context=image.expand(size, -1, -1), text_context=text.expand(size, -1, -1))

    def image_context(self, ids: Tensor, embeddings: list[Tensor] | None) -> Tensor:
        """Encode whole image captions, ids (B, T), as (B, 77k, D); '*' takes line embeddings, across chunks too."""
        chunks = self.cond_stage_model.chunk(ids.to(self.device))
        counters, contexts = [0] * len(ids), []
        for chunk in chunks.unbind(1):
            context, counters = self._encode(chunk, embeddings, counters)
            contexts.append(context)
        return torch.cat(contexts, dim=1)

    def text_context(self, ids: Tensor, embeddings: list[Tensor] | None) -> Tensor:
        """Encode text captions, ids (B, 77), as (B, 77, D); '*' takes line embeddings, from the first line on."""
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
        latents: Tensor | None = None,
        timesteps: Tensor | None = None,
        strength: float = 1.0,
        stem: Stem | None = None,
    ) -> list[Tensor]:
        """Compute WriteNet's residuals times strength: one per input block, one for the middle block (13 at full size).

        With `fast_control` (as released) they depend on the conditioning alone, so one call serves all sampling steps.
        latents (B, C, h, w) and timesteps (B,) are needed only without it. stem: of `control_stem`, if it is known.
        """
        c = conditioning
        residuals = self.control_model(
            c.glyphs, c.positions, c.masked_latents, c.text_context, x=latents, timesteps=timesteps, stem=stem
        )
        return residuals if strength == 1.0 else [strength * residual for residual in residuals]

    def control_stem(self, conditioning: Conditioning) -> Stem:
        """Compute what WriteNet does before its first attention; no caption changes it. ValueError: no fast control."""
        return self.control_model.stem(conditioning.glyphs, conditioning.positions, conditioning.masked_latents)

    def noise_stem(self, latents: Tensor, timesteps: Tensor) -> Stem:
        """Compute what the UNet does before its first attention; neither caption nor residuals change it."""
        unet = self.model.diffusion_model
        unet.check_size(latents)
        return unet.run_stem(latents.to(self.dtype), unet.embed(timesteps))

    def predict_noise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        control: list[Tensor] | None,
        attnx_scale: float = 1.0,
        encoded: list[Tensor] | None = None,
        stem: Stem | None = None,
    ) -> Tensor:
        """Predict the noise eps, (B, C, h, w) in fp32.

        Arguments
            latents      (B, C, h, w), scaled
            timesteps    (B,) int64
            control      residuals of `control`, or None for none
            attnx_scale  weight of the extra attention
            encoded      what the UNet's `encode` returns for these latents, timesteps and captions, if it is known
            stem         likewise what `noise_stem` returns for these latents and timesteps

        The output v of a network trained on velocity (Salimans & Ho 2022, appendix D) is converted:
        eps = sqrt(abar) v + sqrt(1 - abar) x.
        """
        output = self.model.diffusion_model(
            latents.to(self.dtype),
            timesteps,
            conditioning.image_context,
            control=control,
            attnx_scale=attnx_scale,
            encoded=encoded,
            stem=stem,
        ).float()
        if self.parameterization == "eps":
            return output
        abar = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return abar.sqrt() * output + (1 - abar).sqrt() * latents.float()

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode images (B, 3, H, W) in -1..1 as latents (B, C, h, w) fp32.

        A sample of the posterior times scale_factor, never the mean, as in upstream.
        """
        mean, logvar = self.first_stage_model.encode(images.to(self.device, self.dtype))
        return self.scale_factor * sample_posterior(mean.float(), logvar.float(), generator)

    @torch.no_grad()
    def blank_moments(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Compute mean and log variance, (1, C, h, w) each, unscaled, of the posterior of an all -1 picture.

        That is the masked picture of text-to-image. At full size it costs more than a call of the UNet, so a run
        computes it once and passes it on as `blank`. It holds while the autoencoder's weights, device and precision do.
        """
        return self.first_stage_model.encode(
            torch.full((1, 3, height, width), -1.0, device=self.device, dtype=self.dtype)
        )

    def masked_moments(self, images: Tensor, blank: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Compute mean and log variance, (B, C, h, w) each, fp32, unscaled, of masked pictures (B, 3, H, W).

        Pictures that are all -1 share their moments: blank, which `blank_moments` returns for this size. Without it one
        of them is encoded here.
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
        """Decode scaled latents (B, C, h, w) as images (B, 3, 8h, 8w), about -1..1, fp32."""
        return self.first_stage_model.decode((latents / self.scale_factor).to(self.dtype)).float()


def _known(manager: dict) -> dict:
    """The settings that are read; upstream's yaml has more, of branches that its checkpoint does not use."""
    ours = ("token_dim", "enable_flag", "position_widths", "placeholder_id")
    return {k: manager[k] for k in ours if k in manager}
