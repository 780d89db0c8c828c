"""Wrong answers to the exercises of notebook 06, each a change of the solution: text, replacement, words it meets."""

WRONG = {
    "guidance": [
        (
            "cond + w * (cond - uncond)",
            "uncond + w * (cond - uncond)",
            "at s_g = 1 this returns the unconditional branch",
        ),
        ("w = s_g - 1", "w = s_g", "it uses s_g as w"),
        ("cond + w * (cond - uncond)", "cond - w * (cond - uncond)", "the wrong sign"),
        ("return cond + w", "cond + w", "returns None"),
    ],
    "average": [
        ("mean.lerp_(weight, rate)", "mean.lerp_(weight, 1 - rate)", "are swapped"),
        ("mean.lerp_(weight, rate)", "mean = mean.lerp(weight, rate)", "has not changed"),
        ("mean.lerp_(weight, rate)", "weight.lerp_(mean, rate)", "it changes the student"),
        ("mean.lerp_(weight, rate)", "mean.add_(rate * weight)", "it is not 0.9 average"),
    ],
    "edge": [
        ("torch.searchsorted(edges, t) - 1", "torch.searchsorted(edges, t, right=True) - 1", "a t that is an edge"),
        ("torch.searchsorted(edges, t) - 1", "torch.searchsorted(edges, t).clamp(max=3)", "it returns [259, 259"),
        ("edges[torch", "0 * edges[torch", "it returns [0, 0, 0"),
    ],
    "meanflow": [
        ("v - (start - end) * du", "v + (start - end) * du", "the wrong sign"),
        ("v - (start - end) * du", "v - du", "between equal times"),
        (".detach()", "", "no gradient"),
    ],
    "left": [
        ("1 / shares", "shares", "that is the chance itself"),
        ("1 / shares.square().sum(-1)", "(shares > 0).sum(-1)", "however unlikely"),
        ("1 / shares.square().sum(-1)", "1 / shares.max(-1).values", "the likeliest picture alone"),
        (".sum(-1)", ".sum()", "the shape ()"),
        (".square()", "", "must give 4, 2 and 1"),
    ],
}
