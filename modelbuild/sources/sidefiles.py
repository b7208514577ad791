"""Which files of a source are copied along: tokenizers, processors, licences, by an explicit list.

Never code, weights, indexes, configs that modelbuild writes itself, or a README that speaks about the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

NAMES = frozenset({
    "added_tokens.json", "bpe.codes", "chat_template.jinja", "chat_template.json", "config_sentence_transformers.json",
    "merges.txt", "modules.json", "normalizer.json", "preprocessor_config.json", "processor_config.json",
    "sentence_bert_config.json", "sentencepiece.bpe.model", "sentencepiece.model", "source.spm",
    "special_tokens_map.json", "spiece.model", "spm.model", "target.spm", "tekken.json", "tokenizer.json",
    "tokenizer.model", "tokenizer.model.v3", "tokenizer_config.json", "video_preprocessor_config.json", "vocab.bpe",
    "vocab.json", "vocab.txt",
})  # fmt: skip
"""Side files by name."""

FOLDERS = re.compile(r"additional_chat_templates|[0-9]+_[A-Za-z]+")
"""Folders that hold side files: more chat templates, and the modules of sentence-transformers (`1_Pooling`)."""

_PATTERNS = re.compile(
    r"[^/]+\.tiktoken"
    r"|(?i:(?:licen[cs]e|notice|use_policy)(?:[-_][a-z0-9_-]*)?(?:\.txt|\.md|\.pdf)?)"
    r"|additional_chat_templates/[^/]+\.jinja"
    r"|[0-9]+_[A-Za-z]+/config\.json"
)


def is_side_file(name: str) -> bool:
    """Whether the file `name`, with `/` after its folder, is copied along with a model."""
    return name in NAMES or _PATTERNS.fullmatch(name) is not None


def side_files(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that are side files, sorted."""
    return tuple(sorted(name for name in names if is_side_file(name)))
