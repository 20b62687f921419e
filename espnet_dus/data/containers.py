"""Checks by an audio file's own structure that it is whole.

libsndfile silently returns the part of a cut or joined file that it finds. Here a file
is walked by its container's rules: what is missing or unaccounted for is an error, and
a length that a recorder or a pipe left open is filled in.
"""

import io
import struct
from typing import Iterator, List, NamedTuple, Optional, Tuple

import soundfile

# libsndfile's names of the formats that it or `patches` checks to be whole. In others,
# such as PVF or VOC, a cut file looks like a whole one.
FORMATS = frozenset("WAV WAVEX RF64 W64 AIFF AU CAF NIST FLAC OGG MP3 SVX HTK".split())
SLACK = 512  # bytes after the samples: padding, or a tag of some player
OPEN_SIZE = 0x7FFF0000  # writers to a pipe put numbers from here on for "unknown"

Patch = Tuple[int, bytes]


class AudioError(ValueError):
    """Audio that cannot be used."""


def patches(data) -> List[Patch]:
    """Check that a file is whole.

    Args:
        data: Its bytes (bytes, bytearray or mmap).

    Returns:
        Offsets and bytes to overwrite before libsndfile reads the file: lengths that
        its writer left open.

    Raises:
        AudioError: The file is empty or truncated, or holds several recordings of
            which libsndfile would read the first.
    """
    if not len(data):
        raise AudioError("is empty (0 bytes)")
    try:
        return _check(data)
    except (IndexError, struct.error):
        return []  # cut within its header, which libsndfile says


def _check(data) -> List[Patch]:
    head = bytes(data[:16])
    if head[:4] in LAYOUTS:
        return _check_chunks(data, LAYOUTS[head[:4]])
    if head[:4] in (b".snd", b"dns."):
        return _check_au(data)
    if head[:7] == b"NIST_1A":
        return _check_nist(data)
    start = _behind_id3(data, 0)
    if bytes(data[start : start + 4]) == b"fLaC":
        return _check_flac(data, start)
    if head[:4] == b"OggS":
        return _check_ogg(data)
    if start or (head[:1] == b"\xff" and head[1] >= 0xE0):
        return _check_mpeg(data, start)
    return []


def _missing(count: int, what: str = "bytes") -> AudioError:
    return AudioError(
        f"is truncated: {count} {what} that its header promises are missing"
    )


def _joined() -> AudioError:
    return AudioError(
        "holds several recordings, joined as files; only the first would be read: "
        "split it, or convert it to one wav or flac file"
    )


def _unaccounted(count: int) -> AudioError:
    return AudioError(
        f"holds {count} bytes that its header does not count, so it was joined or "
        "never completed: convert it to wav or flac"
    )


def _is_open(length: int, rest: int) -> bool:
    """Return whether a writer left a length open; a longer one than the rest fails."""
    if length <= 0 or (length > rest and length >= OPEN_SIZE):
        return True
    if length > rest:
        raise _missing(length - rest)
    return False


# -- containers of chunks --------------------------------------------------------------


class _Layout(NamedTuple):
    """How a container of chunks is written.

    Attributes:
        start: Offset of the first chunk.
        name: Bytes of a chunk's name; its size follows.
        size: Format of the size, for `struct`.
        included: Bytes of its header that a chunk's size includes.
        align: Chunks start at multiples of this.
    """

    start: int
    name: int
    size: str
    included: int
    align: int


LAYOUTS = {
    b"RIFF": _Layout(12, 4, "<I", 0, 2),
    b"RIFX": _Layout(12, 4, ">I", 0, 2),
    b"RF64": _Layout(12, 4, "<I", 0, 2),
    b"FORM": _Layout(12, 4, ">I", 0, 2),  # AIFF, SVX
    b"caff": _Layout(8, 4, ">q", 0, 1),
    b"riff": _Layout(40, 16, "<Q", 24, 8),  # W64
}


class _Chunk(NamedTuple):
    name: bytes
    size_at: int  # where its size is written
    body: int  # offset of its content
    length: int  # of its content, as its header has it


