"""Stage 3: dump audio, the frontend's features or speech tokens, at one rate.

The layout is that of ESPnet's stage 3. A second run processes only missing or
changed utterances, see `journal`; `dump` has the work of a process.
"""

import functools
import logging
from contextlib import closing
from dataclasses import replace
from itertools import batched
from pathlib import Path
from typing import Optional, Union

from espnet_dus.data.data_dir import (
    DataDir,
    explain_write_errors,
    first_few,
    parse_channel,
)
from espnet_dus.data.dump import FBANK_CONF, Dump, Faults, dump_block
from espnet_dus.data.journal import (
    Done,
    append_journal,
    of_run_lengths,
    read_journal,
    still_good,
    tidy,
)
from espnet_dus.data.parallel import run_blocks
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.data.waveform import Channel, parse_fs
from espnet_dus.io import locked, progress, write_scp

BLOCK_SIZE = 1000  # utterances per ark; an interruption loses at most one block
FEATS_TYPES = ("raw", "fbank", "tokens")


def format_data(
    data_dir: Union[str, Path],
    out_dir: Union[str, Path],
    feats_type: str = "raw",
    fs: Union[int, str] = 16000,
    audio_format: str = "flac",
    nj: int = 1,
    max_bad_utterances: int = 0,
    allow_pipes: bool = False,
    channel: Channel = None,
    speech_tokenizer: Optional[Union[str, Path]] = None,
) -> None:
    """Dump a data directory.

    Segments are cut, speeds applied, rates converted. `raw` writes 16-bit audio files
    and wav.scp; `fbank` writes log-mel features (frames x 80, float32) and feats.scp,
    and no audio. `tokens` writes speech tokens (int32 vectors of frames x streams,
    frame by frame) and feats.scp, and run_lengths.scp where repeats are removed. All
    write utt2num_samples. Faulty audio is listed in full in `out_dir`/bad_utterances.

    Args:
        data_dir: The Kaldi data directory.
        out_dir: The dump directory.
        feats_type: `raw`: audio files; `fbank`: the frontend's log-mel features as
            Kaldi ark; `tokens`: speech tokens as Kaldi ark.
        fs: Sampling rate in Hz, such as 16000 or 16k.
        audio_format: `flac` or `wav`, for `raw`.
        nj: Number of processes.
        max_bad_utterances: Number of utterances with faulty audio that may be left out
            with a warning.
        allow_pipes: Whether to run the commands in wav.scp ('... |'). They run with
            your permissions: only for data that you trust.
        channel: The channel to take of audio with several: an index from 0, or `mean`
            for the mean of all; None: several channels are a fault.
        speech_tokenizer: A tokenizer directory, for `tokens`.

    Raises:
        ValueError: The data directory is not valid, an option is out of range, or too
            many utterances are faulty.
        OSError: A file cannot be written.
    """
    if feats_type not in FEATS_TYPES or audio_format not in ("flac", "wav"):
        raise ValueError(
            f"expected feats_type {', '.join(FEATS_TYPES)} and audio_format flac or "
            f"wav, got {feats_type} and {audio_format}"
        )
    if (feats_type == "tokens") != (speech_tokenizer is not None):
        raise ValueError("feats_type tokens and a speech_tokenizer go together")
    fs, channel = parse_fs(fs), parse_channel(channel)
    if nj < 1:
        raise ValueError(f"expected a number of processes (nj) from 1 on, got {nj}")
    out_dir = Path(out_dir)
    if Path(data_dir).resolve() == out_dir.resolve():
        raise ValueError(f"{out_dir}: cannot be both the input and the output")
    data = DataDir.read(data_dir)
    data.validate(empty_text=True)
    dump = Dump(out_dir, feats_type, fs, audio_format, allow_pipes, channel)
    if speech_tokenizer is not None:
        from espnet_dus.data.speech_tokens.devices import num_jobs  # torch

        info = TokenizerInfo.read(speech_tokenizer)
        if info.sampling_rate != fs:
            raise ValueError(
                f"the speech tokenizer {info.name} takes audio of {info.sampling_rate} "
                f"Hz, not {fs} (--fs)"
            )
        dump = replace(dump, tokenizer_dir=Path(speech_tokenizer), tokenizer=info)
        nj = num_jobs(nj)
    with locked(out_dir):
        _dump(data, dump, nj, max_bad_utterances)


