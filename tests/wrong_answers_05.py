"""Wrong answers to the exercises of notebook 05, each a change of the solution: text, replacement, words it meets."""

WRONG = {
    "steps_for": [
        ("evaluations // 2", "evaluations", "a guided step costs two"),
        ("evaluations // 2", "evaluations / 2", "enough for 2 steps"),
        ("scale == 1", "scale != 1", "without guidance 4 evaluations are 4"),
    ],
    "guided_estimate": [
        ("uncond + s_g * (cond - uncond)", "cond + s_g * (uncond - cond)", "returns the unconditional branch"),
        ("uncond + s_g * (cond - uncond)", "cond + s_g * (cond - uncond)", "must be the estimate of the conditional"),
        ("uncond + s_g * (cond - uncond)", "cond + (s_g - 1) * cond", "at s_g = 0"),
        ("/ alpha", "", "at s_g = 1 it must be"),
    ],
    "agreement": [
        ("max(len(wanted), len(read), 1)", "max(min(len(wanted), len(read)), 1)", "divides by the shorter"),
        ("(letter != other)", "1", "equal texts must give 1"),
        ("min(row[j] + 1, row[j - 1] + 1, last + (letter != other))", "last + (letter != other)", "kitten and sitting"),
        ("max(len(wanted), len(read), 1)", "max(len(wanted), len(read))", "stops with ZeroDivisionError"),
    ],
    "paired_interval": [
        (
            "(student - rival)[picks].mean(axis=1)",
            "student[picks].mean(axis=1) - rival[picks[::-1]].mean(axis=1)",
            "use the same picks",
        ),
        ("student - rival", "rival - student", "the sign is wrong"),
        ("[0.025, 0.975]", "[0, 1]", "it is the whole range"),
        ("[0.025, 0.975]", "[0.05, 0.95]", "not the 2.5 %"),
        (".mean(axis=1)", ".mean()", "not the 2.5 %"),
    ],
    "clear_until": [
        (".sum()) - 1", ".sum())", "they begin at 0"),
        ("snr >= wanted", "snr <= wanted", "is reached at t = 3"),
        ("alphas_cumprod / (1 - alphas_cumprod)", "alphas_cumprod", "is reached at t = 3"),
    ],
    "kernel_mmd": [
        (
            "(k(x, x).sum() - np.trace(k(x, x))) / (len(x) * (len(x) - 1))",
            "k(x, x).mean()",
            "the diagonal is still in",
        ),
        ("2 * k(a, b)", "k(a, b)", "counts twice"),
        ("/ x.shape[1]", "", "not divided by D"),
    ],
    "speedup": [
        ("denoise / factor", "denoise", "must be the factor itself"),
        (
            "(prepare + denoise + decode) / (prepare + denoise / factor + decode)",
            "factor",
            "1.25 seconds become 0.29",
        ),
        ("(prepare + denoise + decode) /", "denoise /", "a factor of 1 changes nothing"),
    ],
    "lost_at": [
        ("        before = value\n", "", "compared with the link before it"),
        ("before - tolerance", "before", "within the tolerance"),
        ("    return None", "    return name", "must be None, not 'student'"),
        ("before = 1.0", "before = 0.0", "the reader fails there"),
        ("before - tolerance", "before + tolerance", "must be None, not 'drawn'"),
        (
            "        if value < before - tolerance:\n            return name\n        before = value\n    return None",
            "        pass\n    return min(ned, key=ned.get) if min(ned.values()) < 0.9 else None",
            "the first link that loses",
        ),
    ],
    "my_scene": [
        ("24, 74, 104, 114", "24, 44, 104, 84", "overlap"),
        ("24, 74, 104, 114", "24, 74, 104, 90", "16 pixels high"),
        ("24, 74, 104, 114", "24, 74, 204, 114", "leaves the picture"),
        ("[above, below]", "[above]", "1 lines with text"),
        ("a white background, black text", "black text", "does not name the background"),
    ],
    "merged_weight": [
        ("scale * ", "", "scale is missing"),
        ("exact.to(weight.dtype)", "exact", "torch.float32"),
        ("weight.float() + scale * up.float() @ down.float()", "weight + scale * (up @ down)", "more than once"),
        ("    exact = weight.float() +", "    exact = weight; exact +=", "it changes the weight"),
        ("up.float() @ down.float()", "down.float() @ up.float()", "stops with RuntimeError"),
    ],
    "unbeaten": [
        (" and a != b", "", "does not beat itself"),
        ("a[0] <= b[0]", "a[0] < b[0]", "far differs"),
        ("a[1] >= b[1]", "a[1] <= b[1]", "best reads most"),
        ("not any(", "any(", "far differs"),
        (" and a[1] >= b[1] and a[2] <= b[2]", "", "best reads most"),
    ],
}
