"""Hostile image files: small files that state a lot, and random changes of sound ones.

Nothing here needs the memory that the files state.
"""

import io
import struct
import zlib

from PIL import Image

# Larger than what is decoded; below the limit at which Pillow refuses an image.
LARGE = 13_300

# PostScript, of which Pillow would let Ghostscript draw the image.
POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    b"0 0 10 10 rectfill showpage\n%%EOF\n"
)


def png(width, height, depth=1, color=0, rows=None):
    """Return a black PNG; after that many `rows` it breaks off, if not None."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = bytes(1 + (width * depth * channels + 7) // 8)
    compressor = zlib.compressobj(9)
    pixels = bytearray()
    count = max(1, 2**20 // len(row))
    rows = height if rows is None else rows
    for top in range(0, rows, count):
        pixels += compressor.compress(row * min(count, rows - top))
    pixels += compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(3)) if color == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", bytes(pixels))
        + chunk(b"IEND", b"")
    )


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    )


def saved(kind, mode="RGB", size=(16, 8), **options):
    """Return a small image in a format of Pillow."""
    file = io.BytesIO()
    Image.new(mode, size, 1).save(file, kind, **options)
    return file.getvalue()


def replaced(content, old, new):
    """Replace the first occurrence of some bytes, which must be there."""
    assert old in content
    return content.replace(old, new, 1)


def jpeg(width, height):
    size = struct.pack(">HH", 8, 16)
    return replaced(
        saved("JPEG"), b"\x08" + size, b"\x08" + struct.pack(">HH", height, width)
    )


def jpeg_of_scans(width, height, count, before=b""):
    """Return a progressive JPEG whose last scan is there many times, `before` each."""
    content = saved("JPEG", size=(width, height), progressive=True)
    at = content.rindex(b"\xff\xda")
    return content[:at] + (before + content[at:-2]) * count + content[-2:]


def gif(width, height):
    return saved("GIF").replace(
        struct.pack("<HH", 16, 8), struct.pack("<HH", width, height)
    )


def bmp(width, height):
    size = struct.pack("<ii", 16, 8)
    return replaced(saved("BMP"), size, struct.pack("<ii", width, height))


def tga(width, height):
    size = struct.pack("<HH", 16, 8)
    return replaced(saved("TGA"), size, struct.pack("<HH", width, height))


def webp(width, height):
    """Return an extended WebP file (VP8X) with a canvas of this size."""
    content = saved("WEBP", "RGBA", lossless=True)[12:]
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    content = b"VP8X" + struct.pack("<II", 10, 0x10) + canvas + content
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content


def webp_lossless(width, height):
    """Return a simple lossless WebP file (VP8L) of this size."""
    content = bytearray(saved("WEBP", lossless=True))
    at = content.index(b"VP8L") + 9
    bits = int.from_bytes(content[at : at + 4], "little") & ~0xFFFFFFF
    bits |= (width - 1) | (height - 1) << 14
    content[at : at + 4] = bits.to_bytes(4, "little")
    return bytes(content)


def webp_lossy(width, height):
    """Return a simple lossy WebP file (VP8) of this size."""
    size = struct.pack("<HH", 16, 8)
    return replaced(
        saved("WEBP"), b"*" + size, b"*" + struct.pack("<HH", width, height)
    )


def jpeg2000(width, height):
    old, new = struct.pack(">II", 8, 16), struct.pack(">II", height, width)
    content = replaced(saved("JPEG2000"), old, new)  # the header of the file
    old, new = struct.pack(">II", 16, 8), struct.pack(">II", width, height)
    return content.replace(old, new)  # that of the image, and its tile


def avif(width, height):
    old, new = struct.pack(">II", 16, 8), struct.pack(">II", width, height)
    return replaced(saved("AVIF"), b"ispe\0\0\0\0" + old, b"ispe\0\0\0\0" + new)


def ppm(width, height):
    return f"P6 {width} {height} 255\n".encode() + bytes(99)


def tiff(width, height, tile=None, compression=8):
    """Return a gray TIFF with one strip, or with tiles of a size, of a few bytes."""
    pixels = zlib.compress(bytes(64))
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1}
    if tile:
        tags |= {322: tile[0], 323: tile[1], 324: 8, 325: len(pixels)}
    else:
        tags |= {273: 8, 278: height, 279: len(pixels)}
    pixels += bytes(len(pixels) % 2)
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())
    )
    offset = struct.pack("<I", 8 + len(pixels))
    return b"II*\0" + offset + pixels + directory + bytes(4)


_WITH_SIZE = (png, jpeg, gif, bmp, tga, webp, webp_lossless, webp_lossy, ppm, tiff)


def too_large():
    """Return `{name of a file: content}` of images that are too large to be decoded."""
    files = {
        "deep.png": png(LARGE, LARGE, 16, 6, rows=1),
        "palette.png": png(LARGE, LARGE, 1, 3),
        "wide.png": png(100_000_000, 1),
        "high.png": png(1, 100_000_000, rows=99),
        "narrow.png": png(1, 300_000),
        "most.png": png(2**31 - 1, 2**31 - 1, rows=0),
        "tiles.tiff": tiff(16, 8, tile=(60_000, 60_000)),
        "most.tiff": tiff(2**31 - 1, 2**31 - 1),
        "most.ppm": ppm(2**31 - 1, 2**31 - 1),
        "most.bmp": bmp(2**31 - 1, 2**31 - 1),
    }
    for make in _WITH_SIZE:
        files[f"{make.__name__}.{make.__name__.partition('_')[0]}"] = make(LARGE, LARGE)
    files["jpeg2000.jp2"] = jpeg2000(LARGE, LARGE)
    return files


def not_opened():
    """Return `{name of a file: content}` of formats that are not opened."""
    return {
        "drawn.eps": POSTSCRIPT,
        "drawn.png": POSTSCRIPT,
        "binary.jpg": b"\xc5\xd0\xd3\xc6"
        + struct.pack("<II", 30, len(POSTSCRIPT))
        + bytes(18)
        + POSTSCRIPT,
        "icon.png": saved("ICO", size=(16, 16)),
        "sheet.png": saved("PCX"),
    }


def sound():
    """Return `{name of a file: content}` of small images that can be read."""
    kinds = {"BMP": "bmp", "GIF": "gif", "JPEG": "jpg", "JPEG2000": "jp2", "PNG": "png"}
    kinds |= {"PPM": "ppm", "TGA": "tga", "TIFF": "tiff", "WEBP": "webp"}
    files = {f"rgb.{ending}": saved(kind) for kind, ending in kinds.items()}
    files |= {
        f"{mode}.png": saved("PNG", mode)
        for mode in ("1", "L", "LA", "P", "RGBA", "I;16")
    }
    files |= {
        f"{mode}.tiff": saved("TIFF", mode) for mode in ("CMYK", "L", "I;16", "RGBA")
    }
    files["lzw.tiff"] = saved("TIFF", compression="tiff_lzw")
    files["animated.gif"] = saved(
        "GIF", save_all=True, append_images=[Image.new("RGB", (16, 8))]
    )
    files["progressive.jpg"] = saved("JPEG", progressive=True)
    return files


# Numbers at the limits of what fields of files can hold.
_NUMBERS = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
]


def changed(content, rng):
    """Change the content of a file at random; `rng` is a `random.Random`."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(content))
        kind = rng.randrange(5)
        if kind == 0:
            content[at] = rng.randrange(256)
        elif kind == 1:
            width, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
            number = rng.choice(_NUMBERS) % 256**width
            content[at : at + width] = number.to_bytes(width, order)
        elif kind == 2:
            del content[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            content[at:at] = content[at : at + rng.randrange(1, 99)]
        else:
            del content[max(1, at) :]
        content = content or bytearray(b"\0")
    return bytes(content)