def _chunks(data, layout: _Layout, position: int) -> Iterator[_Chunk]:
    width = struct.calcsize(layout.size)
    while (body := position + layout.name + width) <= len(data):
        (size,) = struct.unpack(layout.size, data[body - width : body])
        name = bytes(data[position : position + 4])
        length = size - layout.included
        yield _Chunk(name, body - width, body, length)
        if length < 0:
            return
        position = body + length + -(body + length) % layout.align


def _check_chunks(data, layout: _Layout) -> List[Patch]:
    long_size = None  # of RF64: the chunk's own field has 32 bits
    for name, size_at, body, length in _chunks(data, layout, layout.start):
        if name == b"ds64":
            long_size = body + 8
        if name not in (b"data", b"SSND", b"BODY"):
            continue
        form = layout.size
        if long_size is not None and length == 0xFFFFFFFF:
            size_at, form = long_size, "<Q"
            (length,) = struct.unpack(form, data[size_at : size_at + 8])
        rest = len(data) - body
        is_open = _is_open(length, rest)
        end = body if is_open else body + length
        # the same type and first chunk once more
        if data.find(data[layout.start - 4 : layout.start + 4], end) >= 0:
            raise _joined()
        if _only_chunks(data, layout, end):
            return []
        if not is_open:
            raise _unaccounted(rest - length)
        return [(size_at, struct.pack(form, rest + layout.included))]
    return []


def _only_chunks(data, layout: _Layout, end: int) -> bool:
    """Return whether well-formed chunks, or nothing much, follow the samples."""
    end += -end % layout.align
    for chunk in _chunks(data, layout, end):
        if not chunk.name.isascii() or not 0 <= chunk.length <= len(data) - chunk.body:
            break
        end = chunk.body + chunk.length
    return len(data) - end <= SLACK


def _check_au(data) -> List[Patch]:
    order = ">" if data[:1] == b"." else "<"
    start, length = struct.unpack(f"{order}II", data[4:12])
    rest = len(data) - start
    is_open = _is_open(length, rest)
    # its signature, then the same encoding, rate and channels
    again = data.find(data[:4], start if is_open else start + length)
    if again >= 0 and data[again + 12 : again + 24] == data[12:24]:
        raise _joined()
    if not is_open and rest - length > SLACK:
        raise _unaccounted(rest - length)
    return [(8, struct.pack(f"{order}I", min(rest, 0xFFFFFFFF)))] if is_open else []


def _check_nist(data) -> List[Patch]:
    lines = bytes(data[:1024]).decode("latin-1").splitlines()
    fields = {line.split()[0]: line.split()[-1] for line in lines if line.strip()}
    if data.find(b"NIST_1A\n", 8) >= 0:
        raise _joined()
    try:
        promised = int(lines[1]) + (
            int(fields["sample_count"])
            * int(fields.get("channel_count", "1"))
            * int(fields["sample_n_bytes"])
        )
        is_open = int(fields["sample_count"]) <= 0
    except (IndexError, KeyError, ValueError):
        return []  # an odd header: libsndfile reads to the end of the file
    if is_open or fields.get("sample_coding", "pcm") not in ("pcm", "ulaw", "alaw"):
        return []
    if promised > len(data):
        raise _missing(promised - len(data))
    if len(data) - promised > SLACK:
        raise _unaccounted(len(data) - promised)
    return []


# -- FLAC ------------------------------------------------------------------------------


def _check_flac(data, start: int) -> List[Patch]:
    if data.find(b"fLaC\x00\x00\x00\x22", start + 4) >= 0:  # with its STREAMINFO
        raise _joined()
    length = start + 21  # offset of the 36 bits that count the samples
    if int.from_bytes(data[length : length + 5], "big") & ((1 << 36) - 1):
        return []  # decoding counts the samples
    total = 0
    try:
        with _Stream(io.BytesIO(data)) as audio:
            while block := len(audio.read(1 << 16, dtype="int16")):
                total += block
    except soundfile.LibsndfileError as error:
        raise AudioError(
            "is truncated or damaged: it does not say how long it is, as if written "
            "to a pipe, and does not end with a whole frame"
        ) from error
    high = data[length] & 0xF0
    return [(length, (total | high << 32).to_bytes(5, "big"))]


