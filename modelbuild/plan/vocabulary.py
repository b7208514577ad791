"""The vocabulary of a merge: which tokens it has, and the inputs with their rows in its order.

Without a choice in the Modelfile nothing happens here, and models whose rows differ do not fit. With one, every tensor
that has a row for each token becomes a node of rows (plan/rows.py), before any method sees it. What stands in a row for
a token that its model has not:

    what [merge.NAME.tokens] says, else the base's row, else the only model's that has the token, else the mean of the
    rows of all models that have it, else zeros; rows for no token are the mean of all that are for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from modelbuild.errors import BuildFailed, Fault
from modelbuild.modelfile.spec import Merge, Spec
from modelbuild.modelfile.tokens import TokenChoice, choices
from modelbuild.plan.new_tokens import likely, new_tokens
from modelbuild.plan.node import FLOATS, Node
from modelbuild.plan.planned import Decision, Planned, Side
from modelbuild.plan.rows import PADDING, RowMap, Taken, row_map, rows_node
from modelbuild.plan.token_ids import Renaming, with_ids
from modelbuild.plan.token_tensors import embedding, token_tensors
from modelbuild.plan.tokenizers import Tokenizers, unreadable, with_files, with_tokenizer
from modelbuild.sources.strictjson import show
from modelbuild.tokenizer.nouns import Unreadable
from modelbuild.tokenizer.union import Member, Vocabulary, as_it_is, union
from modelbuild.tokenizer.write import write

Sizes: TypeAlias = "tuple[int, tuple[tuple[str, int], ...]]"
"""The rows of an output tensor, and of the inputs' tensors by model."""

MOST_ROWS = 2**24
"""How many rows a vocabulary may have: sixty times the largest known, and few enough to plan with."""


