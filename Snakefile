"""VAEBM from data to the results table: one rule per stage, one experiment per file of config/experiments/."""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"


report: "workflow/report/workflow.rst"


include: "workflow/rules/data.smk"
include: "workflow/rules/nvae.smk"
include: "workflow/rules/prior.smk"
include: "workflow/rules/ebm.smk"
include: "workflow/rules/samples.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/benchmarks.smk"


localrules:
    all,
    pin,
    tracking,
    track,
    same_energy,


rule all:
    default_target: True
    input:
        "results/benchmarks.json",
        expand("results/{experiment}/mirrored", experiment=EXPERIMENTS),
        # asked for here too, since jobs reached by `ancient` inputs are hidden from the plan when the comparison runs
        expand("results/data/{dataset}.pinned", dataset=DATASETS),
