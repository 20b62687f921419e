"""Scores as ESPnet's stage 13 would write them."""

import re

import numpy as np
import pytest

from espnet_dus.app import cli
from espnet_dus.evaluation.scoring import (
    align,
    bootstrap_interval,
    read_result,
    result_text,
    score_dir,
    tokenize,
)

REF = {
    "fcaw-1": "RUBOUT G M E F THREE NINE",
    "fcaw-2": "YES",
    "mmxg-1": "HELLO WORLD",
}
HYP = {"fcaw-1": "RUBOUT G N E F F THREE", "fcaw-2": "", "mmxg-1": "HELLO WORLD"}
UTT2SPK = {"fcaw-1": "fcaw", "fcaw-2": "fcaw", "mmxg-1": "mmxg"}


def write_table(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{k} {v}".strip() + "\n" for k, v in table.items()))


@pytest.fixture
def decoded(tmp_path):
    write_table(tmp_path / "data/text", REF)
    write_table(tmp_path / "data/utt2spk", UTT2SPK)
    write_table(tmp_path / "decode/test/text", HYP)
    return tmp_path / "data/text", tmp_path / "decode/test"


def test_trn_files_are_those_of_asr_sh(decoded):
    score_dir(*decoded)
    wer = decoded[1] / "score_wer"
    assert (wer / "ref.trn").read_text().splitlines() == [
        "RUBOUT G M E F THREE NINE\t(fcaw-fcaw-1)",
        "YES\t(fcaw-fcaw-2)",
        "HELLO WORLD\t(mmxg-mmxg-1)",
    ]
    assert (wer / "hyp.trn").read_text().splitlines()[1] == "\t(fcaw-fcaw-2)"
    cer = (decoded[1] / "score_cer/ref.trn").read_text().splitlines()
    assert cer[2] == "H E L L O <space> W O R L D\t(mmxg-mmxg-1)"


def test_the_cleaner_of_the_training_is_applied_to_the_references(decoded):
    ref, hyp_dir = decoded
    write_table(ref, {"fcaw-1": "1 2", "fcaw-2": "삼", "mmxg-1": "사 오"})
    write_table(
        hyp_dir / "text", {"fcaw-1": "일 이", "fcaw-2": "삼", "mmxg-1": "사 오"}
    )
    results = score_dir(ref, hyp_dir, cleaner="korean_cleaner")
    assert read_result(results["wer"])["Err"] == read_result(results["cer"])["Err"] == 0
    assert read_result(score_dir(ref, hyp_dir)["wer"])["Sub"] == 40.0  # 2 of 5 words
    with pytest.raises(RuntimeError, match="Not supported: type=german"):
        score_dir(ref, hyp_dir, cleaner="german")


def test_non_linguistic_symbols_are_not_scored(decoded, tmp_path):
    ref, hyp_dir = decoded
    write_table(ref, {"fcaw-1": "one <noise> two", "fcaw-2": "<noise>"})
    write_table(hyp_dir / "text", {"fcaw-1": "one two <cough>", "fcaw-2": ""})
    symbols = tmp_path / "nlsyms.txt"
    symbols.write_text("<noise>\n<cough>\n")
    results = score_dir(ref, hyp_dir, nlsyms_txt=str(symbols))
    wer, cer = (read_result(results[name]) for name in ("wer", "cer"))
    assert (wer["Snt"], wer["Wrd"], wer["Err"]) == (2, 2, 0)
    assert (cer["Wrd"], cer["Err"]) == (7, 0)
    assert read_result(score_dir(ref, hyp_dir)["wer"])["Err"] == 75.0  # 3 of 4 words


def test_characters_are_tokenized_as_in_espnet():
    from espnet2.text.char_tokenizer import CharTokenizer

    assert tokenize("  AB  C ", "cer") == CharTokenizer().text2tokens("AB C")


def test_show_asr_result_reads_our_totals(decoded):
    """What ESPnet's show_asr_result.sh does to the line, in Python."""
    lines = score_dir(*decoded)["wer"].read_text().splitlines()
    (total,) = [line for line in lines if "Avg" in line]
    row = re.sub(r" +", "|", total.replace("Sum/Avg", "").replace("|", " "))
    assert row.strip("|") == "3|10|70.0|10.0|20.0|10.0|40.0|66.7"
    # asr.sh prints the first two lines with either word: head and totals
    shown = [line for line in lines if "Avg" in line or "SPKR" in line][:2]
    assert (
        shown[0].split()
        == "| SPKR | # Snt # Wrd | Corr Sub Del Ins Err S.Err |".split()
    )


def test_speakers_have_a_row_each(decoded):
    text = score_dir(*decoded)["wer"].read_text()
    assert re.search(
        r"\| fcaw +\| +2 +8 \| +62.5 +12.5 +25.0 +12.5 +50.0 +100.0 \|", text
    )
    assert re.search(r"\| mmxg +\| +1 +2 \| +100.0 +0.0 +0.0 +0.0 +0.0 +0.0 \|", text)


def test_alignment_marks_each_kind_of_error(decoded):
    text = score_dir(*decoded)["wer"].read_text()
    start = text.index("id: (fcaw-fcaw-1)")
    assert text[start:].splitlines()[1:5] == [
        "Scores: (#C #S #D #I) 5 1 1 1",
        "REF:  rubout g M e f * three NINE",
        "HYP:  rubout g N e f F three ****",
        "Eval:          S     I       D   ",
    ]


def test_empty_hypothesis_is_all_deletions():
    (utterance,) = align({"a": "ONE TWO THREE"}, {"a": ""}, {"a": "s"}, "wer")
    assert utterance.counts == [0, 0, 3, 0]


def test_letter_case_is_not_an_error():
    (utterance,) = align({"a": "ONE Two"}, {"a": "one TWO"}, {"a": "s"}, "wer")
    assert utterance.errors == 0


def test_error_rate_equals_jiwer():
    import jiwer

    rng = np.random.default_rng(0)
    words = "a bb ccc dd e".split()
    utts = [f"u{i}" for i in range(20)]
    ref, hyp = (
        {utt: " ".join(rng.choice(words, rng.integers(1, 8))) for utt in utts}
        for _ in range(2)
    )
    utterances = align(ref, hyp, dict.fromkeys(utts, "s"), "wer")
    errors = sum(u.errors for u in utterances)
    assert errors / sum(len(u.ref) for u in utterances) == pytest.approx(
        jiwer.wer(list(ref.values()), list(hyp.values()))
    )


@pytest.mark.parametrize(
    "hyp, utt2spk, message",
    [
        ({"a": "X"}, {"a": "s", "b": "s"}, "no hypothesis for utterance b of"),
        (
            {"a": "X", "b": "", "c": ""},
            {"a": "s", "b": "s"},
            "no reference for utterance c",
        ),
        ({"a": "X", "b": "Y"}, {"a": "s"}, "no utt2spk for utterance b"),
    ],
)
def test_utterances_that_differ_are_named(hyp, utt2spk, message):
    with pytest.raises(ValueError, match=message):
        align({"a": "X", "b": "Y"}, hyp, utt2spk, "wer")


def test_references_without_words_are_an_error():
    with pytest.raises(ValueError, match="no words"):
        align({"a": ""}, {"a": "X"}, {"a": "s"}, "wer")


def test_bootstrap_is_seeded_and_agrees_with_the_normal_interval():
    rng = np.random.default_rng(1)
    lengths = np.full(400, 10)
    errors = rng.binomial(10, 0.1, 400)
    low, high = bootstrap_interval(errors, lengths)
    assert (low, high) == bootstrap_interval(errors, lengths)
    rate = 100 * errors.sum() / lengths.sum()
    half = 1.96 * 100 * (errors / 10).std() / np.sqrt(400)
    assert low == pytest.approx(rate - half, abs=0.15)
    assert high == pytest.approx(rate + half, abs=0.15)


def test_bootstrap_of_no_errors_is_a_point():
    assert bootstrap_interval([0, 0, 0], [3, 4, 5]) == (0.0, 0.0)


def test_result_is_read_back(decoded):
    result = read_result(score_dir(*decoded)["cer"])
    assert (result["Snt"], result["Wrd"], result["Err"]) == (3, 39, 28.2)
    assert result["low"] <= result["Err"] <= result["high"]


def test_result_of_sclite_is_read_too(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text(
        "      | Sum/Avg|  130   773 | 93.1    5.2    1.7    0.6    7.6   29.2 |\n"
    )
    assert read_result(path)["Err"] == 7.6
    assert "low" not in read_result(path)


def test_result_without_totals_is_an_error(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match="Sum/Avg"):
        read_result(path)


def test_wide_names_and_counts_keep_the_columns_apart():
    utts = {f"u{i}": "W " * 2000 for i in range(60)}
    spk = dict.fromkeys(utts, "a-speaker-of-a-long-name")
    text = result_text(align(utts, utts, spk, "wer"), "hyp.trn")
    rows = [line for line in text.splitlines() if line.strip().startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert "| Sum/Avg                  |    60 120000 | 100.0    0.0" in text


def test_command_names_a_missing_utterance(decoded, capsys):
    ref, hyp_dir = decoded
    (hyp_dir / "text").write_text("fcaw-1 X\nmmxg-1 Y\n")
    with pytest.raises(SystemExit) as stop:
        cli.main(["score", "--ref", str(ref), "--hyp_dir", str(hyp_dir)])
    assert stop.value.code == 1
    assert "fcaw-2" in capsys.readouterr().err
    assert not (hyp_dir / "score_wer").exists()
