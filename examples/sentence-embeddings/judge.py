"""Judges sentence encoders by what they do: embeddings of real sentences, compared by cosine similarity.

usage: python judge.py BASE MODEL...      (folders that transformers loads; nothing is fetched)

Prints a table: how near each model's embeddings are to the base's, whether every sentence finds its paraphrase, and how
far pairs stand apart from unrelated sentences. Exits with 1 where a model no longer does its work.
"""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

PAIRS = (
    ("A man is playing a guitar on the street.", "Someone plays music on a guitar outdoors."),
    ("The stock market fell sharply on Monday.", "Share prices dropped steeply at the start of the week."),
    ("How do I reset my password?", "What should I do if I forgot my login credentials?"),
    ("The cat is sleeping on the sofa.", "A kitten naps on the couch."),
    ("It will rain heavily tomorrow in London.", "The forecast for London tomorrow is a downpour."),
    ("She baked a chocolate cake for the party.", "A cocoa dessert was made by her for the celebration."),
    ("Water boils at one hundred degrees Celsius.", "At 100 °C, water turns into steam."),
    ("The new phone has a better camera.", "This smartphone takes improved photos."),
    ("Doctors recommend regular exercise.", "Physicians advise working out often."),
    ("The train to Paris leaves at noon.", "At twelve o'clock the Paris train departs."),
)
SENTENCES = tuple(sentence for pair in PAIRS for sentence in pair)
"""Paraphrases stand side by side: sentence n belongs to sentence n ^ 1."""
NEAR = 0.98
"""The least similarity to the base's embedding with which a gentle merge passes."""
NEAR_PACKED = {"load_in_8bit": 0.99, "load_in_4bit": 0.95}
"""The same for a model that bitsandbytes packed, by the setting in its config."""


def embeddings(folder: Path, sentences: tuple[str, ...] = SENTENCES) -> torch.Tensor:
    """Unit vectors, one row for each sentence: the mean over its tokens, as the model was trained to be used."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype="auto").eval()
    words = tokenizer(list(sentences), padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**words).last_hidden_state.float()
    mask = words["attention_mask"].unsqueeze(-1).float()
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def near(folder: Path) -> float:
    """The least similarity with which the model in a folder passes."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
    return next((least for setting, least in NEAR_PACKED.items() if settings.get(setting)), NEAR)


@dataclass(frozen=True)
class Verdict:
    """How a model does beside its base; similarities are cosines.

    `least` and `mean`: of each sentence's embedding to the base's. `paired`: the sentences whose nearest neighbour is
    their paraphrase. `same`: those whose nearest neighbour is the base's. `pairs`, `others`: the mean similarity of
    paraphrases and of unrelated sentences. `near` is the least similarity with which it passes.
    """

    least: float
    mean: float
    paired: int
    same: int
    pairs: float
    others: float
    near: float = NEAR

    @property
    def good(self) -> bool:
        """Whether the model still does what its base does."""
        return self.least >= self.near and self.paired == self.same == len(SENTENCES) and self.pairs > self.others + 0.3


def verdict(base: torch.Tensor, model: torch.Tensor, near: float = NEAR) -> Verdict:
    """How the embeddings of SENTENCES by a model do beside those by its base."""
    similarity = (base * model).sum(1)
    paraphrase = torch.arange(len(SENTENCES)) ^ 1
    similar = model @ model.T
    found = neighbours(model)
    unrelated = torch.ones_like(similar, dtype=torch.bool).fill_diagonal_(False)
    unrelated[torch.arange(len(SENTENCES)), paraphrase] = False
    return Verdict(
        float(similarity.min()),
        float(similarity.mean()),
        int((found == paraphrase).sum()),
        int((found == neighbours(base)).sum()),
        float(similar[~unrelated & ~torch.eye(len(SENTENCES), dtype=torch.bool)].mean()),
        float(similar[unrelated].mean()),
        near,
    )


def neighbours(vectors: torch.Tensor) -> torch.Tensor:
    """The number of each sentence's nearest other sentence."""
    return (vectors @ vectors.T).fill_diagonal_(-1).argmax(1)


def main() -> None:
    """Prints the table."""
    import transformers

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    base, *models = map(Path, sys.argv[1:])
    reference, good = embeddings(base), True
    print(f"{'':<18}{'cosine to base':^20}{'nearest is the':^22}{'mean cosine of':^20}")
    print(f"{'model':<18}{'least':>9}{'mean':>9}{'paraphrase':>13}{'base’s':>9}{'pairs':>9}{'unrelated':>11}")
    for folder in (base, *models):
        found = verdict(reference, embeddings(folder), near(folder))
        paired, same = (f"{count}/{len(SENTENCES)}" for count in (found.paired, found.same))
        row = f"{folder.name:<18}{found.least:>9.4f}{found.mean:>9.4f}{paired:>13}{same:>9}"
        print(f"{row}{found.pairs:>9.3f}{found.others:>11.3f}{'' if found.good else '   not good'}")
        good = good and found.good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
