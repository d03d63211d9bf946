"""How much of what names a person is taken out, on generated strings and faces: recall, and harm to texts without any.

python -m benchmarks.anonymization [--report FILE]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime import anonymize
from runtime.anonymize.images import faces

Picture = NDArray[np.uint8]

_FIRST = "Anna James Wei Fatima Lukas Priya Diego Amara Sofia Yuki Omar Elena Peter Chloe Kwame Ingrid".split()  # noqa: SIM905 - words read better in a line
_LAST = "Miller Okafor Tanaka Rossi Novak Garcia Johansson Kaur Dubois Haddad Brown Petrov".split()  # noqa: SIM905 - words read better in a line
_STREETS = "Main Oak Lincoln Maple Elm Washington Church Park".split()  # noqa: SIM905 - words read better in a line
_CARRIERS = {
    "mail address": ["mail the photo to {} please", "{} wants the red block", "contact {}, then push it left"],
    "telephone number": ["call {} when the tray is full", "ring {} before you open the drawer"],
    "payment card": ["the card {} lies on the desk, leave it", "type in {} at the terminal"],
    "social security number": ["file the form {} in the tray", "the badge says {}"],
    "IP address": ["the camera at {} is dirty, wipe it", "reset {} with the stick"],
    "postal address": ["bring the parcel to {}", "the label must say {}"],
    "name after a title": ["hand the cup to {}", "follow {} to the door"],
    "name, introduced": ["my name is {}, bring me the cup", "this is {}, pick up the block"],
    "name, addressed": ["give the cup to {}", "hand the bowl to {} and wait"],
    "name, owning": ["pick up {}'s cup", "move {}'s chair to the wall"],
    "name, alone": ["{} needs the screwdriver", "put it where {} sits"],
}
_PLAIN = [
    "pick up the red block", "push the blue block left", "open the drawer slowly", "hand me the Phillips screwdriver",
    "Place the cup on tray 14", "move 20 cm to the left", "stack blocks 1 to 12", "pour 250 ml into the bowl",
    "Pick up the LEGO brick", "go to station B7 and wait", "fold the towel twice", "wipe the table with the sponge",
    "set the oven to 180 degrees", "sort parts 1001, 1002 and 1003", "bring the box to dock 3", "stop at the Coke can",
]  # fmt: skip


def secret(kind: str, rng: random.Random) -> str:
    first, last = rng.choice(_FIRST), rng.choice(_LAST)

    def digits(count: int) -> str:
        return "".join(rng.choice("0123456789") for _ in range(count))

    made: dict[str, Callable[[], str]] = {
        "mail address": lambda: (
            f"{first}.{last}{digits(2)}@{rng.choice(['example.org', 'mail.example.co.uk'])}".lower()
        ),
        "telephone number": lambda: rng.choice(
            [f"(650) 253-{digits(4)}", f"+44 20 7946 0{digits(3)}", f"650-253-{digits(4)}", f"+49 30 901820{digits(2)}"]
        ),
        "payment card": lambda: _luhn(rng.choice(["4", "51", "37"]) + digits(13)),
        "social security number": lambda: f"{rng.randint(100, 665)}-{digits(2)}-{digits(4)}",
        "IP address": lambda: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
        "postal address": lambda: (
            f"{rng.randint(1, 9999)} {rng.choice(_STREETS)} {rng.choice(['Street', 'Ave', 'Road'])}"
        ),
        "name after a title": lambda: f"{rng.choice(['Dr.', 'Mr', 'Mrs.', 'Prof.'])} {last}",
    }
    return made.get(kind, lambda: rng.choice([first, f"{first} {last}"]))()


def _luhn(start: str) -> str:
    for check in "0123456789":
        numbers = [int(d) for d in start + check]
        doubled = [sum(divmod(2 * d, 10)) for d in numbers[-2::-2]]
        if (sum(numbers[-1::-2]) + sum(doubled)) % 10 == 0:
            return start + check
    raise AssertionError("one digit always fits")


def text_recall(count: int, seed: int) -> Iterator[tuple[str, float, float]]:
    """Kind, and the share that is gone at levels partial and full. Gone: not one of its words is left."""
    rng = random.Random(seed)
    for kind, carriers in _CARRIERS.items():
        gone = {"partial": 0, "full": 0}
        for _ in range(count):
            hidden = secret(kind, rng)
            sentence = rng.choice(carriers).format(hidden)
            for level in gone:
                left = anonymize.text(sentence, "full" if level == "full" else "partial")
                gone[level] += not any(word in left for word in hidden.split() if len(word) > 2)
        yield kind, gone["partial"] / count, gone["full"] / count


def untouched() -> float:
    """Share of instructions without a person that stay as they are at level full."""
    return sum(anonymize.text(plain, "full") == plain for plain in _PLAIN) / len(_PLAIN)


def face(size: int, rng: np.random.Generator) -> Picture:
    """A drawn frontal face, `size` pixels high, on a ground of its own: skin, hair, brows, eyes, nose, mouth."""
    canvas = np.full((4 * size, 4 * size, 3), rng.integers(60, 200, 3), np.uint8)
    skin = np.array(rng.choice([[224, 185, 160], [198, 150, 120], [150, 105, 80], [110, 75, 55]]), float)
    centre, scale = (2 * size, 2 * size), size / 200

    def at(x: float, y: float) -> tuple[int, int]:
        return int(centre[0] + x * scale), int(centre[1] + y * scale)

    def ellipse(x: float, y: float, w: float, h: float, colour: NDArray[np.float64]) -> None:
        axes = (max(1, int(w * scale)), max(1, int(h * scale)))
        cv2.ellipse(canvas, at(x, y), axes, 0, 0, 360, [float(c) for c in colour], -1, cv2.LINE_AA)

    ellipse(0, -12, 88, 112, skin * 0.25)
    ellipse(0, 0, 78, 100, skin)
    for side in (-1, 1):
        ellipse(side * 34, -22, 22, 13, skin * 0.6)
        ellipse(side * 34, -20, 16, 8, np.array([235.0, 235, 235]))
        ellipse(side * 34, -20, 8, 8, np.array([40.0, 30, 25]))
        ellipse(side * 34, -44, 24, 5, skin * 0.3)
        ellipse(side * 45, 25, 20, 16, skin * 1.06)
    ellipse(0, 10, 9, 24, skin * 1.08)
    ellipse(0, 30, 15, 6, skin * 0.65)
    ellipse(0, 60, 28, 9, np.array([150.0, 70, 75]))
    ellipse(0, 58, 26, 2, skin * 0.35)
    blurred = cv2.GaussianBlur(canvas, (0, 0), max(0.5, 2 * scale))
    noisy = blurred.astype(float) * rng.uniform(0.55, 1.15) + rng.normal(0, 4, blurred.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def turned(picture: Picture, degrees: float) -> Picture:
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return np.asarray(cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def face_recall(size: int, degrees: float, count: int, seed: int) -> float:
    """Share of faces whose middle lies in a box that would be covered."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(count):
        picture = turned(face(size, rng), degrees)
        middle = 2 * size
        found += any(x <= middle <= x + w and y <= middle <= y + h for x, y, w, h in faces(picture))
    return found / count


def report(count: int, seed: int) -> str:
    lines = [
        "# What anonymization finds",
        "",
        f"`python -m benchmarks.anonymization`, OpenCV {cv2.__version__}; {count} of each kind, seed {seed}.",
        "",
        "| in a sentence | gone at `partial` | gone at `full` |",
        "|---|---|---|",
        *(f"| {kind} | {partial:.0%} | {full:.0%} |" for kind, partial, full in text_recall(count, seed)),
        "",
        f"Of {len(_PLAIN)} instructions without a person {untouched():.0%} stay as they are at level `full`.",
        "",
        "Drawn frontal faces in four skin tones and changing light, level `full`. Photographs differ; faces that look",
        "aside or are covered are found less often.",
        "",
        "| face height | upright | tilted by 10 degrees | by 25 degrees |",
        "|---|---|---|---|",
    ]
    for size in (24, 40, 64, 120):
        shares = [face_recall(size, degrees, count // 4, seed) for degrees in (0, 10, 25)]
        lines.append(f"| {size} px | {' | '.join(f'{share:.0%}' for share in shares)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    text = report(arguments.count, arguments.seed)
    print(text)
    if arguments.report is not None:
        arguments.report.write_text(text)


if __name__ == "__main__":
    main()
