"""Memory and time of full-size work, each in a process of its own: prints one line of JSON.

    python tests/full/measure.py load CHECKPOINT
    python tests/full/measure.py command CHECKPOINT [--precision fp32] [--side 512] [--config YAML]
    python tests/full/measure.py sample CHECKPOINT [--dtype fp32|bf16] [--side 512]
    python tests/full/measure.py step CHECKPOINT [--dtype fp32|bf16] [--side 512] [--rank 64]
    python tests/full/measure.py export CHECKPOINT [--rank 64] [--config YAML]

`peak_gb` is the largest resident set, mapped file pages included; `peak_own_gb` leaves those out, since the
system takes them back when it needs them. `loading_gb` is by how much the former grows while `command`, which is
`python -m anytext_lcm.sample`, reads its weights. `seconds` is by the clock, `cpu_seconds` what the process computed.
"""

import argparse
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors import safe_open

from anytext_lcm.model.anytext2 import AnyText2

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "models_yaml" / "anytext2_sd15.yaml"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Watch:
    """Peak of the process's own (anonymous) memory, looked at twenty times a second."""

    def __enter__(self) -> "Watch":
        self.own, self._done = 0, threading.Event()
        self.start, self.cpu = time.perf_counter(), time.process_time()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.own = max(self.own, 1024 * int(line.split()[1]))

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()
        self.seconds = time.perf_counter() - self.start
        self.cpu_seconds = time.process_time() - self.cpu

    def report(self, **more: object) -> dict[str, object]:
        return {
            **more,
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
            "peak_own_gb": round(self.own / 1e9, 2),
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "threads": torch.get_num_threads(),
        }


def build(checkpoint: str, dtype: torch.dtype = torch.float32, config: str | Path = CONFIG) -> AnyText2:
    """The model from the file, never held twice. CLIP's vocabulary is not in the repository: the embedded
    teacher's stands in for it."""
    config = OmegaConf.load(config)
    config.model.params.cond_stage_config.params.version = str(ROOT / "anytext_lcm/assets/tokenizer")
    model = AnyText2.from_config(config, device="meta").to(dtype).load_checkpoint(checkpoint)
    return model.requires_grad_(False)


