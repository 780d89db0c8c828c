"""Where the parts that are not in this repository are published, and where to put them.

Names and folders are those of AnyText2's README, demo.py, ms_wrapper.py and train.py (github.com/tyxsspa/AnyText2,
commit b06c583).
"""

MODEL = "iic/cv_anytext2"  # on ModelScope
CHECKPOINT = "models/anytext_v2.0.ckpt"
"""Where upstream's demo reads the weights."""

WEIGHTS = (
    f"The weights are anytext_v2.0.ckpt of the model {MODEL} on ModelScope (modelscope.cn), which its package fetches "
    f"with snapshot_download({MODEL!r}): put them to {CHECKPOINT} in the folder you work in."
)
TOKENIZER = (
    f"The tokenizer is the folder clip-vit-large-patch14 of the same model {MODEL}, or openai/clip-vit-large-patch14 "
    "on Hugging Face: put it to models/clip-vit-large-patch14 in the folder you work in."
)
FONT = (
    "Upstream draws with font/Arial_Unicode.ttf of github.com/tyxsspa/AnyText2, which holds Chinese: name it, or a "
    "free font such as Noto Sans CJK, with --fonts."
)
DATA = (
    "AnyWord-3M is the data set iic/AnyWord-3M on ModelScope; the annotations for AnyText2 are data_v1.2b.json in the "
    "folder of each part: name them with --data_list, and the pictures' folder with --data_root."
)
