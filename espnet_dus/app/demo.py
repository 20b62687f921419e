"""A demo for the browser: transcripts, instructions on speech, and text.

Nothing is loaded from the network, neither analytics nor fonts: it works offline.
"""

import html
import os
from typing import Tuple

from espnet_dus.app.transcription import Transcript, Word, answer, transcribe
from espnet_dus.model.checkpoint import parameter_counts
from espnet_dus.search.speech2text import Speech2Text

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr  # noqa: E402


def build(speech2text: Speech2Text) -> gr.Blocks:
    """Build the page.

    Args:
        speech2text: The model to demonstrate.

    Returns:
        The page, served by its method `launch`.
    """

    def on_audio(path: str) -> str:
        try:
            return transcript_html(transcribe(speech2text, path))
        except (ValueError, OSError, RuntimeError) as error:
            raise gr.Error(str(error)) from error

    def on_instruction(path: str, instruction: str) -> str:
        if path is None:
            raise gr.Error("Record or upload something first.")
        try:
            return answer(speech2text, path, instruction)
        except (ValueError, OSError, RuntimeError) as error:
            raise gr.Error(str(error)) from error

    def on_question(question: str) -> Tuple[str, str, str]:
        if not question.strip():
            raise gr.Error("Ask something first.")
        answer = speech2text.generate_text(question, added_layers="kept")
        try:
            base = speech2text.generate_text(question, added_layers="dropped")
        except ValueError as error:  # full fine-tuning
            return answer, "", f"No base LM to compare with: {error}"
        equal = "equal, word for word" if answer == base else "different"
        return answer, base, f"The two answers are **{equal}**."

    with gr.Blocks(title="espnet_dus", analytics_enabled=False) as page:
        gr.Markdown(_headline(speech2text))
        with gr.Row():
            with gr.Column():
                gr.Markdown("### Speech")
                audio = gr.Audio(
                    label="Record or upload",
                    sources=["upload", "microphone"],
                    type="filepath",
                    buttons=["download"],  # not "share", which sends it away
                )
                gr.Markdown(
                    "The transcript, each word with its time in seconds: from green "
                    "(confident) to red (uncertain)."
                )
                transcript = gr.HTML()
                instruction = gr.Textbox(
                    label="Instruction", placeholder="Translate it into French."
                )
                follow = gr.Button("Follow the instruction")
                followed = gr.Textbox(label="Answer")
            with gr.Column():
                gr.Markdown("### Text, with the same weights")
                question = gr.Textbox(label="Question", lines=2)
                ask = gr.Button("Ask", variant="primary")
                with gr.Row():
                    adapted = gr.Textbox(label="Adapted model", lines=6)
                    base = gr.Textbox(label="Base LM", lines=6)
                verdict = gr.Markdown()
        heard = [audio.upload, audio.stop_recording]
        gr.on(heard, on_audio, audio, transcript)
        spoken = [audio, instruction]
        gr.on([follow.click, instruction.submit], on_instruction, spoken, followed)
        answers = [adapted, base, verdict]
        gr.on([ask.click, question.submit], on_question, question, answers)
    return page


def transcript_html(transcript: Transcript) -> str:
    """Return a transcript as HTML: from red to green by confidence, times below words.

    Args:
        transcript: The transcript. Its text is escaped.
    """
    if not transcript.words:
        return f"<p>(no words in {transcript.seconds:.1f} s of audio)</p>"
    return f"<p id='transcript'>{' '.join(map(_word_html, transcript.words))}</p>"


def _word_html(word: Word) -> str:
    time, details = "", f"confidence {word.confidence:.0%}"
    if word.start is not None:
        details = f"{word.start:.2f} to {word.end:.2f} s, {details}"
        time = f"<small>{word.start:.1f}</small>"
    box = "display: inline-block; text-align: center; padding: 0 4px; margin: 2px"
    hue = round(120 * word.confidence)  # of red: 0, of green: 120
    colours = f"border-radius: 4px; color: #222; background: hsl({hue} 75% 82%)"
    return (
        f"<span title='{details}' style='{box}; {colours}'>"
        f"<b>{html.escape(word.word)}</b><br>{time}</span>"
    )


def _headline(speech2text: Speech2Text) -> str:
    model, args = speech2text.model, speech2text.train_args
    counts = parameter_counts(model)
    share = counts["trained"] / counts["total"]
    what = args.adaptation
    if shape := getattr(model.lm.config, "depth_up_scaling", None):
        layers = len(shape["positions"])
        what = f"{layers} added {shape['kind']} layers, scope {shape['scope']}"
    return (
        f"## {model.identity.name} with speech input\n{what}; {counts['trained']:,} "
        f"parameters trained, {share:.1%} of {counts['total']:,}"
    )
