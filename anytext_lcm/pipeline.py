"""From a prompt and lines of text to a picture, by the teacher or by its few-step student.

A picture depends on the weights, the prompt, the method and its own seed, and on nothing else: not on what
else is in the batch, and not on how many threads there are. All random numbers of a picture come from its
seed, in streams of their own, so that methods with the same seeds start from the same noise.

Imports torch, numpy, OmegaConf and the rooms data, model, lcm and lora.
"""

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from anytext_lcm.data.batch import PLACEHOLDER, Line, build_conditioning, collate
from anytext_lcm.data.fonts import PLAIN_FONT
from anytext_lcm.lcm.objectives import Predict
from anytext_lcm.lcm.samplers import Progress, sample_ddim, sample_lcm, sample_tcd
from anytext_lcm.lcm.schedule import NoiseSchedule, ddim_timesteps, lcm_timesteps
from anytext_lcm.lcm.solver import guide
from anytext_lcm.lora import adapter_layers, adapter_merged, adapter_off
from anytext_lcm.model.anytext2 import AnyText2, Conditioning, is_blank

ASSETS = Path(__file__).parent / "assets"
EMBEDDED_CONFIG = Path(__file__).parents[1] / "models_yaml" / "anytext2_tiny.yaml"
EMBEDDED_CHECKPOINT = ASSETS / "teacher.safetensors"
SHIPPED_ADAPTER = ASSETS / "adapter"

EMBEDDED_GUIDANCE = 4.0  # as its yaml says
FULL_GUIDANCE = 7.5  # AnyText2's evaluation scripts
# AnyText2 demo.py
FULL_NEGATIVE_PROMPT = (
    "low-res, bad anatomy, extra digit, fewer digits, cropped, worst quality, low quality, watermark, "
    "unreadable text, messy words, distorted text, disorganized writing, advertising picture"
)
TRAILING_BELOW = 20  # DDIM steps; from there on upstream's spacing, see `ddim_timesteps`
BATCH_SIZE = 8  # pictures of one network call; fixed, because rounding depends on it


# -- models ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Defaults:
    """What is asked of a network when nobody says otherwise."""

    size: tuple[int, int]  # height and width of a picture
    max_lines: int
    guidance_scale: float  # of the teacher
    negative_prompt: str
    multiple: int = 64  # of pixels, that height and width must be: latents are halved once a level of the UNet
    checkpoint: Path | None = None  # the weights that come with the yaml


def defaults_for(config: str | Path) -> Defaults:
    """Defaults of the network that a yaml describes: its `model.defaults`, and AnyText2's own for what is not there.

    Raises FileNotFoundError or ValueError; whether the weights exist is left to `checkpoint_for`.
    """
    path = Path(config)
    if not path.is_file():
        raise FileNotFoundError(
            f"Configuration {path} does not exist; use models_yaml/anytext2_sd15.yaml or anytext2_tiny.yaml."
        )
    try:
        model = OmegaConf.load(path).model
        params = model.params
        side, levels = 8 * int(params.image_size), len(params.unet_config.params.channel_mult)
    except Exception as error:
        raise ValueError(
            f"Configuration {path} does not say model.params.image_size and unet_config.params.channel_mult."
        ) from error
    multiple = 8 * 2 ** (levels - 1)
    given = _stated(OmegaConf.to_container(model).get("defaults"), f"Configuration {path}: model.defaults")
    checkpoint = given.get("checkpoint")
    return Defaults(
        (side, side),
        given.get("max_lines", 20),
        float(given.get("guidance_scale", FULL_GUIDANCE)),
        given.get("negative_prompt", FULL_NEGATIVE_PROMPT),
        multiple,
        None if checkpoint is None else (path.parent / checkpoint).resolve(),
    )


