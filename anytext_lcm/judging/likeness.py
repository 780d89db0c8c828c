"""How near drawn pictures are to real ones: kernel distance, diversity, sharpness, same-noise distance."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import cv2
import numpy as np

from anytext_lcm.judging.intervals import Interval
from anytext_lcm.judging.reading import as_uint8, model_file, onnx_session

if TYPE_CHECKING:
    import onnx

_FEATURE_SIZE = 256


class DetectorFeatures:
    """Mean and deviation over space of an inner layer of PP-OCR's text detector: the last at stride 16."""

    def __init__(self, threads: int | None = None, batch_size: int = 16):
        import onnx

        model = onnx.load(str(model_file("det")))
        layer = self._end_of_stride_16(model.graph)
        del model.graph.output[:]  # without its head the rest of the network is not run
        model.graph.output.append(onnx.helper.make_tensor_value_info(layer, onnx.TensorProto.FLOAT, None))
        self.session = onnx_session(model.SerializeToString(), threads)
        self.input_name = self.session.get_inputs()[0].name
        self.batch_size = batch_size

    @staticmethod
    def _end_of_stride_16(graph: "onnx.GraphProto") -> str:
        """Name of the input of the fifth stride-2 convolution, which has been halved four times."""
        halving = [
            node.input[0]
            for node in graph.node
            if node.op_type == "Conv"
            for attribute in node.attribute
            if attribute.name == "strides" and list(attribute.ints) == [2, 2]
        ]
        if len(halving) != 5:
            raise ValueError(
                f"The text detector halves its input {len(halving)} times, not 5: "
                "install the rapidocr of requirements.lock."
            )
        return halving[4]

    def __call__(self, images) -> np.ndarray:
        """Pictures (as for `as_uint8`) to features (N, 384) float64; each is resized to 256 x 256 first."""
        images, size = as_uint8(images), (_FEATURE_SIZE, _FEATURE_SIZE)
        features = []
        for start in range(0, len(images), self.batch_size):
            chunk = []
            for image in images[start : start + self.batch_size]:
                how = cv2.INTER_AREA if min(image.shape[:2]) > _FEATURE_SIZE else cv2.INTER_LINEAR
                chunk.append(cv2.resize(image, size, interpolation=how)[:, :, ::-1])
            batch = np.stack(chunk).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
            [maps] = self.session.run(None, {self.input_name: np.ascontiguousarray(batch)})
            features.append(np.concatenate([maps.mean(axis=(2, 3)), maps.std(axis=(2, 3))], axis=1))
        return np.concatenate(features).astype(np.float64)


