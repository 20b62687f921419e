"""Instructions on speech: the text before the speech, and the text behind it.

    [instruction, examples][speech][end of the user's turn] -> answer

As in section 4.4 of the paper. The examples are text: what could have been said, and
the answer to it.
"""

from typing import List, Sequence, Tuple

Example = Tuple[str, str]

SPEECH = "<speech>"  # where the speech is, in the text that a chat template makes


def chat_text(tokenizer, messages: Sequence[Tuple[str, str]]) -> str:
    """Return a chat as its tokenizer's template writes it, up to the next answer.

    Args:
        tokenizer: The tokenizer of an LM, with a chat template.
        messages: Role (`user`, `assistant` or `system`) and content of each message.
    """
    return tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        tokenize=False,
        add_generation_prompt=True,
    )


def around_speech(
    tokenizer, instruction: str, examples: Sequence[Example] = ()
) -> Tuple[str, str]:
    """Return the text before the speech, and the text behind it.

    With a chat template, each example is a turn of the chat, and the speech is the last
    thing that the user says. Without one, lines begin with `Input:` and `Answer:`.

    Args:
        tokenizer: The tokenizer of the LM.
        instruction: What to do with the speech.
        examples: A text and the answer to it, for each.

    Raises:
        ValueError: The instruction is empty, or the chat template changes what it is
            given.
    """
    if not instruction.strip():
        raise ValueError("the instruction is empty: say what to do with the speech")
    if not tokenizer.chat_template:
        shots = [f"Input: {text}\nAnswer: {answer}\n\n" for text, answer in examples]
        return f"{instruction}\n\n{''.join(shots)}Input: ", "\nAnswer:"
    messages: List[Tuple[str, str]] = []
    for text, answer in examples:
        messages += [("user", f"{instruction}\n\n{text}"), ("assistant", answer)]
    messages.append(("user", f"{instruction}\n\n{SPEECH}"))
    before, found, behind = chat_text(tokenizer, messages).rpartition(SPEECH)
    if not found:
        raise ValueError(
            f"the chat template of the base LM does not repeat {SPEECH!r}, so there is "
            "no place for the speech"
        )
    return before, behind