def _stated(given: Any, where: str) -> dict[str, Any]:
    """`model.defaults` of a yaml, checked; where begins the sentence of the ValueError it raises."""
    kinds = {
        "guidance_scale": (int | float, math.isfinite, "a number"),
        "negative_prompt": (str, lambda _: True, "a string"),
        "max_lines": (int, lambda lines: lines > 0, "a positive integer"),
        "checkpoint": (str, bool, "the path of a file, relative to the yaml"),
    }
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(f"{where} must map names to values, not {given!r}; the names are {', '.join(kinds)}.")
    if unknown := [str(name) for name in given if name not in kinds]:
        raise ValueError(f"{where} has no {', '.join(unknown)}; it may set {', '.join(kinds)}.")
    for name, value in given.items():
        kind, fits, words = kinds[name]
        if isinstance(value, bool) or not isinstance(value, kind) or not fits(value):
            raise ValueError(f"{where}.{name} must be {words}, not {value!r}.")
    return given


def checkpoint_for(config: str | Path, flag: str) -> Path:
    """The weights that a yaml names in `model.defaults.checkpoint`; `flag` is the option that names others.

    Raises ValueError when it names none, FileNotFoundError when they are not there.
    """
    checkpoint = defaults_for(config).checkpoint
    if checkpoint is None:
        raise ValueError(f"{config} comes without weights; name them with {flag}.")
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"{config} names the weights {checkpoint}, which do not exist; "
            f"correct its model.defaults.checkpoint, or name them with {flag}."
        )
    return checkpoint


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    config: str | Path,
    checkpoint: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> AnyText2:
    """A teacher from its yaml and its weights, ready to draw. Raises FileNotFoundError or ValueError."""
    model = AnyText2.from_config(config).load_checkpoint(checkpoint).requires_grad_(False)
    for network in model.children():  # the schedule, buffers of the model itself, stays in fp32
        network.to(dtype)
    # A convolution reads and writes pixels with their channels beside each other; so nothing is reordered in between.
    return model.to(default_device() if device is None else device, memory_format=torch.channels_last)


def load_embedded_teacher(device: str | torch.device | None = None) -> AnyText2:
    """The small teacher that comes with the package, fp32. Raises FileNotFoundError when it is not there."""
    if not EMBEDDED_CHECKPOINT.is_file():
        raise FileNotFoundError(
            f"The embedded teacher {EMBEDDED_CHECKPOINT} is missing; rebuild it with "
            "`python -m anytext_lcm.build_teacher`."
        )
    return load_model(EMBEDDED_CONFIG, EMBEDDED_CHECKPOINT, device)


def load_chosen(
    config: str | Path, checkpoint: str | Path | None, device: str | torch.device | None = None
) -> AnyText2:
    """A teacher as commands name it, by default with the weights that its yaml brings. Raises as `checkpoint_for`."""
    return load_model(config, checkpoint_for(config, "--ckpt") if checkpoint is None else checkpoint, device)


def resolve_adapter(name: str | Path) -> Path | None:
    """A folder, "shipped" or "none" -> where the adapter is, None for none. Raises FileNotFoundError."""
    if str(name) == "none":
        return None
    folder = SHIPPED_ADAPTER if str(name) == "shipped" else Path(name)
    if not (folder / "adapter_config.json").is_file():
        hint = "make one with `make demo` or `python -m anytext_lcm.train`, or say none for the teacher"
        raise FileNotFoundError(f"There is no adapter in {folder}; {hint}.")
    return folder