class _Stream(soundfile.SoundFile):
    """A file of unknown length: soundfile seeks after reading, beyond its end."""

    def seekable(self) -> bool:
        """Return False, so that it does not seek."""
        return False


# -- Ogg -------------------------------------------------------------------------------


def _check_ogg(data) -> List[Patch]:
    position, started, last_page = 0, False, {}
    while position + 27 <= len(data) and data[position : position + 4] == b"OggS":
        kind = data[position + 5]
        stream, page = struct.unpack("<II", data[position + 14 : position + 22])
        if kind & 2:  # a stream begins
            if started:
                raise _joined()
        else:
            started = True
            if page != last_page.get(stream, (page - 1, 0))[0] + 1:
                raise AudioError(f"is damaged: pages before its page {page} are lost")
        last_page[stream] = page, kind
        body = position + 27 + data[position + 26]
        position = body + sum(data[position + 27 : body])
    if position > len(data):
        raise _missing(position - len(data))
    if len(data) - position > SLACK:
        raise _unaccounted(len(data) - position)
    if not all(kind & 4 for _, kind in last_page.values()):
        raise AudioError("is truncated: the mark of its end is missing")
    return []


# -- MPEG audio ------------------------------------------------------------------------

# kbit/s by bit rate index, for MPEG 1 layers I to III, then MPEG 2 layers I and II/III
KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _check_mpeg(data, position: int) -> List[Patch]:
    frames, promised, end = 0, None, len(data)
    if data[end - 128 : end - 125] == b"TAG":  # ID3v1
        end -= 128
    while position < end:
        length = _mpeg_frame_bytes(data[position : position + 4])
        if length is None:
            if frames and _behind_id3(data, position) > position:
                raise _joined()
            break
        if position + length > end:
            raise _missing(position + length - end)
        head = bytes(data[position : position + 64])
        tag = max(head.find(b"Xing"), head.find(b"Info"))
        if tag >= 0:  # a frame without sound that counts the others
            if frames or promised is not None:
                raise _joined()
            has_count = head[tag + 7] & 1
            count = int.from_bytes(head[tag + 8 : tag + 12], "big")
            promised = count if has_count else None
        else:
            frames += 1
        position += length
    if frames == 0:
        return []  # libsndfile says what it is
    if promised is not None and frames < promised:
        raise _missing(promised - frames, "MPEG frames")
    if end - position > SLACK and data[position : position + 8] != b"APETAGEX":
        raise AudioError(f"is damaged: no MPEG frame starts at byte {position}")
    if promised is not None and frames > promised:
        raise _unaccounted(length * (frames - promised))
    return []


def _mpeg_frame_bytes(header: bytes) -> Optional[int]:
    """Return the length of the MPEG audio frame of a header; None: not a header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    version = {0: 2.5, 2: 2, 3: 1}.get(header[1] >> 3 & 3)
    layer = 4 - (header[1] >> 1 & 3)
    index, rate_index = header[2] >> 4, header[2] >> 2 & 3
    if version is None or layer == 4 or not 0 < index < 15 or rate_index == 3:
        return None
    divisor = {1: 1, 2: 2, 2.5: 4}[version]
    rate = (44100, 48000, 32000)[rate_index] // divisor
    bits = KBITS[min(int(version), 2), layer][index - 1] * 1000
    padding = header[2] >> 1 & 1
    if layer == 1:
        return (12 * bits // rate + padding) * 4
    return (72 if layer == 3 and version != 1 else 144) * bits // rate + padding


def _behind_id3(data, position: int) -> int:
    """Return the offset after an ID3v2 tag, or `position` if there is none."""
    tag = bytes(data[position : position + 10])
    if len(tag) < 10 or tag[:3] != b"ID3":
        return position
    size = 0
    for byte in tag[6:10]:
        size = size << 7 | byte & 0x7F
    return position + 10 + size
