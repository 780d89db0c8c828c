"""Wrong answers to the exercises of notebook 01, each a change of the solution: text, replacement, words it meets."""

WRONG = {
    "count": [
        (" + outputs", "", "the bias of the Linear layer is missing"),
        ("kernel**2", "kernel", "nine places, not three"),
        ("else kernel**2", "else 1", "has 322 parameters"),
    ],
    "add_attnx": [
        ("scale * attn1x", "attn1x", "with scale 0"),
        ("    h = h +", "    h +=", "changes the h"),
        (
            "    h = h + scale * attn1x(norm1(h))\n    return h + scale * attn2x(norm2(h), c)",
            "    return h + scale * (attn1x(norm1(h)) + attn2x(norm2(h), c))",
            "the second attention sees the old h",
        ),
        ("norm2(h)", "norm1(h)", "it is not h + scale"),
    ],
    "adapter_size": [
        ("inputs * places", "inputs", "the kernel is left out"),
        ("(inputs * places + outputs)", "(inputs + outputs) * places", "belongs to A alone"),
        ("rank * (inputs * places + outputs)", "inputs * outputs", "needs 36 at rank 3"),
    ],
    "trained_bytes": [
        ("4 * 4 * parameters", "4 * parameters", "only the weights"),
        ("4 * 4 * parameters", "8 * parameters", "two moments are missing"),
        ("4 * 4 * parameters", "12 * parameters", "make four"),
    ],
    "hit": [
        ('name.endswith("." + target)', "name.endswith(target)", "a dot stands before"),
        ("name == target or ", "", "the whole name is missed"),
        ("return sorted(", "return list(", "not sorted"),
    ],
    "compare": [
        ("wanted[name] != found[name]", "True", "same shape in both"),
        ("sorted(wanted.keys() - found.keys()), ", "", "does not return three lists"),
        ("wanted.keys() - found.keys()", "found.keys() - wanted.keys()", "swapped"),
    ],
}
