"""Latents that a run stores by itself, where encoding every picture once costs less than encoding it in every step."""

from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import Dataset

from anytext_lcm.model.anytext2 import AnyText2
from anytext_lcm.model.vae import PatchEncoder
from anytext_lcm.training.latents import with_latents, write_latents
from anytext_lcm.training.settings import TrainSettings

FOLDER = "latents"  # in the output folder
PASSES = 2  # over the data, from which on it pays
MOST_BYTES = 2**30  # of latents: 16,000 pictures of 512 px; the other processes wait while the first one encodes


def pays(settings: TrainSettings, pictures: int, model: AnyText2, processes: int) -> bool:
    """Whether a new run stores its latents: on a GPU, of records that it sees PASSES times or more and that fit
    MOST_BYTES.

    On CPUs encoding takes hours before the first update, and a run that is continued goes on to the last bit, however
    many updates it was begun with. A data set of the caller's own may differ from epoch to epoch. A linear autoencoder
    (`patch` in the yaml) costs less than reading its latents back.
    """
    seen = settings.max_train_steps * settings.train_batch_size * settings.gradient_accumulation_steps * processes
    bytes_of_one = 2 * 2 * model.latent_channels * (settings.picture_size // 8) ** 2  # mean and log variance, halves
    return (
        model.device.type == "cuda"
        and settings.data_list is not None
        and not isinstance(model.first_stage_model.encoder, PatchEncoder)
        and seen >= PASSES * pictures
        and pictures * bytes_of_one <= MOST_BYTES
    )


def encoded_once(
    dataset: Dataset, settings: TrainSettings, model: AnyText2, accelerator: Accelerator, resumed: bool
) -> Dataset:
    """The data set with latents: of the folder that the settings name, or of the run's own where that `pays`.

    A run that has begun without stays without, so that it goes on with the same numbers. Raises as `with_latents` and
    `write_latents`. Collective.
    """
    if settings.latents is not None:
        folder = settings.latents_folder
        return dataset if folder is None else with_latents(dataset, folder, model)
    own = Path(settings.output_dir) / FOLDER
    if not resumed and pays(settings, len(dataset), model, accelerator.num_processes):
        if accelerator.is_main_process:
            accelerator.print(f"The {len(dataset)} pictures are encoded once, into {own}; --latents none does not.")
            write_latents(own, dataset, model, settings.train_batch_size, settings.num_workers)
        accelerator.wait_for_everyone()
        return with_latents(dataset, own, model)
    return with_latents(dataset, own, model) if resumed and own.is_dir() else dataset
