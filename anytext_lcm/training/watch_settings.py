"""Settings that change how a run is watched and kept, not what it trains."""

from dataclasses import dataclass

from anytext_lcm.training.bounds import setting


@dataclass(frozen=True)
class WatchSettings:
    """Checkpoints, sample pictures, the panel."""

    checkpointing_steps: int = setting(
        500, "updates between checkpoints; the last one is always saved", at_least=1, identity=False
    )
    checkpoints_total_limit: int = setting(
        0,
        "latest checkpoints to keep, 0 for all; one takes 0.3 GB at full size, 0.4 with an average",
        at_least=0,
        identity=False,
    )
    resume_from_checkpoint: str | None = setting(None, "a checkpoint directory, or latest", identity=False, path=True)
    resume_changed: bool = setting(
        False,
        "resume with other settings or processes than the checkpoint's: another run from there on",
        identity=False,
    )
    sample_steps: int = setting(500, "updates between sample pictures, 0 for none", at_least=0, identity=False)
    panel_prompts: int = setting(
        16,
        "prompts of a fixed panel whose text is read at every sample, 2 or more, 0 for none; tells training "
        "from overtraining, which the loss does not",
        at_least=0,
        at_most=10_000,
        identity=False,
    )
    patience: int = setting(
        0, "panels in a row without a better reading that end the run, 0 for any number", at_least=0, identity=False
    )
    num_inference_steps: int = setting(4, "steps the student takes in sample pictures", at_least=1, identity=False)
    num_processes: int | None = setting(
        None, "processes there must be; stops a launch that fell apart into single runs", identity=False
    )
    progress: bool = setting(True, "show a progress bar", identity=False)