# -- prompts --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """What is wanted: a caption without the text, the lines of text, and for editing the picture to change.

    image: (H, W, 3) uint8 RGB, kept outside the lines' polygons; None = draw all of it.
    """

    caption: str
    lines: tuple[Line, ...]
    image: np.ndarray | None = None


def prompts_to_batch(
    prompts: Sequence[Prompt], size: tuple[int, int], max_lines: int, font: str | Path = PLAIN_FONT
) -> dict[str, Any]:
    """The batch (see anytext_lcm/data/batch.py) that `prepare` wants; it has no `img`, which nobody reads.

    size: height and width, multiples of 8. A * in a caption becomes a space, as in the data: it would take a line's
    embedding. Raises ValueError for no prompt, too many or too long lines,
    characters that the font lacks, polygons outside, a picture of another size.
    """
    if any(side % 8 or side < 8 for side in size):
        raise ValueError(f"The size {size[1]} x {size[0]} must be a multiple of 8 pixels each way.")
    items = []
    for prompt in prompts:
        image = None
        if prompt.image is not None:
            if prompt.image.shape != (*size, 3) or prompt.image.dtype != np.uint8:
                raise ValueError(
                    f"The picture to edit must be ({size[0]}, {size[1]}, 3) uint8, "
                    f"this one is {prompt.image.shape} {prompt.image.dtype}."
                )
            image = prompt.image.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
        mode = "generate" if image is None else "edit"
        item = build_conditioning(prompt.lines, size, max_lines, font=font, mode=mode, image=image)
        items.append({**item, "img_caption": prompt.caption.replace(PLACEHOLDER, " ")})
    return collate(items)


# -- methods --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A way to draw. Raises ValueError for steps that the sampler cannot make.

    guidance_scale 1 is no guidance, and half the work. adapter False is the bare teacher, whatever adapter
    the model carries.
    """

    SAMPLERS: ClassVar[tuple[str, ...]] = ("ddim", "lcm", "tcd")

    name: str
    sampler: str  # one of SAMPLERS
    steps: int
    guidance_scale: float = 1.0
    adapter: bool = False
    spacing: str = "trailing"  # of DDIM
    gamma: float = 0.0  # of tcd: 0 is deterministic
    eta: float = 0.0  # of DDIM: 0 is deterministic, 1 draws as much fresh noise as DDPM

    def __post_init__(self):
        if self.sampler not in self.SAMPLERS:
            names = " or ".join(map(repr, self.SAMPLERS))
            raise ValueError(f"Sampler {self.sampler!r} is unknown: choose {names}.")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise ValueError(f"The number of steps must be an integer, not {self.steps!r}.")
        if not 0 <= self.guidance_scale <= 100:  # also catches nan
            raise ValueError(f"The guidance scale must lie in 0..100, not {self.guidance_scale}.")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in 0..1, not {self.gamma}.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in 0..1, not {self.eta}.")
        if self.sampler in ("lcm", "tcd"):
            lcm_timesteps(self.steps)
        else:
            ddim_timesteps(self.steps, spacing=self.spacing)

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    @property
    def evaluations(self) -> int:
        """How often the UNet looks at a picture."""
        return self.steps * (2 if self.guided else 1)

    def sample(
        self,
        predict: Predict,
        noise: Tensor,
        schedule: NoiseSchedule,
        fresh: Sequence[torch.Generator],
        progress: Progress | None = None,
    ) -> Tensor:
        """noise (B, C, h, w) -> latents of the same shape, fp32. fresh: for each picture, the source of the noise that
        is drawn on the way.
        """
        if self.sampler == "ddim":
            return sample_ddim(predict, noise, schedule, self.steps, progress, self.spacing, self.eta, fresh)
        if self.sampler == "lcm":
            return sample_lcm(predict, noise, schedule, self.steps, fresh, progress=progress)
        return sample_tcd(predict, noise, schedule, self.steps, self.gamma, fresh, progress=progress)


def teacher_method(
    steps: int = 50,
    guidance_scale: float = EMBEDDED_GUIDANCE,
    spacing: str = "",
    eta: float = 0.0,
) -> Method:
    """DDIM with guidance. The spacing is the better one of its number of steps unless it is given."""
    chosen = spacing or ("trailing" if steps < TRAILING_BELOW else "leading")
    name = f"teacher-{steps}" + (f"-{spacing}" if spacing else "") + (f"-eta{eta:g}" if eta else "")
    return Method(name, "ddim", steps, guidance_scale, spacing=chosen, eta=eta)


def _few_steps(kind: str, steps: int, guidance_scale: float, gamma: float | None) -> Method:
    name = f"{kind}-{steps}"
    if gamma is not None:
        name += f"-gamma{gamma:g}" if gamma else "-deterministic"
    if guidance_scale != 1.0:
        name += f"-w{guidance_scale - 1:g}"
    sampler, gamma = ("lcm", 0.0) if gamma is None else ("tcd", gamma)
    return Method(name, sampler, steps, guidance_scale, kind == "student", gamma=gamma)


