"""Made-up worlds for tests and examples, never a stand-in under a real set's name."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vestige.errors import InvalidInput
from vestige.records import Records

__all__ = ["classification", "gaussian_world"]


def gaussian_world(
    n: int = 1_000,
    features: int = 20,
    classes: int = 2,
    *,
    separation: float = 2.0,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Records:
    """Gaussian classes of unit variance whose centers lie `separation` apart.

    Centers are `separation / sqrt(2)` times the first unit vectors, so that with two classes no
    classifier is right more often than Phi(separation / 2). With label noise, labels that say
    nothing about x can only be remembered.

    Args:
        n: records.
        features: dimensions, at least `classes`.
        classes: equally likely.
        separation: distance between any two centers, in standard deviations.
        label_noise: the fraction of records whose label is drawn anew, uniformly.
        seed: everything that is drawn depends on it alone.

    Returns:
        (n, features) float32 records.

    Raises:
        InvalidInput: a size or a fraction that cannot be.

    >>> gaussian_world(4, 2, seed=1).x.shape
    (4, 2)
    """
    _check(n, features, classes)
    if features < classes or separation < 0 or not 0 <= label_noise <= 1:
        raise InvalidInput(
            f"expected features >= classes, separation >= 0 and label_noise in [0, 1], got "
            f"{features}, {classes}, {separation} and {label_noise}; change the world"
        )
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    x = rng.standard_normal((n, features))
    x[np.arange(n), y] += separation / np.sqrt(2)
    redrawn = rng.random(n) < label_noise
    y = np.where(redrawn, rng.integers(classes, size=n), y)
    return _records(x, y, classes)


def classification(
    n: int = 4_000,
    features: int = 20,
    classes: int = 4,
    seed: int = 0,
    *,
    informative: int = 10,
    separation: float = 1.0,
    label_noise: float = 0.01,
) -> Records:
    """scikit-learn's `make_classification`: clusters on the corners of a hypercube.

    Args:
        n: records.
        features: columns in all; those that are not informative are noise.
        classes: equally likely, two clusters each.
        seed: everything that is drawn depends on it alone.
        informative: columns that tell the classes apart.
        separation: half the side of the hypercube (`class_sep`).
        label_noise: the fraction of labels drawn anew (`flip_y`).

    Returns:
        (n, features) float32 records.

    Raises:
        InvalidInput: sizes that the generator cannot satisfy.
    """
    from sklearn.datasets import make_classification

    _check(n, features, classes)
    try:
        x, y = make_classification(
            n_samples=n,
            n_features=features,
            n_informative=min(informative, features),
            n_redundant=0,
            n_classes=classes,
            class_sep=separation,
            flip_y=label_noise,
            random_state=seed,
        )
    except ValueError as error:
        raise InvalidInput(
            f"expected sizes that scikit-learn's make_classification accepts, got: {error}"
        ) from error
    return _records(x, y, classes)


def _check(n: int, features: int, classes: int) -> None:
    if n < 1 or features < 1 or classes < 2:
        raise InvalidInput(
            f"expected n >= 1, features >= 1 and classes >= 2, got {n}, {features} and {classes}"
        )


def _records(x: NDArray[np.float64], y: NDArray[np.int64], classes: int) -> Records:
    return Records.from_arrays(
        x.astype(np.float32),
        y,
        columns=tuple(f"x{j}" for j in range(x.shape[1])),
        classes=tuple(str(k) for k in range(classes)),
    )
