"""Audio in Kaldi archives: an entry of `wav.scp` such as `dump/data_wav.ark:17`.

Kaldi's wav-copy writes them, and ESPnet's stage 3 with `--audio_format wav.ark` or
`flac.ark`. Kaldiio reads them too, but also unpickles what it finds at the offset.
"""

import re
import struct
from typing import Optional, Tuple

from espnet_dus.data.containers import AudioError


def split_location(wav: str) -> Tuple[str, Optional[int]]:
    """Return the file of an entry of `wav.scp`, and the offset if it is an archive."""
    found = re.fullmatch(r"(.+\.ark):(\d+)", wav)
    return (found[1], int(found[2])) if found else (wav, None)


def read_entry(ark: str, offset: int) -> bytes:
    """Return an audio file that an archive holds.

    Args:
        ark: The archive.
        offset: Where the audio begins, behind its utterance id.

    Raises:
        AudioError: There is no audio.
        OSError: The archive cannot be read.
    """
    with open(ark, "rb") as file:
        file.seek(offset)
        head = file.read(8)
        if head[:4] == b"RIFF" and len(head) == 8:
            return head + file.read(*struct.unpack("<I", head[4:]))
        if head[:5] == b"AUDIO" and len(head) > 5:  # then the length of the length
            file.seek(offset + 6)
            return file.read(int.from_bytes(file.read(head[5]), "little"))
    raise AudioError(
        "holds no audio there; expected the offset of audio that Kaldi or ESPnet wrote "
        "(wav.ark, flac.ark)"
    )
