"""Wrong answers to the exercises of notebook 03, each a change of the solution: text, replacement, words it meets."""

WRONG = {
    "velocity": [
        ("alpha * x_t - sigma * v", "alpha * x_t + sigma * v", "x0 has the wrong sign before v"),
        ("sigma * x_t + alpha * v", "sigma * x_t - alpha * v", "noise has the wrong sign before v"),
        ("return x0, noise", "return noise, x0", "in the wrong order"),
        ("return x0, noise", "return x0", "does not return two tensors"),
        ("x0 = alpha * x_t - sigma * v", "x0 = (x_t - sigma * v) / alpha", "not the data that x_t was made from"),
    ],
    "ddim": [
        ("alpha_s * x0 + sigma_s * eps", "alpha_s * x_t + sigma_s * eps", "estimate the clean data first"),
        ("alpha_s * x0 + sigma_s * eps", "x0", "noise of level s is missing"),
        ("alpha_s * x0 + sigma_s * eps", "alpha_t * x0 + sigma_s * eps", "not the DDIM step"),
        ("(x_t - sigma_t * eps) / alpha_t", "(x_t - sigma_t * eps)", "with s = t it must return x_t"),
    ],
    "one_gaussian": [
        ("(spread**2 + u**2).sqrt()", "(spread**2 + u**2)", "at u = 0 it must return y"),
        ("(spread**2 + u**2).sqrt()", "(spread + u)", "does not solve"),
        ("spread / (spread**2 + u**2).sqrt()", "spread**2 / (spread**2 + u**2)", "posterior mean"),
        ("mean + (y - mean)", "y", "must stay there"),
    ],
    "target": [
        ("    with torch.no_grad():\n        ", "    ", "a gradient passes"),
        ("consistency.consistency_function(x_s, student(x_s, s), s, noise_schedule)", "x_s", "which is noisy"),
        (
            "consistency.consistency_function(x_s, student(x_s, s), s, noise_schedule)",
            "noise_schedule.x0_from_eps(x_s, student(x_s, s), s)",
            "at s = 0 it must return x_s itself",
        ),
    ],
    "few_steps": [
        ("if i + 1 < len(timesteps)", "if i < 0", "no noise is put"),
        ("timesteps[i + 1].expand", "timesteps[i].expand", "up to the NEXT timestep"),
        ("    return x", "    return timesteps", "the shape"),
        ("    return x", "    pass", "returns None"),
    ],
}
