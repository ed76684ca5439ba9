"""Tables, and numbers as people read them."""

from collections.abc import Iterable, Sequence

# Shares of one, shown as percentages.
PERCENT = (
    *("accuracy", "top5_accuracy", "pixel_accuracy", "precision", "recall", "f1", "macro_f1"),
    *("micro_f1", "map", "ap", "ap50", "ap75", "iou", "mean_iou", "dice", "mean_dice"),
    *("mean_average_precision", "average_precision"),
    *("mask_map", "mask_ap", "mask_ap50", "mask_ap75", "eer", "eer_as_norm"),
    *("cer", "wer", "empty", "cer_greedy", "wer_greedy", "cer_beam", "wer_beam"),
    *("cer_beam_lm", "wer_beam_lm"),
)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose source reads as well as its rendering; the first `left` columns go left.

    >>> print(markdown_table(["arm", "value"], [["plain", "0.5"]]))
    | arm   | value |
    | :---- | ----: |
    | plain |   0.5 |
    """
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = [
        ":" + "-" * (width - 1) if i < left else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def format_metric(metric: str, mean: float, sd: float | None = None) -> str:
    """A mean and its spread for people.

    >>> format_metric("accuracy", 0.877, 0.0123), format_metric("loss", 1.5)
    ('87.7 ± 1.2 %', '1.500')
    """
    if metric in PERCENT:
        return f"{100 * mean:.1f}" + (f" ± {100 * sd:.1f}" if sd is not None else "") + " %"
    return f"{mean:.3f}" + (f" ± {sd:.3f}" if sd is not None else "")


def format_count(number: float) -> str:
    """Parameters and multiply-adds for people.

    >>> format_count(950), format_count(77_214), format_count(1_814_073_344)
    ('950', '77.2 k', '1.81 G')
    """
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f}"