def student_method(steps: int = 4, guidance_scale: float = 1.0, gamma: float | None = None) -> Method:
    """Few steps with the adapter: the consistency sampler, or with a gamma in 0..1 TCD's (0 is deterministic).

    The adapter has learnt guidance; a guidance_scale other than 1 guides it once more and doubles the work. LCM's paper
    counts w = guidance_scale - 1.
    """
    return _few_steps("student", steps, guidance_scale, gamma)


def untrained_method(steps: int = 4, guidance_scale: float = 1.0, gamma: float | None = None) -> Method:
    """The student's sampler on the teacher itself: the student before its first training step."""
    return _few_steps("untrained", steps, guidance_scale, gamma)


def parse_method(name: str, guidance_scale: float = EMBEDDED_GUIDANCE) -> Method:
    """teacher-50, teacher-50-eta1, teacher-4-leading, student-4, student-4-deterministic,
    student-4-gamma0.3, student-4-w0.5, untrained-4 -> Method. guidance_scale is the teacher's; w is the student's, less
    1. Raises ValueError.
    """
    found = re.fullmatch(
        r"(teacher|student|untrained)-(\d+)"
        r"(?:-(?:(leading|trailing)|(deterministic)|gamma(\d*\.?\d+)))?(?:-w(-?\d*\.?\d+))?"
        r"(?:-eta(\d*\.?\d+))?",
        name,
    )
    teacher = found is not None and found[1] == "teacher"
    if found is None or (any(found.group(4, 5, 6)) if teacher else any(found.group(3, 7))):
        raise ValueError(
            f"Method {name!r} is unknown: say teacher-N, student-N or untrained-N with N steps, "
            "as in teacher-50 or student-4."
        )
    steps = int(found[2])
    if teacher:
        return teacher_method(steps, guidance_scale, found[3] or "", float(found[7] or 0))
    gamma = 0.0 if found[4] else None if found[5] is None else float(found[5])
    return _few_steps(found[1], steps, 1.0 + float(found[6] or 0), gamma)


def reference_of(methods: Sequence[Method | str]) -> str | None:
    """The teacher with most steps of plain deterministic DDIM: what few-step methods are held against."""
    ddim = [m for m in methods if isinstance(m, Method) and m.sampler == "ddim" and not m.eta]
    teachers = [m for m in ddim if m.name.startswith("teacher")]
    return max(teachers, key=lambda m: m.steps).name if teachers else None


# -- random numbers -------------------------------------------------------------------------------------

_INITIAL, _MASKED, _FRESH = range(3)  # streams of a picture's seed


def _generator(seed: int, stream: int) -> torch.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"A seed must be an integer from 0 on, not {seed!r}.")
    [state] = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Pure noise (B, C, h, w) fp32 on the CPU, each picture's from its own seed."""
    return torch.stack([torch.randn(shape, generator=_generator(seed, _INITIAL)) for seed in seeds])


# -- work in parallel -----------------------------------------------------------------------------------


def available_cores() -> int:
    """CPU cores this process may really use: fewer than the machine has, in a container or under a batch
    system.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control groups, or "max": no limit
        pass
    return cores


def use_available_cores() -> None:
    """Lets torch use them, and no more: far more threads than cores stand still. OMP_NUM_THREADS wins."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _spread(work: Callable[[slice], Any], chunks: list[slice], device: torch.device) -> list[Any]:
    """work(chunk) of every chunk, in order; on a CPU several chunks at once, one thread each.

    Threads inside an operation wait for each other several hundred times a network call, and for a long
    time when a core is busy with something else. Whole chunks side by side do not wait at all.
    """

    def quietly(chunk: slice) -> Any:
        with torch.no_grad():  # a setting of the thread
            return work(chunk)

    threads = torch.get_num_threads()
    workers = min(threads, len(chunks)) if device.type == "cpu" else 1
    if workers == 1:
        return [quietly(chunk) for chunk in chunks]
    try:
        # The setting holds for this thread and for those that begin from here on.
        torch.set_num_threads(1)
        with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1)) as pool:
            return list(pool.map(quietly, chunks))
    finally:
        torch.set_num_threads(threads)


