"""Wrong answers to the exercises of notebook 04, each a change of the solution: text, replacement, words it meets."""

WRONG = {
    "one_gpu": [
        ('"gradient_accumulation_steps": 12', '"gradient_accumulation_steps": 4', "an update averages 48 pictures"),
        ('"train_batch_size": 12', '"train_batch_size": 36', "a batch of 36 does not fit"),
        ('"num_processes": 1', '"num_processes": 3', "there is one GPU"),
        ('"train_batch_size"', '"batch"', "its keys are batch"),
    ],
    "deal": [
        ("(step * world + rank)", "(step + rank)", "each earlier step dealt `world` batches"),
        ("(step * world + rank) * batch", "step * batch", "two processes get the same picture"),
        ("first + batch]", "first + 1]", "gets 1 pictures, not 2"),
        ("step * world", "step * 3", "right for 3 processes and wrong for 2"),
    ],
    "stops_at": [
        ("score > best", "score >= best", "a tie counts as a rise"),
        ("waited >= patience", "waited > patience", "one panel late"),
        ("(score, 0) if score > best", "(score, waited) if score > best", "not set back to 0"),
        ("else (best, waited + 1)", "else (score, waited + 1)", "the panel before"),
    ],
    "averaged": [
        ("d * mean + (1 - d) * weights", "(1 - d) * mean + d * weights", "belongs to the mean"),
        ("min(decay, (1 + n) / (10 + n))", "decay", "the first update keeps 0.98"),
        ("min(decay, (1 + n) / (10 + n))", "(1 + n) / (10 + n)", "after many updates"),
    ],
    "merged_weight": [
        ("alpha / len(A) * B", "B", "the scale alpha / r is missing"),
        ("alpha / len(A)", "alpha", "by alpha and not by alpha / r"),
        ("B @ A", "A @ B", "stops with RuntimeError"),
        ("W + ", "", "W is missing"),
    ],
}
