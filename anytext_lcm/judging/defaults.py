"""Which methods are compared and how AnyText-benchmark is drawn, unless a flag says otherwise. It imports nothing."""

REAL, RECONSTRUCTION = "real", "reconstruction"  # the panel's own pictures, and these through the autoencoder

METHODS = (
    REAL,
    RECONSTRUCTION,
    "teacher-50",
    "teacher-8",
    "teacher-4",
    "teacher-2",
    "teacher-1",
    "untrained-4",
    "student-1",
    "student-2",
    "student-4",
    "student-8",
)
COMPARISON = (  # every family of methods at equal evaluations; guided steps count twice
    REAL,
    RECONSTRUCTION,
    *(f"teacher-{n}" for n in (50, 20, 8, 4, 2, 1)),
    *(f"teacher-{n}-eta1" for n in (50, 20, 8, 4, 2)),
    *(f"teacher-{n}-{solver}" for solver in ("dpm++", "unipc") for n in (8, 4, 2)),
    *(f"untrained-{n}" for n in (1, 2, 4, 8, 16)),
    *(f"student-{n}" for n in (1, 2, 4, 6, 8, 16)),
    *(f"student-{n}-deterministic" for n in (2, 4, 8)),
)

PANEL = "panel"  # for the benchmark's prompts: those of the embedded network's own task
BENCHMARK_METHODS = ("teacher-20", "student-4", "student-8")
# AnyText2's eval/anytext2_singleGPU.py: pictures of a prompt, seed of the first, words behind every caption, what is
# guided away from (its demo has another negative prompt).
SAMPLES, SEED, ADDED_WORDS = 4, 100, "best quality, extremely detailed"
EVALUATION_NEGATIVE_PROMPT = (
    "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, worst quality, "
    "low quality, watermark"
)
