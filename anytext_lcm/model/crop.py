"""Cutting one text line upright out of a picture (AnyText2 cldm/recognizer.py, `crop_image`).

The rounding below is part of the network's input distribution: corners are truncated to integers, and coordinates are
normalised by the width W, not W - 1.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MASK_THRESHOLD = 127


def text_box(mask: np.ndarray) -> np.ndarray:
    """Find the smallest rotated rectangle round the largest blob of a mask (H, W) uint8, inside > 127.

    Returns corners (4, 2) int64: top left, top right, bottom right, bottom left; they may lie outside the picture. An
    empty mask has the box (0, 0)-(100, 100), as in upstream. Raises ValueError for another dtype or shape.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"text_box: mask {mask.dtype} {mask.shape} is not uint8 (H,W) with values 0..255.")
    binary = np.where(mask > MASK_THRESHOLD, 255, 0).astype(np.uint8)
    contours = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[-2]
    if not contours:
        return np.array([[0, 0], [100, 0], [100, 100], [0, 100]], dtype=np.int64)
    # corners do not depend on how an opencv version names width, height and angle
    corners = cv2.boxPoints(cv2.minAreaRect(max(contours, key=cv2.contourArea)))
    # by x, then by y; upstream leaves equal x in opencv's order, which changes between versions
    corners = sorted(np.trunc(corners).astype(np.int64).tolist())
    top_left, bottom_left = sorted(corners[:2], key=lambda point: point[1])
    top_right, bottom_right = sorted(corners[2:], key=lambda point: point[1])
    return np.array([top_left, top_right, bottom_right, bottom_left], dtype=np.int64)


def box_size(box: np.ndarray) -> tuple[float, float]:
    """Measure width and height of a box (4, 2) of `text_box` in pixels: the longer of each pair of sides."""
    top_left, top_right, bottom_right, bottom_left = np.asarray(box, dtype=np.float32)

    def length(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b))

    width = max(length(top_left, top_right), length(bottom_right, bottom_left))
    height = max(length(top_left, bottom_left), length(top_right, bottom_right))
    return width, height


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Fit a similarity (3, 3) (rotation, one scale, shift; no reflection) from points (N, 2) to points (N, 2).

    Least squares: Umeyama, IEEE PAMI 13(4), 1991, equations 34 to 43. If all source points coincide, rotation and scale
    are 1. Raises ValueError for two sets of points that do not match.
    """
    # Written out because upstream leans on a private function of scikit-image.
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or not len(source):
        raise ValueError(f"umeyama: points {source.shape} and {target.shape} are not two equal sets (N,2).")
    mean_source, mean_target = source.mean(0), target.mean(0)
    covariance = (target - mean_target).T @ (source - mean_source) / len(source)
    variance = ((source - mean_source) ** 2).sum() / len(source)
    u, singular, vt = np.linalg.svd(covariance)
    signs = np.array([1.0, 1.0 if np.linalg.det(u) * np.linalg.det(vt) > 0 else -1.0])
    linear = np.eye(2)
    if variance > 0:
        linear = (singular @ signs) / variance * (u * signs) @ vt
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = mean_target - linear @ mean_source
    return matrix


def crop_similarity(box: np.ndarray) -> np.ndarray:
    """Fit the similarity (3, 3) in pixels that brings a box (4, 2) to an upright rectangle at the origin."""
    width, height = box_size(box)
    upright = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    return umeyama(box, upright)


def crop_image(image: Tensor, mask: np.ndarray | Tensor) -> Tensor:
    """Cut out the text line under a mask and turn it upright.

    image (C, H, W) 0..255; mask (H, W) uint8, inside > 127. Returns (C, h, w) 0..255 on the image's device, never
    larger than the image and with sides of at least one pixel. Raises ValueError where the two sizes differ.
    """
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().numpy()
    if image.ndim != 3 or tuple(image.shape[1:]) != mask.shape:
        raise ValueError(
            f"crop_image: image {tuple(image.shape)} and mask {mask.shape} differ, give (C,H,W) and (H,W) of one size."
        )
    box = text_box(mask)
    width, height = box_size(box)
    rows, columns = mask.shape
    to_unit = np.array([[2 / columns, 0, -1], [0, 2 / rows, -1], [0, 0, 1]])
    matrix = crop_similarity(box)
    if abs(np.linalg.det(matrix[:2, :2])) < 1e-12:  # the mask is one pixel: nothing to turn or scale
        matrix = np.array([[1, 0, -box[0, 0]], [0, 1, -box[0, 1]], [0, 0, 1]], dtype=np.float64)
    theta = np.linalg.inv(to_unit @ matrix @ np.linalg.inv(to_unit))[:2]
    image = image if image.is_floating_point() else image.float()
    grid = F.affine_grid(
        torch.as_tensor(theta, dtype=torch.float32, device=image.device)[None],
        [1, image.shape[0], rows, columns],
        align_corners=True,
    )
    upright = F.grid_sample(
        image[None], grid.to(image.dtype), mode="bilinear", padding_mode="zeros", align_corners=True
    )[0]
    return upright.clamp(0, 255)[:, : max(1, int(height)), : max(1, int(width))]