@dataclass(frozen=True)
class Aligned:
    """The inputs of a merge with rows for one vocabulary, the side files that go with it, and what to tell.

    `origins` say for each node of rows, by key, which tensors it comes from, the one that it stands for first.
    """

    inputs: Mapping[str, Planned]
    side: Side
    origins: Mapping[str, tuple[tuple[str, Node], ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def original(self, node: Node) -> Node:
        """The tensor that a node of rows stands for; another node itself."""
        return self.origins[node.key][0][1] if node.key in self.origins else node

    def told(self, decision: Decision) -> Decision:
        """The decision with the tensors that rows were taken from in the place of the nodes of rows."""
        found: dict[tuple[str, str], None] = {}
        maps = []
        for name, key in decision.inputs:
            origins = self.origins.get(key)
            found.update(dict.fromkeys([(n, node.key) for n, node in origins] if origins else [(name, key)]))
            if origins:
                maps.append((f"rows of `{name}`", key[:12]))
        return replace(decision, parameters=(*decision.parameters, *maps), inputs=tuple(found))


def align(spec: Spec, merge: Merge, inputs: Mapping[str, Planned], donor: str) -> Aligned:
    """The inputs with rows for the vocabulary that the merge chooses; as they are where it chooses none.

    Raises BuildFailed for tokenizers that are missing or do not go together, and for choices that cannot be met.
    """
    side = inputs[donor].side
    if merge.tokenizer is None and not merge.tokens and merge.pad_to_multiple_of is None:
        return Aligned(inputs, side)
    return _Aligner(spec, merge, inputs, donor).aligned()


class _Aligner:
    """What is at hand while the inputs of one merge are aligned."""

    def __init__(self, spec: Spec, merge: Merge, inputs: Mapping[str, Planned], donor: str) -> None:
        self.spec = spec
        self.merge = merge
        self.inputs = inputs
        self.donor = donor
        self.notes: list[str] = []
        self.faults: dict[str, Fault] = {}
        chosen = merge.tokenizer or "base"
        self.chosen = donor if chosen in ("base", "union") else chosen
        self.is_union = chosen == "union"
        self.where = spec.where("merge", merge.name, "tokenizer")
        self.places = {name: place for place, name in enumerate(inputs)}
        self.members = self._members()
        self.choices = choices(merge.tokens)
        self.vocabulary = self._vocabulary()
        self.origins: dict[str, tuple[tuple[str, Node], ...]] = {}
        self.fills: dict[Sizes, list[Taken]] = {}
        self.tables: dict[tuple[str, Sizes], tuple[RowMap, list[str]]] = {}

    def aligned(self) -> Aligned:
        """The inputs, the side files and the notes."""
        if (rows := self._rows(embedding(self.inputs[self.donor]) or "")) > MOST_ROWS:
            fact = f"the limit is {MOST_ROWS}"
            raise BuildFailed(
                f"the vocabulary of `{self.merge.name}` would have {rows} rows", where=self.where, facts=[fact]
            )
        made = {name: self._planned(planned) for name, planned in self.inputs.items()}
        if self.faults:
            raise BuildFailed(list(self.faults.values()))
        self.notes += new_tokens(self.choices, [member.tokenizer for member in self.members.values()])
        side = self._side()
        return Aligned(made, side, self.origins, tuple(self.notes))

    def _members(self) -> dict[str, Member]:
        """Every input with its tokenizer; one without has the donor's if it has as many rows."""
        reader = Tokenizers()
        found: dict[str, Member] = {}
        lacking: list[str] = []
        order = dict.fromkeys([self.chosen, self.donor, *self.inputs])
        for name in order:
            planned = self.inputs[name]
            own = embedding(planned)
            if own is None:
                raise self._failed(f"`{name}` has no embedding", "no tensor's name says that its rows are tokens")
            tokenizer = reader.of(planned, self.where)
            rows = planned.tensors[own].shape[0]
            if tokenizer is not None:
                found[name] = Member(name, tokenizer, rows)
            elif self.donor in found and found[self.donor].rows == rows:
                lacking.append(name)
                found[name] = replace(found[self.donor], name=name)
            else:
                raise self._failed(f"`{name}` has no tokenizer", "there is no tokenizer.json or tokenizer.model in it")
        self.notes += [
            f"`{name}` has no tokenizer: its rows are taken to be those of `{self.donor}`" for name in lacking
        ]
        return found

    def _failed(self, message: str, fact: str) -> BuildFailed:
        return BuildFailed(message, where=self.where, facts=[fact], hint="its rows cannot be told apart without")

    def _vocabulary(self) -> Vocabulary:
        chosen = self.members[self.chosen]
        others = [self.members[name] for name in self.inputs if name != self.chosen]
        if self.is_union:
            return union(chosen, others, self.choices)
        return as_it_is(chosen, self.choices, others)

    # --- tensors ------------------------------------------------------------------------------------------------------

    def _planned(self, planned: Planned) -> Planned:
        own = embedding(planned)
        made = {name: self._node(planned, name, name == own) for name in token_tensors(planned)}
        return replace(planned, tensors={**planned.tensors, **made})

    def _node(self, planned: Planned, name: str, telling: bool) -> Node:
        node = planned.tensors[name]
        others = {n: p.tensors[name] for n, p in self.inputs.items() if name in p.tensors}
        have = {n: other for n, other in others.items() if other.shape[1:] == node.shape[1:]}
        if not all(other.dtype in FLOATS.values() for other in have.values()):
            self._fault(name, f"`{name}` has a dtype that is not computed with", f"it is {node.dtype}")
            return node
        rows = {n: have[n].shape[0] for n in have}
        table, used = self._table(planned.name, self._rows(name), rows)
        if telling:
            self._tell(planned.name, rows[planned.name])
        made = rows_node(table, tuple(have[n] for n in used))
        if made is not node:
            self.origins[made.key] = tuple((n, have[n]) for n in used)
        return made

    def _rows(self, name: str) -> int:
        """How many rows the tensor `name` has in the output."""
        size = self.vocabulary.size
        if (multiple := self.merge.pad_to_multiple_of) is not None:
            return -(-self._tokens() // multiple) * multiple
        if self.is_union:
            return size
        tensor = self.inputs[self.chosen].tensors.get(name)
        kept = tensor.shape[0] if tensor is not None else self.members[self.chosen].rows
        return max(kept, size) if self.vocabulary.new else kept

    def _tokens(self) -> int:
        """One more than the greatest id that a token with a row has."""
        rows = self.members[self.chosen].rows
        own = self.vocabulary.tokens.values() if self.vocabulary.new or self.is_union else ()
        return max([*own, *self.members[self.chosen].tokenizer.within(rows).values()], default=-1) + 1

    def _table(self, model: str, rows: int, have: Mapping[str, int]) -> tuple[RowMap, list[str]]:
        """The map of one model's tensor, and the models whose tensors are its inputs; `have` are rows by model."""
        key = (model, (rows, tuple(have.items())))
        if key not in self.tables:
            table = row_map(self._taken(model, rows, have))
            used = {index for run in table.runs if not run.is_padding for index, _ in run.taken}
            names = [model, *(name for name in have if name != model and self.places[name] in used)]
            places = {self.places[name]: place for place, name in enumerate(names)}
            self.tables[key] = (table.renumbered(places), names)
        return self.tables[key]

    def _taken(self, model: str, rows: int, have: Mapping[str, int]) -> list[Taken]:
        """What each row of one model's tensor is made of, inputs by their places in the merge."""
        taken = list(self._fill(rows, have))
        own, place = self.members[model].tokenizer.within(have[model]), self.places[model]
        forced = {token for token, choice in self.choices.items() if choice.force}
        for token, number in self.vocabulary.tokens.items():
            if number < rows and token in own and token not in forced:
                taken[number] = ((place, own[token]),)
        if self.merge.pad_to_multiple_of is None and not self.is_union:
            self._keep_padding(model, taken, have[model])
        return taken

    def _keep_padding(self, model: str, taken: list[Taken], rows: int) -> None:
        """Rows for no token stay what they are in a model where they are for none either."""
        named = self.members[model].tokenizer.by_id
        for number in range(min(len(taken), rows)):
            if taken[number] == PADDING and number not in named:
                taken[number] = ((self.places[model], number),)

    def _fill(self, rows: int, have: Mapping[str, int]) -> list[Taken]:
        """What each row is in a model that has not its token."""
        key = (rows, tuple(have.items()))
        if key not in self.fills:
            owners = {name: self.members[name].tokenizer.within(have[name]) for name in self.inputs if name in have}
            listed = [(self.places[name], own) for name, own in owners.items()]
            base = next((entry for name, entry in zip(owners, listed, strict=True) if name == self.merge.base), None)
            taken: list[Taken] = [PADDING] * rows
            for token, number in self.vocabulary.tokens.items():
                if number >= rows or not self._stands_for(token, number):
                    continue
                if (choice := self.choices.get(token)) is not None:
                    taken[number] = self._choice(token, choice, owners, have)
                elif base is not None and token in base[1]:
                    taken[number] = ((base[0], base[1][token]),)
                else:
                    taken[number] = tuple([(place, own[token]) for place, own in listed if token in own])
            self.fills[key] = taken
        return self.fills[key]

    def _stands_for(self, token: str, number: int) -> bool:
        """Whether the output has this token at this row: of those beyond the chosen model's rows only new ones."""
        return number < self.members[self.chosen].rows or token in self.vocabulary.new

    def _choice(
        self, token: str, choice: TokenChoice, owners: Mapping[str, Mapping[str, int]], have: Mapping[str, int]
    ) -> Taken:
        if choice.model is None:
            return ()
        row = choice.token_id
        if choice.model in owners and row is None:
            row = owners[choice.model].get(choice.token or token)
        if choice.model not in owners or row is None or row >= have[choice.model]:
            what = f"row {choice.token_id}" if choice.token_id is not None else f"token {show(choice.token or token)}"
            fact = f"`{choice.model}` has {have.get(choice.model, 0)} rows"
            meant = likely(choice.token or token, [self.members[choice.model].tokenizer]) if row is None else None
            hint = f"did you mean {show(meant)}?" if meant is not None else None
            told = f"`{choice.model}` has no {what}, which [merge.{self.merge.name}.tokens] asks for"
            self._fault(token, told, fact, hint)
            return ()
        return ((self.places[choice.model], row),)

    def _fault(self, token: str, message: str, fact: str, hint: str | None = None) -> None:
        where = self.spec.where("merge", self.merge.name, "tokens", token)
        self.faults.setdefault(token, Fault(message, where, (fact,), hint))

    # --- files and notes ----------------------------------------------------------------------------------------------

    def _side(self) -> Side:
        """The donor's side files with the tokenizer that was chosen."""
        side, chosen = self.inputs[self.donor].side, self.inputs[self.chosen].side
        side = replace(side, vocabulary=self._rows(embedding(self.inputs[self.donor]) or ""))
        if self.chosen != self.donor:
            side, notes = with_ids(with_tokenizer(side, chosen), self._renaming(), chosen)
            self.notes += notes
        elif self.vocabulary.lost:
            side, notes = with_ids(side, self._renaming(), Side())
            self.notes += notes
        if self.vocabulary.is_donors:
            return side
        try:
            written = write(self.vocabulary)
        except Unreadable as error:
            raise unreadable(self.merge.name, error, self.where) from None
        self.notes += written.notes
        return with_files(side, written.files, written.dropped)

    def _renaming(self) -> Renaming:
        """What ids in configs become: of tokens that have a row."""
        rows = self._rows(embedding(self.inputs[self.donor]) or "")
        after = {token: number for token, number in self.vocabulary.tokens.items() if number < rows}
        return Renaming(self.members[self.donor].tokenizer, self.members[self.chosen].tokenizer, after, rows)

    def _tell(self, model: str, rows: int) -> None:
        """Notes what became of one model's rows."""
        own = self.members[model].tokenizer.within(rows)
        kept = sum(1 for token in self.vocabulary.tokens if token in own)
        filled = sum(1 for token, number in self.vocabulary.tokens.items() if self._lacks(token, number, own))
        parts = [f"{kept} kept", *([f"{filled} filled"] if filled else [])]
        parts += [f"{len(own) - kept} dropped"] if len(own) > kept else []
        if len(parts) > 1 or self.vocabulary.new:
            added = sum(1 for member in self.vocabulary.new.values() if member and member.name == model)
            parts += [f"{added} of its tokens are new to `{self.chosen}`"] if added else []
            self.notes.append(f"rows of `{model}`: {', '.join(parts)}")

    def _lacks(self, token: str, number: int, own: Mapping[str, int]) -> bool:
        return token not in own and self._stands_for(token, number)
