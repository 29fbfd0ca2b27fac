"""Letters and signs drawn with the faces of DejaVu: many classes, so that few channels are not enough for them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metaprune_datasets.readers import ArrayDict, tar_member

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijkmnqrtΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπστφχψωБГДЖЗИЛПФЦЧШЩЪЫЭЮЯԱԲԳԴԵԶԷԸԹԺԻԼԽԾԿՀՁՂՃՄ"
"""107 letters of four scripts, which all faces hold."""

SIGNS = LETTERS + (
    "$+12456789<=>^`puy|~¢£¤¥¦©¬®°±ÆÐ×ØÞßæð÷øþđĦħĸŁłŊŒœƀƁƃƄƆƇƈƊƋƍƎƏƑƒƔƕƖƗƘƚƜƝƞƢƣƤƦƧƫƭ"
    "ƱƲƳƴƶƷƸǀǁǂǃǝȤȥȸȹɌɍɐɑɒɖɗɘɜɟɠɥɦɧɨɪɭɰɱɲɳɸɹɻɽɾɿʁʂʃʅʇʈʉʊʍʎʐʞʟʠʣʦʧʩʪʫʮʯ͵ͷͻͼνρςυϘϙϼЂЉЊЋ"
    "ЏКЬбцюђћџѢѣҐґҘҙҤҪҫүҺӇӈՅՆՇՈՉՊՋՌՎՏՐՒՔՖբգդեէըթիխծկձճմյնշչջռվտփքֆაბგდევზთიკლმნოპჟრსტ"
    "უფქღყშჩცძწჭხჯჰჱჲჳჴჵჶჷჸჹჺ€₱₸₹₺₽←↑→↓↕↖↗↘↙⇄⇅⇆⇇⇈⇉⇊∀∃∇−∕∗⋄"
)
"""400: and more letters, digits, arrows and signs, of which no two are much alike when drawn to one size."""
SIZE = 28
TRAIN_EACH, TEST_EACH = 60, 25  # images of a class
_STYLES = {
    "Sans": ("", "-Bold", "-Oblique", "-BoldOblique", "-ExtraLight"),
    "SansCondensed": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "SansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "Serif": ("", "-Bold", "-Italic", "-BoldItalic"),
    "SerifCondensed": ("", "-Bold", "-Italic", "-BoldItalic"),
}
FACES = tuple(f"DejaVu{family}{style}" for family, styles in _STYLES.items() for style in styles)
TEST_FACES = ("DejaVuSansCondensed-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSerifCondensed-Italic")


def glyphs(tarball: Path, characters: str) -> ArrayDict:
    """Draw `characters`, a class each, with the faces in npm's `dejavu-fonts-ttf`; the same images every time.

    Groups are the faces, so that no face is on two sides of a split; three faces are in the test part alone.
    """
    with tarfile.open(tarball) as archive:
        files = {face: tar_member(archive, f"package/ttf/{face}.ttf") for face in FACES}
    fonts = {face: ImageFont.truetype(io.BytesIO(content), 3 * SIZE) for face, content in files.items()}
    draw, result = np.random.default_rng(0), {}
    for part, each in (("train", TRAIN_EACH), ("test", TEST_EACH)):
        faces = [face for face in FACES if (face in TEST_FACES) == (part == "test")]
        chosen = draw.integers(len(faces), size=(len(characters), each))
        images = [drawn(c, fonts[faces[f]], draw) for c, row in zip(characters, chosen, strict=True) for f in row]
        result[f"{part}_images"] = np.stack(images)
        result[f"{part}_labels"] = np.repeat(np.arange(len(characters)), each)
        if part == "train":
            result["groups"] = np.array(faces)[chosen.ravel()]
    return {**result, "classes": np.array(list(characters))}


def drawn(character: str, font: ImageFont.FreeTypeFont, draw: np.random.Generator) -> np.ndarray:
    """Draw a character in a font of size 3 * SIZE: uint8 [SIZE, SIZE], white on black.

    It is turned, sheared, scaled, moved and faded, with noise.
    """
    big = Image.new("L", (4 * SIZE, 4 * SIZE))
    ImageDraw.Draw(big).text((2 * SIZE, 2 * SIZE), character, 255, font, anchor="mm")
    angle, shear, scale = draw.uniform(-0.35, 0.35), draw.uniform(-0.3, 0.3), draw.uniform(0.8, 1.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.array([[1.0, shear], [0.0, 1.0]]) * scale
    shift = 2 * SIZE * (1 - turn.sum(axis=1)) + draw.uniform(-8, 8, 2)
    matrix = (*turn[0], shift[0], *turn[1], shift[1])
    moved = big.transform(big.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    small = np.asarray(moved.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64)
    noisy = draw.uniform(0.4, 1.0) * small + draw.normal(0, 25, small.shape)
    return noisy.clip(0, 255).astype(np.uint8)
