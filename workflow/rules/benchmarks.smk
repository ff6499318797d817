rule benchmarks:
    input:
        metrics=runs("results/{experiment}/{variant}/seed{seed}/evaluation/metrics.json"),
        paper="config/paper.yaml",
    output:
        over_seeds=sorted(set(runs("results/{experiment}/{variant}/metrics.json"))),
        json="results/benchmarks.json",
        markdown="results/benchmarks.md",
        latex="results/benchmarks.tex",
        csv=report("results/benchmarks.csv", caption="../report/benchmarks.rst", category="Results"),
        page=report("results/report.html", caption="../report/page.rst", category="Results"),
    log:
        "results/benchmarks.log",
    conda:
        "../../environment.yml"
    threads: need("benchmarks", "threads")
    resources:
        cpus_per_task=need("benchmarks", "threads"),
        mem_mb=need("benchmarks", "mem_mb"),
        runtime=need("benchmarks", "runtime"),
    shell:
        "python -m vaebm benchmarks {input.metrics} --paper {input.paper} --experiments config/experiments --results results --log {log}"


# The parent run in MLflow comes first, so that the table can name it. Nothing waits for it, and its failure stops nothing.
rule tracking:
    output:
        update("results/{experiment}/tracking.json"),
    log:
        "results/{experiment}/tracking.log",
    priority: 1
    conda:
        "../../environment.yml"
    shell:
        "python -m vaebm track results/{wildcards.experiment} --log {log}"


# Mirrors to MLflow what is there, last of all.
rule track:
    input:
        ancient("results/{experiment}/tracking.json"),
        "results/benchmarks.json",
    output:
        touch("results/{experiment}/mirrored"),
    log:
        "results/{experiment}/track.log",
    conda:
        "../../environment.yml"
    shell:
        "python -m vaebm track results/{wildcards.experiment} --log {log}"
