"""What is told of results: records, comparisons, tables, figures, report pages.

records     one JSON object per published number, in `results/`
comparison  the rule by which one arm beats another
tables      Markdown tables, numbers as people read them
figures     the few plots
pages       one report, as Markdown, HTML or text for a terminal
readme      the README's tables, made from the records: `python -m resbackbones.report README.md`
"""

from resbackbones.report.comparison import RULE, Comparison, compare, surely_positive
from resbackbones.report.figures import COLOURS, Line, Panel, draw, inline_svg, save_figure
from resbackbones.report.pages import Card, Page, Plot, Verdict
from resbackbones.report.readme import (
    CHANGE,
    TABLES,
    ablations_table,
    benchmark_table,
    is_stale,
    main,
    markers,
    refresh,
    results_table,
)
from resbackbones.report.records import (
    PACKAGES,
    Record,
    available_cores,
    command,
    commit,
    hardware,
    load_record,
    load_records,
    mean_sd,
    result_record,
    rows_digest,
    save_record,
    versions,
    write_record,
)
from resbackbones.report.tables import format_count, format_metric, markdown_table

__all__ = [
    "CHANGE",
    "COLOURS",
    "PACKAGES",
    "RULE",
    "TABLES",
    "Card",
    "Comparison",
    "Line",
    "Page",
    "Panel",
    "Plot",
    "Record",
    "Verdict",
    "ablations_table",
    "available_cores",
    "benchmark_table",
    "command",
    "commit",
    "compare",
    "draw",
    "format_count",
    "format_metric",
    "hardware",
    "inline_svg",
    "is_stale",
    "load_record",
    "load_records",
    "main",
    "markdown_table",
    "markers",
    "mean_sd",
    "refresh",
    "result_record",
    "results_table",
    "rows_digest",
    "save_figure",
    "save_record",
    "surely_positive",
    "versions",
    "write_record",
]
