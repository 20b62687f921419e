"""Instructions on speech: the text before the speech, and the text after it.

    [instruction, examples][speech][end of the user's turn] -> answer

As in section 4.4 of the paper. The examples are text: what could have been said, and
the answer to it.
"""

from typing import List, Sequence, Tuple

Example = Tuple[str, str]
Message = Tuple[str, str]  # role and content

SPEECH = "<speech>"  # where the speech is, in the text that a chat template makes


def chat_text(tokenizer, messages: Sequence[Message]) -> str:
    """Return a chat as its tokenizer's template writes it, up to the next answer.

    Args:
        tokenizer: The tokenizer of an LM. Without a chat template, the text is the
            contents of the messages, one a line.
        messages: Role (`user`, `assistant` or `system`) and content of each message.
    """
    if not tokenizer.chat_template:
        return "\n".join(content for _, content in messages)
    return tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        tokenize=False,
        add_generation_prompt=True,
    )


def conversation(
    tokenizer, instruction: str, examples: Sequence[Example], said: str
) -> List[Message]:
    """Return the chat whose next answer follows an instruction.

    With a chat template, each example is a turn of the chat, and what is said ends the
    user's last one. Without one, lines begin with `Input:` and `Answer:`.

    Args:
        tokenizer: The tokenizer of the LM.
        instruction: What to do with what is said.
        examples: A text and the answer to it, for each.
        said: What is said, as text.

    Returns:
        The messages, for `chat_text`.

    Raises:
        ValueError: The instruction is empty.
    """
    if not instruction.strip():
        raise ValueError("the instruction is empty: say what to do with the speech")
    if not tokenizer.chat_template:
        shots = [f"Input: {text}\nAnswer: {answer}\n\n" for text, answer in examples]
        text = f"{instruction}\n\n{''.join(shots)}Input: {said}\nAnswer:"
        return [("user", text)]
    messages: List[Message] = []
    for text, answer in examples:
        messages += [("user", f"{instruction}\n\n{text}"), ("assistant", answer)]
    return [*messages, ("user", f"{instruction}\n\n{said}")]


def around_speech(
    tokenizer, instruction: str, examples: Sequence[Example] = ()
) -> Tuple[str, str]:
    """Return the text before the speech, and the text after it.

    Args:
        tokenizer: The tokenizer of the LM.
        instruction: What to do with the speech.
        examples: A text and the answer to it, for each.

    Raises:
        ValueError: The instruction is empty, or the chat template changes what it is
            given.
    """
    messages = conversation(tokenizer, instruction, examples, SPEECH)
    before, found, behind = chat_text(tokenizer, messages).rpartition(SPEECH)
    if not found:
        raise ValueError(
            f"the chat template of the base LM does not repeat {SPEECH!r}, so there is "
            "no place for the speech"
        )
    return before, behind
