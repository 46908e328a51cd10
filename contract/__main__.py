"""`python -m contract`: the table of parameters, in Markdown, for the documents."""

from contract.card import ModelCard
from contract.parameters import MISSING, NEGATIVE_PROMPT, PARAMETERS, Parameter


def _default(parameter: Parameter) -> str:
    if parameter.default is MISSING:
        return "drawn" if parameter.name == "seed" else "required"
    if parameter.default is None:
        return "the variant's, if it has one"
    if parameter.default == ():
        return "none"
    return "the official one" if parameter.default == NEGATIVE_PROMPT else f"{parameter.default}"


def table(card: ModelCard | None = None) -> str:
    """Every parameter with its bounds in the geometry of `card` (Wan 2.1), default, other names and meaning."""
    card = card or ModelCard()
    rows = [
        "| parameter | Triton input | allowed | default | lossless at | also called | meaning |",
        "|---|---|---|---|---|---|---|",
    ]
    for p in PARAMETERS:
        tensor = f"`{p.tensor_name}` {p.kind}" if p.tensor else "none: of the file"
        also = ", ".join(f"`{name}`" for name in p.aliases)
        lossless = "any" if p.lossless is None else f"{p.lossless:g}"
        help = p.help or f"{p.label}."
        rows.append(
            f"| `{p.name}` | {tensor} | {p.rule.words(card.geometry)} | {_default(p)} | {lossless} | {also} | {help} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
