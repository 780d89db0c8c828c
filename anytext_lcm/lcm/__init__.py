"""The method on plain tensors: latent consistency distillation and few-step sampling.

It imports torch alone; networks come in as callables.
Read `schedule.py`, `steps.py`, `consistency.py`, `paths.py`, `objectives.py`, `samplers.py`, in this order; then
`training/step.py`.
"""
