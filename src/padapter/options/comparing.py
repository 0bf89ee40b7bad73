"""How methods are compared."""

from __future__ import annotations

from dataclasses import dataclass

from padapter.options.fields import check_at_least, check_choices, option, refuse
from padapter.options.training import DEVICES


@dataclass(kw_only=True)
class CompareOptions:
    """Options of ``padapter compare``."""

    recipe: str = option(metavar="RECIPE", positional=True, help="YAML file: methods, benchmarks, seeds; see docs.")
    output: str | None = option(
        None, metavar="DIR", short="-o", help="Folder of the comparison; the same one again continues it."
    )
    jobs: int | None = option(None, help="Runs at a time. (default: one per GPU, or one)")
    only: str | None = option(
        None, metavar="NAMES", in_yaml=False, help="Only run these benchmarks and methods (commas between them)."
    )
    tune: bool = option(False, in_yaml=False, help="First choose learning rates on validation rows, by the grid.")
    match: bool = option(False, in_yaml=False, help="Only print the sizes that the recipe's budget leads to.")
    dry_run: bool = option(False, in_yaml=False, help="Only print what would be run, and check models and data.")
    report_only: bool = option(False, in_yaml=False, help="Only write the report of the runs that are finished.")
    overwrite: bool = option(
        False, in_yaml=False, help="Repeat finished runs whose options have changed; begin unfinished ones anew."
    )
    device: str = option("auto", choices=DEVICES, metavar="auto|cpu|cuda", help="Where to compute.")
    quiet: bool = option(False, help="No progress; only the result.")

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, "jobs")
        only = [name for name in ("match", "dry_run", "report_only") if getattr(self, name)]
        if len(only) > 1:
            flags = [f"--{name.replace('_', '-')}" for name in only]
            raise refuse(flags[1], f"contradicts {flags[0]}; give one of the two")
        if self.report_only and self.overwrite:
            raise refuse("--overwrite", "contradicts --report-only, which runs nothing; give one of the two")
        if self.output is None and not (self.match or self.dry_run):
            raise refuse("--output", "is needed")