@dataclass
class Clock:
    """Seconds of wall and of all cores together that went into each phase."""

    wall: dict[str, float] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str, device: torch.device) -> Iterator[None]:
        def now() -> tuple[float, float]:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter(), time.process_time()

        wall, cores = now()
        yield
        later = now()
        self.wall[phase] = self.wall.get(phase, 0.0) + later[0] - wall
        self.cores[phase] = self.cores.get(phase, 0.0) + later[1] - cores


# -- drawing --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """All that methods share: conditioning of both branches, and a seed for each picture."""

    conditional: Conditioning
    unconditional: Conditioning
    seeds: tuple[int, ...]
    latent_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: slice) -> "Prepared":
        return replace(
            self,
            conditional=self.conditional[rows],
            unconditional=self.unconditional[rows],
            seeds=self.seeds[rows],
        )


@dataclass(frozen=True)
class Drawing:
    """Pictures and what they took."""

    images: np.ndarray  # (B, H, W, 3) uint8 RGB
    latents: Tensor  # (B, C, h, w) fp32, scaled, on the CPU
    clock: Clock  # phases "denoise" and "decode"
    evaluations: int  # of the UNet, for one picture


def _masked_latents(
    model: AnyText2, masked: Tensor, seeds: Sequence[int], blank: tuple[Tensor, Tensor] | None
) -> Tensor:
    """masked_img (B, 3, H, W) -> latents as `AnyText2.encode` draws them, with each picture's own noise."""
    mean, logvar = model.masked_moments(masked, blank)
    noise = torch.stack([torch.randn(mean.shape[1:], generator=_generator(seed, _MASKED)) for seed in seeds])
    return model.scale_factor * (mean + torch.exp(0.5 * logvar) * noise.to(mean))


def _pick(batch: dict[str, Any], places: list[int]) -> dict[str, Any]:
    """Some pictures of a batch, in this order."""
    return {k: v[places] if isinstance(v, Tensor) else [v[place] for place in places] for k, v in batch.items()}


def prepare(model: AnyText2, batch: dict[str, Any], seeds: Sequence[int], negative_prompt: str = "") -> Prepared:
    """batch (see `prompts_to_batch`, or of a data set) and a seed for each picture -> Prepared.

    The texts, the recognisers and the masked picture are encoded here, once for all methods: no adapter
    reaches them. Raises ValueError for another number of seeds than of pictures.
    """
    count = len(batch["img_caption"])
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} pictures: give one each.")
    masked = batch["masked_img"]
    blank = model.blank_moments(*masked.shape[-2:]) if bool(is_blank(masked).any()) else None

    def encode(rows: slice) -> tuple[Conditioning, Conditioning]:
        part = {name: value[rows] for name, value in batch.items()}
        part["masked_latents"] = _masked_latents(model, part["masked_img"], seeds[rows], blank)
        # By chunks: padded to a longer one, a caption would be told with end tokens that it does not have alone.
        places: dict[int, list[int]] = {}
        for place, caption in enumerate(part["img_caption"]):
            chunks = model.cond_stage_model.chunk(model.tokenizer.image_ids([caption]).to(model.device)).shape[1]
            places.setdefault(chunks, []).append(place)
        groups = list(places.values())
        conditional = Conditioning.cat([model.condition(_pick(part, group)) for group in groups])
        conditional = conditional[np.argsort([place for group in groups for place in group])]
        return conditional, model.uncondition(conditional, negative_prompt)

    parts = _spread(encode, _chunks(count, BATCH_SIZE), model.device)
    conditional, unconditional = (Conditioning.cat(list(branch)) for branch in zip(*parts, strict=True))
    return Prepared(conditional, unconditional, tuple(seeds), tuple(conditional.masked_latents.shape[1:]))