def _dump(data: DataDir, dump: Dump, nj: int, max_bad_utterances: int) -> None:
    """Dump what an earlier run has not."""
    out_dir, utterances = dump.out_dir, data.utterances()
    digests = dump.digests(utterances)
    journal = out_dir / ".done"
    recorded = read_journal(journal)
    done = still_good(recorded, digests, out_dir)
    pending = [utterance for utterance in utterances if utterance.id not in done]
    logging.info("%s: %d to do, %d done before", out_dir, len(pending), len(done))
    faults: Faults = {}
    if pending:
        # As long as `text` exists, the directory is whole.
        (out_dir / "text").unlink(missing_ok=True)
        for stray in (out_dir / "data").rglob(".*.tmp.*"):  # of a killed run
            stray.unlink()
        first_ark = 1 + max((r.ark_number for r in recorded.values()), default=0)
        # Neighbours stay together, and no process idles for long.
        size = min(BLOCK_SIZE, -(-len(pending) // (4 * nj)))
        blocks = enumerate(batched(pending, size), first_ark)
        work = functools.partial(dump_block, dump=dump)
        # Closed, so that an error here also ends the processes.
        with closing(run_blocks(work, blocks, nj)) as finished:
            with progress(what=str(out_dir), total=len(pending)) as bar:
                for new, bad in finished:
                    for key in new:
                        new[key] = new[key]._replace(digest=digests[key])
                    append_journal(journal, new)
                    done.update(new)
                    faults.update(bad)
                    bar.set_postfix_str(f"{len(faults)} bad", refresh=False)
                    bar.update(len(new) + len(bad))
    _report_faults(faults, out_dir, len(utterances), max_bad_utterances)
    _write_tables(data, done, dump)
    tidy(journal, recorded, done, out_dir)


def _write_tables(data: DataDir, done: Done, dump: Dump) -> None:
    kept = data.subset(done).tables
    names = ("text", "prompt", "utt2spk")
    tables = {name: kept[name] for name in names if name in kept}
    tables["utt2num_samples"] = {key: str(done[key].num_samples) for key in done}
    attributes = {"feats_type": dump.feats_type, "fs": str(dump.fs)}
    if dump.feats_type == "raw":
        attributes["audio_format"] = dump.audio_format
        index = "wav.scp"
    else:
        tables["utt2num_frames"] = {key: str(done[key].num_frames) for key in done}
        index = "feats.scp"
    if dump.feats_type == "fbank":
        attributes["feats_dim"] = str(FBANK_CONF["n_mels"])
    if dump.tokenizer is not None:
        attributes["tokenizer"] = " ".join(dump.tokenizer.identity.values())
        if dump.tokenizer.remove_repeats:
            tables["run_lengths.scp"] = {
                key: f"{dump.out_dir / of_run_lengths(done[key].location)}"
                for key in done
            }
    tables[index] = {key: f"{dump.out_dir / done[key].location}" for key in done}
    DataDir(dump.out_dir, tables, attributes).write(dump.out_dir)
    seconds = sum(record.num_samples for record in done.values()) / dump.fs
    frames = sum(record.num_frames for record in done.values())
    logging.info(
        "%s: %d utterances, %.2f h%s",
        dump.out_dir,
        len(done),
        seconds / 3600,
        f", {frames} frames" if frames else "",
    )


def _report_faults(faults: Faults, out_dir: Path, total: int, allowed: int) -> None:
    report = out_dir / "bad_utterances"
    if not faults:
        report.unlink(missing_ok=True)
        return
    with explain_write_errors(report):
        write_scp(report, faults)
    message = first_few(
        f"audio that cannot be used (all in {report})", [*faults.values()]
    )
    if len(faults) == total:
        raise ValueError(f"{message}\nno utterance is left")
    if len(faults) > allowed:
        raise ValueError(
            f"{message}\nfix these, or leave them out with --max_bad_utterances "
            f"{len(faults)}; finished utterances are kept"
        )
    logging.warning("left out: %s", message)
