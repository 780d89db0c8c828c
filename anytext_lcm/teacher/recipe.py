"""The numbers of the recipe and the names of its stages. It imports no library."""

from dataclasses import dataclass

CONFIG = "models_yaml/anytext2_tiny.yaml"
FEWEST_PICTURES = 100  # on a GPU one step of the diffusion draws up to 96 different ones
STAGES = (
    "tokenizer",
    "data",
    "vae",
    "recogniser",
    "fonts",
    "features",
    "diffusion",
    "reader",
    "writing",
    "decoder",
    "export",
)
# The tokenizer is written anew only when captions get new words: it is part of the package, not of a work folder.
DEFAULT_STAGES = tuple(stage for stage in STAGES if stage != "tokenizer")


@dataclass(frozen=True)
class Recipe:
    """All numbers of a run that starts from random weights. "Per process" numbers grow with the processes.

    The shipped weights come from ten shorter runs, between which data and settings were mended.
    """

    seed: int = 0
    pictures: int = 28_000  # the diffusion sees each four times or less, at four noise levels a time

    vae_steps: int = 1500
    vae_batch: int = 12  # 64 px crops per process
    vae_lr: float = 2e-3
    posterior_noise: float = 0.05  # standard deviation of the posterior; the latents' is 1
    decoder_noise: float = 0.25  # largest noise that the decoder must bear: latents from the diffusion are not exact
    decoder_steps: int = 2500  # of the decoder alone, on scenes and material
    decoder_lr: float = 1e-3
    decoder_material: float = 0.35  # share of material among its pictures
    decoder_text_weight: float = 3.0

    recogniser_steps: int = 600
    recogniser_batch: int = 32
    font_steps: int = 600  # of the font predictor
    font_batch: int = 32

    diffusion_steps: int = 10_000
    diffusion_batch: int = 6  # pictures per process
    noise_levels_per_picture: int = 4  # they share its control branch: 35 % more samples per second than with 2
    diffusion_lr: float = 1.6e-3
    decay: float = 0.4  # share of the steps over which the rate falls to zero
    ema: float = 0.998
    caption_dropout: float = 0.1  # share with both captions empty: trains the branch that guidance subtracts
    text_weight: float = 2.5  # of the loss inside the text boxes; with 5 objects were smudges after fifty steps, too

    reader_steps: int = 2000
    reader_batch: int = 16  # pictures per process
    reader_noise: float = 0.5  # largest noise on the latents it learns to read

    writing_steps: int = 2000  # the shipped weights: 2,650 on earlier pictures and 340 on these
    writing_lr: float = 4e-4
    writing_batch: int = 10  # half-drawn pictures per process
    writing_pool: int = 120  # pictures half drawn at a time, per process
    writing_ahead: int = 24  # trajectories advanced without a loss each step, so that more prompts are seen
    writing_strides: tuple[int, ...] = (50, 100)  # timesteps per DDIM step: twenty steps or ten
    writing_jump: tuple[int, int] = (100, 300)  # timesteps from the first estimate to the second
    writing_true: tuple[int, int] = (3, 3)  # true pictures per process, and noise levels of each, of diffusion's loss
    writing_weight: float = 0.3  # of the reading loss of each of the two estimates
    writing_max_weight: float = 4.0  # upper bound of the 1/sigma weight at low noise
    writing_noise: float = 0.15  # largest noise on the latents that are read
    writing_guidance: float = 2.0  # of half of the DDIM steps, the other half have none; drawing uses 2, too
    writing_ema: float = 0.98
