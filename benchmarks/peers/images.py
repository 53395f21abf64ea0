"""Images drawn by formulas: five shapes with one of two textures each, turned, lit and half hidden in clutter and noise."""

import numpy as np

SIZE = 64
SHAPES = ("disk", "square", "triangle", "ring", "cross")


def shape_images(count: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [count, 3, 64, 64] about zero, and their classes, int64 [count]: shape + 5 x texture.

    Args:
        noise: how strong clutter and noise are at most; every image has its own strength.
    """
    random = np.random.default_rng(seed)
    classes = random.integers(0, 2 * len(SHAPES), count)
    images = np.stack([_image(int(label), random, noise) for label in classes])
    return images.astype(np.float32), classes.astype(np.int64)


def _image(label: int, random: np.random.Generator, noise: float) -> np.ndarray:
    x, y = _turned_grid(random)
    mask = _inside(SHAPES[label % len(SHAPES)], x, y)
    texture = _texture(label // len(SHAPES), random)
    colour, ground = random.normal(0, 0.5, (2, 3, 1, 1))
    strength = noise * random.uniform(0.3, 1.0)
    image = np.where(mask, colour + 0.6 * texture, ground)
    return image + strength * (_clutter(random) + 0.8 * random.normal(size=(3, SIZE, SIZE)))


def _turned_grid(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixels about a shape's centre, in its own radius and turned by a random angle."""
    angle, radius = random.uniform(0, 2 * np.pi), random.uniform(0.35, 0.75)
    middle = random.uniform(-0.3, 0.3, 2)
    row, column = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE), indexing="ij")
    right, down = (column - middle[0]) / radius, (row - middle[1]) / radius
    return right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which pixels a shape covers."""
    distance, edge = np.hypot(x, y), np.maximum(abs(x), abs(y))
    return {
        "disk": distance < 0.9,
        "square": edge < 0.8,
        "triangle": (y > -0.6) & (y + 1.8 * abs(x) < 1.0),
        "ring": (distance < 1.0) & (distance > 0.55),
        "cross": (edge < 1.0) & (np.minimum(abs(x), abs(y)) < 0.33),
    }[shape]


def _texture(kind: int, random: np.random.Generator) -> np.ndarray:
    """Stripes (0) or a chequered pattern (1) of values -1 and 1, at a random angle and pitch."""
    angle, pitch, shift = random.uniform(0, np.pi), random.uniform(0.6, 1.1), random.uniform(0, 6, 2)
    row, column = np.mgrid[:SIZE, :SIZE] * pitch
    along = np.sin(column * np.cos(angle) + row * np.sin(angle) + shift[0])
    across = np.sin(row * np.cos(angle) - column * np.sin(angle) + shift[1]) if kind else np.ones((SIZE, SIZE))
    return np.sign(along * across)


def _clutter(random: np.random.Generator) -> np.ndarray:
    """Blotches of eight pixels, [3, 64, 64]."""
    return np.kron(random.normal(0, 0.5, (3, 8, 8)), np.ones((8, 8)))
