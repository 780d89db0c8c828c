"""Checkpoint files and yaml: what loads, what is refused, and that a refusal leaves the model as it was."""

import pickle
import re

import pytest
import torch
from omegaconf import OmegaConf
from reference_weights import X
from safetensors.torch import save_file
from small_models import EMBEDDED, miniature

from anytext_lcm.model.anytext2 import SCHEDULE_BUFFERS, AnyText2
from anytext_lcm.model.checkpoint import OPTIONAL_KEYS, load_strict, read_state_dict

POSITION_IDS = OPTIONAL_KEYS[0]
KEY = "control_model.zero_convs.0.0.weight"
OTHER = "text_predictor.head.fc.bias"


@pytest.fixture(scope="module")
def source():
    """What is in the files: rule weights, moved so that they differ from a fresh `miniature()`."""
    state = miniature().state_dict()
    return {key: value + 0.5 if "." in key and value.is_floating_point() else value for key, value in state.items()}


@pytest.fixture(scope="module")
def model():
    return miniature()


@pytest.fixture(autouse=True)
def original(model):
    """The model's state before the test; put back afterwards."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    yield state
    load_strict(model, state)


def assert_untouched(model, original):
    now = model.state_dict()
    assert list(now) == list(original)
    assert all(torch.equal(value, now[key]) and value.dtype == now[key].dtype for key, value in original.items())


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def refused(model, path, original, error=ValueError):
    """The message of the refusal: one line that names the file."""
    with pytest.raises(error) as caught:
        model.load_checkpoint(path)
    assert_untouched(model, original)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.endswith(".")
    return message


# --- what loads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wraps", [0, 1, 2])
@pytest.mark.parametrize("name", ["model.ckpt", "model.pth"])
def test_wrapped_and_bare_pickles(model, source, tmp_path, wraps, name):
    content = source
    for level in range(wraps):
        content = {"state_dict": content, "global_step": level}
    assert model.load_checkpoint(saved(tmp_path / name, content)) is model
    assert all(torch.equal(source[key], value) for key, value in model.state_dict().items())


def test_safetensors(model, source, tmp_path):
    save_file(source, tmp_path / "model.safetensors")
    model.load_checkpoint(str(tmp_path / "model.safetensors"))
    assert all(torch.equal(source[key], value) for key, value in model.state_dict().items())


def test_pickle_from_before_torch_1_6(model, source, tmp_path):
    path = saved(tmp_path / "old.ckpt", {"state_dict": source}, _use_new_zipfile_serialization=False)
    model.load_checkpoint(path)
    assert torch.equal(model.state_dict()[KEY], source[KEY])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_half_precision_files_become_fp32_and_leave_the_schedule_exact(
    model, original, source, tmp_path, dtype, suffix
):
    half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in source.items()}
    path = tmp_path / f"half.{suffix}"
    save_file(half, path) if suffix == "safetensors" else torch.save(half, path)
    for key, value in model.load_checkpoint(path).state_dict().items():
        assert value.dtype == source[key].dtype
        assert torch.equal(value, original[key] if key in SCHEDULE_BUFFERS else half[key].to(value.dtype)), key


def test_fp32_file_into_a_half_precision_model(source, tmp_path):
    model = miniature().half().load_checkpoint(saved(tmp_path / "full.ckpt", source))
    assert torch.equal(model.state_dict()[KEY], source[KEY].half())
    assert torch.equal(model.alphas_cumprod, source["alphas_cumprod"])


@pytest.mark.parametrize("wrap", [False, True])
def test_position_ids_of_older_transformers_are_passed_over(model, source, tmp_path, wrap):
    state = {**source, POSITION_IDS: torch.arange(77)[None]}
    model.load_checkpoint(saved(tmp_path / "ids.ckpt", {"state_dict": state} if wrap else state))
    assert torch.equal(model.state_dict()[KEY], source[KEY])
    assert POSITION_IDS not in model.state_dict()


def test_the_file_can_go_after_loading(model, source, tmp_path):
    """Files are memory-mapped while they are read; the model must not depend on them afterwards."""
    path = saved(tmp_path / "model.ckpt", source)
    empty = miniature().to("meta")
    for target in (model, empty):
        target.load_checkpoint(path)
    path.unlink()
    assert torch.equal(model.state_dict()[KEY], source[KEY])
    assert torch.equal(empty.state_dict()[KEY], source[KEY])


def test_loading_does_not_change_what_trains(source, tmp_path):
    model = miniature().to("meta")
    model.control_model.requires_grad_(True)
    model.load_checkpoint(saved(tmp_path / "model.ckpt", source))
    assert all(p.requires_grad == name.startswith("control_model.") for name, p in model.named_parameters())
    assert not any(p.is_meta for p in model.parameters())


# --- what does not fit ----------------------------------------------------------------------------------


def test_every_kind_of_mismatch_is_in_one_message(model, original, source, tmp_path):
    state = dict(source)
    del state[KEY]
    state["control_model.nonsense"] = torch.zeros(3)
    state[OTHER] = torch.zeros(5)
    message = refused(model, saved(tmp_path / "wrong.ckpt", state), original)
    assert f"1 missing ({KEY})" in message
    assert "1 unexpected (control_model.nonsense)" in message
    assert f"1 of another shape ({OTHER} (5,) instead of {tuple(source[OTHER].shape)})" in message
    assert "nothing was loaded" in message


@pytest.mark.parametrize("change", ["missing", "unexpected", "of another shape"])
def test_a_single_mismatch_is_enough(model, original, source, tmp_path, change):
    state = dict(source)
    if change == "missing":
        del state[OTHER]
    elif change == "unexpected":
        state["extra.weight"] = torch.zeros(1)
    else:
        state[OTHER] = source[OTHER][None]  # as many numbers, but one axis more
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "wrong.safetensors")
    message = refused(model, tmp_path / "wrong.safetensors", original)
    assert f"1 {change} (" in message
    assert message.count(" (") == 1 or change == "of another shape"


def test_many_mismatches_are_counted(model, original, source, tmp_path):
    state = {key: value for key, value in source.items() if not key.startswith("control_model.")}
    message = refused(model, saved(tmp_path / "half.ckpt", state), original)
    absent = len(source) - len(state)
    assert f"{absent} missing (" in message and f"and {absent - 3} more)" in message
    assert len(message) < 1000


def test_the_checkpoint_of_another_network(model, original, tmp_path):
    path = saved(tmp_path / "sd.ckpt", {"state_dict": {"model.diffusion_model.x": torch.zeros(2)}})
    message = refused(model, path, original)
    assert f"{len(original)} missing" in message and "1 unexpected (model.diffusion_model.x)" in message


def test_an_empty_state_dict(model, original, tmp_path):
    assert f"{len(original)} missing" in refused(model, saved(tmp_path / "none.ckpt", {}), original)


KINDS = {
    "sparse": lambda value: value.to_sparse(),
    "quantised": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    "without data": lambda value: torch.empty(value.shape, device="meta"),
    "int64": lambda value: value.to(torch.int64),
    "bool": lambda value: value > 0,
    "complex64": lambda value: value.to(torch.complex64),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", [OTHER, "alphas_cumprod"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_one_tensor_of_another_kind_is_refused_before_the_first_copy(model, original, source, tmp_path, kind, key):
    """`refused` compares every tensor of the model with what it was."""
    path = saved(tmp_path / "odd.ckpt", source | {key: KINDS[kind](source[key])})
    assert f"1 no plain floating-point weights ({key} is {kind})" in refused(model, path, original)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_names_of_wrappers_are_taken_out(model, source, tmp_path, prefix):
    state = {prefix + key: value for key, value in source.items()}
    model.load_checkpoint(saved(tmp_path / "wrapped.ckpt", {"state_dict": state}))
    assert all(torch.equal(source[key], value) for key, value in model.state_dict().items())


def test_one_compiled_part(model, source, tmp_path):
    part = "model.diffusion_model."
    state = {key.replace(part, f"{part}_orig_mod."): value for key, value in source.items()}
    model.load_checkpoint(saved(tmp_path / "compiled.ckpt", state))
    assert all(torch.equal(source[key], value) for key, value in model.state_dict().items())


def test_an_average_beside_the_weights_is_explained(model, original, source, tmp_path):
    path = saved(tmp_path / "ema.ckpt", source | {"model_ema.decay": torch.tensor(0.9)})
    assert "model_ema. are an average of the weights" in refused(model, path, original)


def test_two_names_for_one_weight_are_not_merged(model, original, source, tmp_path):
    path = saved(tmp_path / "twice.ckpt", source | {f"_orig_mod.{OTHER}": source[OTHER]})
    assert f"1 unexpected (_orig_mod.{OTHER})" in refused(model, path, original)


def test_capital_endings(model, source, tmp_path):
    save_file(source, tmp_path / "MODEL.SAFETENSORS")
    model.load_checkpoint(tmp_path / "MODEL.SAFETENSORS")
    assert torch.equal(model.state_dict()[KEY], source[KEY])


class Stopped(Exception):
    """As torch's launcher raises for SIGTERM in its agent."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(), PermissionError(13, "Permission denied")], ids=repr)
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_only_damage_is_called_damage(model, source, tmp_path, monkeypatch, error, suffix):
    path = tmp_path / f"model.{suffix}"
    save_file(source, path) if suffix == "safetensors" else torch.save(source, path)

    def interrupted(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", interrupted)
    monkeypatch.setattr("safetensors.torch.load_file", interrupted)
    with pytest.raises(type(error)) as caught:
        model.load_checkpoint(path)
    assert caught.value is error


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("unable to mmap: Cannot allocate memory (12)")], ids=repr
)
def test_too_little_memory_is_said(model, original, source, tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    path = saved(tmp_path / "large.ckpt", source)
    monkeypatch.setattr(torch, "load", full)
    assert "is truncated or no weights file" in refused(model, path, original)  # small, it cannot hold so much
    monkeypatch.setattr("anytext_lcm.model.checkpoint.SMALL_FILE", 1)
    assert "needs more memory than there is" in refused(model, path, original)


# --- what is no checkpoint ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_truncated_files(model, original, source, tmp_path, share, suffix):
    path = tmp_path / f"cut.{suffix}"
    save_file(source, path) if suffix == "safetensors" else torch.save(source, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    message = refused(model, path, original)
    assert "truncated or no weights file" in message and f"({path.stat().st_size} bytes)" in message


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_text_files(model, original, tmp_path, suffix):
    path = tmp_path / f"page.{suffix}"
    path.write_text("<html>404: Not Found</html>\n" * 50)
    assert "no weights file" in refused(model, path, original)


class Harmful:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["torch", "bare"])
def test_a_pickle_with_code_is_not_run(model, original, source, tmp_path, kind):
    path, trace = tmp_path / "evil.ckpt", tmp_path / "was_here"
    content = {"state_dict": source if kind == "torch" else {}, "callbacks": Harmful(trace)}
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    message = refused(model, path, original)
    assert not trace.exists()
    assert ("more than tensors" if kind == "torch" else "no weights file") in message
    pickle.loads(pickle.dumps(Harmful(trace))).close()
    assert trace.exists()  # the trap works


def test_files_without_a_state_dict(model, original, tmp_path):
    for content in (
        [torch.zeros(2)],
        {"state_dict": {"step": 3}},
        {"a": {"b": torch.zeros(1)}},
        torch.zeros(3),
        {1: torch.zeros(1)},
    ):
        assert "holds no state dict" in refused(model, saved(tmp_path / "odd.ckpt", content), original)


def test_missing_file_and_directory(model, original, tmp_path):
    assert "is not a file" in refused(model, tmp_path / "absent.ckpt", original, FileNotFoundError)
    assert "is not a file" in refused(model, tmp_path, original, FileNotFoundError)


def test_reading_returns_plain_tensors(source, tmp_path):
    state = read_state_dict(saved(tmp_path / "m.ckpt", {"state_dict": source}))
    assert type(state) is dict and state.keys() == source.keys()


# --- yaml -----------------------------------------------------------------------------------------------


def refused_yaml(path, error=ValueError):
    with pytest.raises(error) as caught:
        AnyText2.from_config(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.endswith(".")
    return message


def test_wrong_path(tmp_path):
    assert "is not a file" in refused_yaml(tmp_path / "absent.yaml", FileNotFoundError)
    assert "is not a file" in refused_yaml(tmp_path, FileNotFoundError)


@pytest.mark.parametrize("text", ["", "hello", "- 1\n- 2\n", "model: 3\n", "model:\n  params:\n", "params: {}\n"])
def test_yaml_without_model_params(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    assert "has no model.params" in refused_yaml(path)


def test_broken_yaml(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("model: [1, 2\n  params: }\n")
    assert "is not valid yaml" in refused_yaml(path)


@pytest.mark.parametrize("part", ["unet_config", "control_stage_config"])
def test_unknown_settings_are_named(tmp_path, part):
    config = OmegaConf.load(EMBEDDED)
    config.model.params[part].params.model_chanels = 320
    OmegaConf.save(config, tmp_path / "typo.yaml")
    assert f"{part} has no setting 'model_chanels'" in refused_yaml(tmp_path / "typo.yaml")


@pytest.mark.parametrize("key", ["unet_config", "scale_factor", "first_stage_config.params.ddconfig.ch"])
def test_absent_settings_are_named(tmp_path, key):
    config = OmegaConf.to_container(OmegaConf.load(EMBEDDED))
    *parents, last = key.split(".")
    node = config["model"]["params"]
    for parent in parents:
        node = node[parent]
    del node[last]
    OmegaConf.save(config, tmp_path / "short.yaml")
    assert re.search(f"'{last}' is missing", refused_yaml(tmp_path / "short.yaml"))


def test_loaded_weights_draw_what_the_saved_ones_draw(model, source, tmp_path):
    """The file is all there is to a model: a second one gives the same numbers."""
    twin = miniature().load_checkpoint(saved(tmp_path / "m.ckpt", source))
    model.load_checkpoint(tmp_path / "m.ckpt")
    z = X("twin.z", (1, 16, 4, 4))
    with torch.no_grad():
        assert torch.equal(model.decode(z), twin.decode(z))