class PeakWatch:
    """By how much the largest resident set grows inside, mapped file pages included."""

    @staticmethod
    def read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def __enter__(self) -> "PeakWatch":
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.before = self.read("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        self.grown = self.read("VmHWM") - self.before


def command(arguments: argparse.Namespace) -> dict[str, object]:
    """`sample` as it is called from a shell, without an adapter, one step; what its loading adds to the process."""
    from anytext_lcm import sample as of_shell
    from anytext_lcm.model import checkpoint, loading

    checkpoint.MAPPED_BYTES = arguments.mapped_bytes or checkpoint.MAPPED_BYTES
    load, found = loading.load_chosen, {}

    def measured(*chosen: object) -> AnyText2:
        AnyText2.from_config(chosen[0], "meta")  # torch imports 80 MB for its meta device, which are no weights
        with PeakWatch() as peak:
            model = load(*chosen)
        found["loading_gb"] = round(peak.grown / 1e9, 3)
        found["weights_gb"] = round(sum(value.nbytes for value in model.state_dict().values()) / 1e9, 3)
        return model

    loading.load_chosen = measured
    side = str(arguments.side)
    with tempfile.TemporaryDirectory(dir=Path(arguments.checkpoint).parent) as folder:
        config = OmegaConf.load(arguments.config)
        config.model.params.cond_stage_config.params.version = str(ROOT / "anytext_lcm/assets/tokenizer")
        OmegaConf.save(config, Path(folder) / "network.yaml")
        words = ["--config", f"{folder}/network.yaml", "--ckpt", str(arguments.checkpoint), "--adapter", "none"]
        words += ["--precision", arguments.precision, "--width", side, "--height", side, "--device", "cpu"]
        words += ["--prompt", "a wall", "--line", "TEXT@4,4,60,60", "--steps", "1", "--guidance_scale", "1"]
        with Watch() as watch:
            code = of_shell.main([*words, "--output", f"{folder}/sample.png"])
        size = Path(folder, "sample.png").stat().st_size if code == 0 else 0
    return watch.report(code=code, picture_bytes=size, precision=arguments.precision, side=arguments.side, **found)


def example(side: int) -> dict:
    from anytext_lcm.data.batch import collate
    from anytext_lcm.data.mock import MockDataset

    return collate([MockDataset(1, seed=0, image_size=side)[0]])


def load(arguments: argparse.Namespace) -> dict[str, object]:
    with Watch() as watch:
        model = build(arguments.checkpoint)
    state = model.state_dict()
    return watch.report(
        keys=len(state),
        parameters=sum(p.numel() for p in model.parameters()),
        dtypes=sorted({str(v.dtype) for v in state.values()}),
        on_meta=sum(v.is_meta for v in state.values()),
        finite=all(bool(v.isfinite().all()) for v in state.values()),
    )


@torch.no_grad()
def sample(arguments: argparse.Namespace) -> dict[str, object]:
    """Two steps of the consistency sampler, without guidance, and the picture."""
    from anytext_lcm.lcm.samplers import finish
    from anytext_lcm.lcm.samplers import sample as steps_of
    from anytext_lcm.lcm.schedule import NoiseSchedule

    batch = example(arguments.side)
    laps = {}
    with Watch() as watch:
        model = build(arguments.checkpoint, DTYPES[arguments.dtype])
        laps["load"] = time.perf_counter() - watch.start
        generator = torch.Generator().manual_seed(0)
        cond = model.condition(batch, generator)
        control = model.control(cond)
        laps["condition"] = time.perf_counter() - watch.start
        noise = torch.randn(cond.masked_latents.shape, generator=generator)
        schedule = NoiseSchedule(model.alphas_cumprod)
        predict = lambda x, t: model.predict_noise(x, t, cond, control)  # noqa: E731
        latents = finish(steps_of(predict, noise, schedule, 2, generators=generator))
        laps["denoise"] = time.perf_counter() - watch.start
        image = model.decode(latents)
    return watch.report(
        dtype=arguments.dtype,
        image=list(image.shape),
        residuals=len(control),
        finite=bool(image.isfinite().all()),
        laps={name: round(lap, 1) for name, lap in laps.items()},
    )


def step(arguments: argparse.Namespace) -> dict[str, object]:
    """One distillation step of one picture with its update: gradient checkpointing, AdamW."""
    from anytext_lcm.adapter.lora import adapter_state, attach
    from anytext_lcm.training.step import DistillStep

    batch = example(arguments.side)
    with Watch() as watch:
        model = build(arguments.checkpoint, DTYPES[arguments.dtype])
        for trunk in (model.model.diffusion_model, model.control_model):
            trunk.gradient_checkpointing = True
        attach(model, arguments.rank, arguments.rank)
        adapter = adapter_state(model)
        before = {key: value.detach().clone() for key, value in adapter.items()}
        optimizer = torch.optim.AdamW(list(adapter.values()), lr=1e-4, weight_decay=0.0)
        loading = time.perf_counter() - watch.start
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=arguments.dtype == "bf16", cache_enabled=False)
        with autocast:
            parts = DistillStep(model, objective="lcm")(batch, torch.Generator().manual_seed(0))
        forward = time.perf_counter() - watch.start
        parts.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(adapter.values()), 1.0)
        optimizer.step()
    moved = sum(not torch.equal(before[key], value) for key, value in adapter.items())
    return watch.report(
        dtype=arguments.dtype,
        rank=arguments.rank,
        side=arguments.side,
        loss=float(parts.loss.detach()),
        gradient_norm=float(norm),
        adapter_tensors=len(adapter),
        adapter_parameters=sum(v.numel() for v in adapter.values()),
        moved=moved,
        without_gradient=sum(v.grad is None for v in adapter.values()),
        laps={"load": round(loading, 1), "forward": round(forward, 1)},
    )


def export(arguments: argparse.Namespace) -> dict[str, object]:
    """An adapter that changes every target, in all four layouts, each read back and compared; fp16 files."""
    from anytext_lcm.adapter.layouts import ExportOptions
    from anytext_lcm.adapter.layouts import export as write
    from anytext_lcm.adapter.lora import adapter_state, attach

    with Watch() as watch, tempfile.TemporaryDirectory(dir=Path(arguments.checkpoint).parent) as folder:
        model = build(arguments.checkpoint, config=arguments.config)
        attach(model, arguments.rank, arguments.rank).requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for name, value in adapter_state(model).items():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.01)
        written = write(model, Path(folder), lambda **_: "", {}, ExportOptions(precision="fp16"))
        sizes = {layout: Path(folder) / name for layout, name in written["files"].items()}
        sizes["peft"] = sizes["peft"] / "adapter_model.safetensors"
        sizes = {layout: round(path.stat().st_size / 1e6, 1) for layout, path in sizes.items()}
        with safe_open(Path(folder) / written["files"]["merged"], "pt") as merged:
            keys = len(merged.keys())
    left_out = len(written["left_out"]["layers"])
    return watch.report(rank=arguments.rank, errors=written["errors"], megabytes=sizes, keys=keys, left_out=left_out)


WORK = {"load": load, "command": command, "sample": sample, "step": step, "export": export}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=tuple(WORK))
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--mapped_bytes", type=int, help="of a file at a time; default: as the package has it")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    print(json.dumps(WORK[arguments.what](arguments)))
