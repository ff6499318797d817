"""VAEBM from data to the results table: workflow/Snakefile, which other workflows can use as a module."""


include: "workflow/Snakefile"


workflow.default_target = "all"  # an included file sets none
