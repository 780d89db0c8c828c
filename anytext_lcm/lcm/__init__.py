"""The method, on plain tensors: latent consistency distillation and few-step samplers.

It imports torch alone; networks come in as callables.
Read schedule, steps, consistency, objectives, samplers, in this order; then `training/step.py`.
"""