def predictor(model: AnyText2, prepared: Prepared, guidance_scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """(latents (B, C, h, w), timesteps int64 (B,)) -> guided eps (B, C, h, w) fp32.

    WriteNet's residuals are computed here, once a branch; both branches go through the networks as one
    batch. The adapter has to be on or off from here on.
    """
    if guidance_scale == 1.0:
        conditioning = prepared.conditional
        control = model.control(conditioning)
        return lambda x, t: model.predict_noise(x, t, conditioning, control)

    conditioning = Conditioning.cat([prepared.conditional, prepared.unconditional])
    control = model.control(conditioning)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        both = model.predict_noise(torch.cat([x, x]), torch.cat([t, t]), conditioning, control)
        return guide(*both.chunk(2), guidance_scale)

    return predict


def denoise(
    model: AnyText2, prepared: Prepared, method: Method, progress: Callable[[int], None] | None = None
) -> Tensor:
    """One batch from noise to latents (B, C, h, w), fp32. progress is told the number of pictures after each
    step. Raises ValueError for a method that needs an adapter when the model has none.
    """
    if method.adapter and not adapter_layers(model):
        raise ValueError(f"{method.name} needs an adapter and the model has none; load one first.")
    schedule = NoiseSchedule(model.alphas_cumprod)
    noise = initial_noise(prepared.seeds, prepared.latent_shape).to(model.device)

    def step(done: int, timestep: int, x0: Tensor) -> None:
        if progress is not None:
            progress(len(x0))

    with nullcontext() if method.adapter else adapter_off(model):
        predict = predictor(model, prepared, method.guidance_scale)
        fresh = [_generator(seed, _FRESH) for seed in prepared.seeds]
        return method.sample(predict, noise, schedule, fresh, step)


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) about -1..1 -> (B, H, W, 3) uint8. Raises ValueError when a number is not finite."""
    if not bool(torch.isfinite(images).all()):
        raise ValueError("The pictures hold numbers that are not finite; use fp32, less guidance or another adapter.")
    levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def decode(model: AnyText2, latents: Tensor) -> np.ndarray:
    """Scaled latents (B, C, h, w) -> pictures (B, 8h, 8w, 3) uint8."""
    chunks = _chunks(len(latents), BATCH_SIZE)
    parts = _spread(lambda rows: to_uint8(model.decode(latents[rows].to(model.device))), chunks, model.device)
    return np.concatenate(parts)


def draw(model: AnyText2, prepared: Prepared, method: Method, show: bool = False) -> Drawing:
    """Draws every prepared picture. show: a progress bar, on a terminal.

    The time of denoising includes WriteNet, which works once a branch, and excludes `prepare`.
    """
    clock, lock = Clock(), Lock()
    chunks = _chunks(len(prepared), BATCH_SIZE)
    hidden = None if show else True
    with tqdm(total=len(prepared) * method.steps, desc=method.name, leave=False, disable=hidden) as bar:

        def progress(count: int) -> None:
            with lock:
                bar.update(count)

        # In bf16 a small update is lost in the sum with its weight, so there the adapter stays beside it.
        merges = torch.finfo(model.dtype).eps < 1e-3
        switch = adapter_off if not method.adapter else adapter_merged if merges else nullcontext
        # Chunks that run side by side share the model: the switch is thrown here, around all of them.
        with clock("denoise", model.device), switch(model):
            latents = _spread(lambda rows: denoise(model, prepared[rows], method, progress).cpu(), chunks, model.device)
    latents = torch.cat(latents)
    with clock("decode", model.device):
        images = decode(model, latents)
    return Drawing(images, latents, clock, method.evaluations)


def draw_prompts(
    model: AnyText2,
    prompts: Sequence[Prompt],
    method: Method,
    defaults: Defaults,
    seeds: Sequence[int] | int = 0,
    font: str | Path = PLAIN_FONT,
) -> np.ndarray:
    """The whole way: prompts -> pictures (B, H, W, 3) uint8. seeds: one each, or the first of a row of them.

    Raises ValueError for what `prompts_to_batch`, `prepare` and `denoise` refuse.
    """
    if isinstance(seeds, int):
        seeds = range(seeds, seeds + len(prompts))
    batch = prompts_to_batch(prompts, defaults.size, defaults.max_lines, font)
    prepared = prepare(model, batch, list(seeds), defaults.negative_prompt)
    return draw(model, prepared, method).images


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """What a measured time depends on."""
    name = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        import platform

        name = platform.processor() or platform.machine()
    found = {"cpu": name, "cores": available_cores(), "threads": torch.get_num_threads(), "device": device.type}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
