"""The mathematics of latent consistency distillation on plain tensors. Imports torch alone; networks come in
as callables.
"""
