"""AnyText2 in few steps: Latent Consistency Model LoRA distillation."""

__version__ = "0.1.0"