def kernel_distance(
    a: np.ndarray, b: np.ndarray, draws: int = 1000, seed: int = 0, groups: np.ndarray | None = None
) -> Interval:
    """Squared maximum mean discrepancy with kernel (x.y / D + 1)^3: the KID of arXiv:1801.01401.

    a, b: features (N, D), (M, D). Unbiased: 0 on average for equal distributions, hence at times below 0. The interval
    resamples pictures; one drawn twice is not compared with itself, which would bias it upward. groups (N,): pictures
    of a that belong together, as of one prompt from several noises; they are not compared with each other, and are
    resampled together. By default each picture is its own group. Raises ValueError for other shapes.
    """
    _check_features(a, b)
    _, group_of = np.unique(np.arange(len(a)) if groups is None else np.asarray(groups), return_inverse=True)
    if len(group_of) != len(a):
        raise ValueError(f"{len(group_of)} groups for {len(a)} pictures: give one each.")
    sizes = np.bincount(group_of)
    dim = a.shape[1]
    k_aa, k_bb, k_ab = ((x @ y.T / dim + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    k_aa[group_of[:, None] == group_of] = 0
    np.fill_diagonal(k_bb, 0)

    def discrepancy(w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """One value for each row of weights of the groups w (draws, G) and of the pictures v (draws, M)."""
        alone = ((w * sizes) ** 2).sum(axis=1), (v**2).sum(axis=1)  # weight of the pairs that are left out
        w = w[:, group_of]
        value = -2 * ((w @ k_ab) * v).sum(axis=1) / (w.sum(axis=1) * v.sum(axis=1))
        for weights, kernel, left_out in ((w, k_aa, alone[0]), (v, k_bb, alone[1])):
            value += ((weights @ kernel) * weights).sum(axis=1) / (weights.sum(axis=1) ** 2 - left_out)
        return value

    rng, counts = np.random.default_rng(seed), (len(sizes), len(b))
    w, v = (rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(float) for n in counts)
    with np.errstate(invalid="ignore"):  # of very few pictures, a draw can be one alone: no pair, no value
        low, high = np.nanquantile(discrepancy(w, v), [0.025, 0.975])
    value = discrepancy(np.ones((1, len(sizes))), np.ones((1, len(b))))[0]
    return Interval(float(value), float(low), float(high), min(counts))


@dataclass(frozen=True)
class DistributionDistance:
    """Drawn pictures against real ones; the floor is other real ones against the same."""

    kernel: Interval
    kernel_floor: Interval
    n: int


class RealFeatures:
    """Features (M, D) of real pictures in two halves: one to compare with, the other for the floor.

    The floor is what two sets of real pictures are apart by chance. They must not be the pictures whose prompts were
    drawn: shared texts and layouts would bring the distances below the floor. Features are scaled by the deviations of
    the first half, so that no channel dominates. Raises ValueError for M below 4.
    """

    def __init__(self, features: np.ndarray, seed: int = 0):
        self.n, self.seed = len(features) // 2, seed
        if self.n < 2:
            raise ValueError(f"{len(features)} real pictures: give at least 4.")
        self.deviation = features.std(axis=0)  # of all
        reference = features[: self.n]
        self.centre, self.scale = reference.mean(axis=0), reference.std(axis=0) + 1e-6
        self.reference = self._scaled(reference)
        self._rest = self._scaled(features[self.n : 2 * self.n])

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return (features - self.centre) / self.scale

    @cached_property
    def floor(self) -> Interval:
        return kernel_distance(self._rest, self.reference, seed=self.seed)

    def distance(self, drawn: np.ndarray, groups: np.ndarray | None = None) -> DistributionDistance:
        """Distance of features drawn (N, D) from the first half, beside the floor.

        groups (N,): as in `kernel_distance`. Sets of another size have intervals of another width, so N must be M // 2.
        Raises ValueError for another N.
        """
        if len(drawn) != self.n:
            raise ValueError(f"{len(drawn)} drawn pictures for {self.n} real ones: give equally many.")
        kernel = kernel_distance(self._scaled(drawn), self.reference, seed=self.seed, groups=groups)
        return DistributionDistance(kernel, self.floor, self.n)


def diversity(features: np.ndarray, repeats: int, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """Mean distance between pictures of one prompt from different noise: (prompts,), root mean square over channels.

    features (repeats * prompts, D), one noise after the other. scale (D,): the unit of each channel, the same for all
    compared methods; the deviations over real pictures suit. Raises ValueError for one repeat.
    """
    if repeats < 2 or len(features) % repeats:
        raise ValueError(f"{len(features)} pictures are not {repeats} for each prompt, and 2 are needed.")
    scaled = (features / (scale + 1e-6)).reshape(repeats, -1, features.shape[1])
    pairs = [(i, j) for i in range(repeats) for j in range(i)]
    distances = [np.linalg.norm(scaled[i] - scaled[j], axis=1) for i, j in pairs]
    return np.mean(distances, axis=0) / np.sqrt(features.shape[1])


def _check_features(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"Features must be (N, D) and (M, D), N and M at least 2, not {a.shape}, {b.shape}.")


def _luma(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)


def sharpness(images, masks: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Variance of the Laplacian of luma (0..255), (B,); inside the masks (H, W) only, when given.

    Blur lowers it and noise raises it: compare it with that of real pictures.
    """
    return _over_pixels(images, masks, lambda luma: cv2.Laplacian(luma, cv2.CV_64F), np.var)


def gradient_energy(images, masks: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Mean squared gradient of luma (0..255), central differences, (B,); less moved by noise."""
    return _over_pixels(images, masks, lambda luma: np.square(np.gradient(luma)).sum(axis=0), np.mean)


def _over_pixels(images, masks, transform, reduce) -> np.ndarray:
    images = as_uint8(images)
    values = []
    for index, image in enumerate(images):
        pixels = transform(_luma(image))
        values.append(reduce(pixels if masks is None else pixels[np.asarray(masks[index], dtype=bool)]))
    return np.array(values)


def same_noise_distance(student, teacher) -> tuple[np.ndarray, np.ndarray]:
    """Distance of pictures drawn from the same noise: RMSE (B,) in levels of 0..255, PSNR (B,) in dB.

    PSNR is infinite for equal pictures. Raises ValueError when the sets differ in number or size.
    """
    student, teacher = as_uint8(student), as_uint8(teacher)
    if [image.shape for image in student] != [image.shape for image in teacher]:
        raise ValueError("Student and teacher must have drawn equally many pictures of one size.")
    pairs = zip(student, teacher, strict=True)
    rmse = np.array([np.sqrt(np.mean((a.astype(float) - b) ** 2)) for a, b in pairs])
    with np.errstate(divide="ignore"):
        return rmse, 20 * np.log10(255 / rmse)
