"""AnyText2 in few steps: Latent Consistency Model LoRA distillation."""

import os

__version__ = "0.1.0"

# Read when torch is imported. Its threads otherwise spin while they wait for each other: where another program has a
# core, training takes over six times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
